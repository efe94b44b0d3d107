"""The retry policy. The generated client had its classes in a module of this name."""

from flux0 import BackoffStrategy, RetryConfig

__all__ = ["BackoffStrategy", "RetryConfig"]
