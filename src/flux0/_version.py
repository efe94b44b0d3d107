"""The version of this library. The build also reads it from this file."""

__version__ = "0.1.0"
