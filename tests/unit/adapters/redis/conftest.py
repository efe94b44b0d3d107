"""Each test of this folder releases everything that it has opened or started."""

from support.released import everything_is_released

__all__ = ["everything_is_released"]
