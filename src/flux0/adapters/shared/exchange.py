"""The state of one exchange, which the adapters of all HTTP libraries record."""

from __future__ import annotations

from functools import partial
from typing import Any

from flux0.adapters.shared.bodies import shut_down
from flux0.ports import Request


class Exchange:
    """The state of one request until the response head is received.

    Each adapter derives a class from it that records the steps of its library. When the library
    raises an exception, the adapter uses this state to choose the error of flux0.

    Attributes:
        sent: Whether a byte of the request may have been sent.
        failure: The last exception that the library itself raised, or None. An adapter compares an
            exception with it to find out whether the library or the user's code raised it.
        timeout: The timeouts of the request.
    """

    def __init__(self, request: Request) -> None:
        self.sent: bool = False
        self.failure: BaseException | None = None
        self.timeout = request.timeout
        self._interrupt = request.interrupt

    def shut_down_on_interrupt(self, socket: Any) -> None:
        """Shut `socket` down when the request is interrupted, to wake the call that waits for it.

        It replaces the socket of an earlier call. See `shut_down` for the types of sockets.
        """
        self._interrupt.on_fire(partial(shut_down, socket))

    def clear_interrupt(self) -> None:
        """Keep the connection open if the request is interrupted from now on."""
        self._interrupt.clear()
