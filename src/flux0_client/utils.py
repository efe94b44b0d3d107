"""The settings of retries, where the generated client had them."""

from flux0 import BackoffStrategy, RetryConfig

__all__ = ["BackoffStrategy", "RetryConfig"]
