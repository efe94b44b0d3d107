"""The classes of the retry policy, in the same module as in the generated client."""

from flux0 import BackoffStrategy, RetryConfig

__all__ = ["BackoffStrategy", "RetryConfig"]
