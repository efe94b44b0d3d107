"""The classes of the retry policy. The earlier, generated client had them in this module."""

from flux0 import BackoffStrategy, RetryConfig

__all__ = ["BackoffStrategy", "RetryConfig"]
