"""The classes of the retry policy. The generated client had them in a module of this name."""

from flux0 import BackoffStrategy, RetryConfig

__all__ = ["BackoffStrategy", "RetryConfig"]
