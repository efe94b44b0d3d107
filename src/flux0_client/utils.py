"""The retry policy, under the module name of the older, generated client."""

from flux0 import BackoffStrategy, RetryConfig

__all__ = ["BackoffStrategy", "RetryConfig"]
