"""The calls of a client that are in progress. Closing the client ends these calls."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define

from flux0.domain.errors import ClientClosed, TransportError
from flux0.runtime.processes import PerProcess

CLIENT_CLOSED = "this Flux0 client is closed: create a new client"


class OpenCalls:
    """The calls of one client that are in progress.

    Adding and removing a call takes no lock, because a single operation of a `dict` is atomic. Each
    process has its own calls, so closing a client in a forked child does not end calls of the
    parent.

    Attributes:
        closed: whether the client was closed.
    """

    def __init__(self) -> None:
        self.closed: bool = False
        self._wakers: PerProcess[dict[WakeOnClose, Callable[[], object]]] = PerProcess(dict)

    def check(self) -> None:
        """Raise `ClientClosed` if the client was closed."""
        if self.closed:
            raise ClientClosed(CLIENT_CLOSED)

    def explain(self, error: BaseException) -> BaseException:
        """Return a `ClientClosed` if the client is closed and `error` comes from the transport.

        Otherwise, return `error`.
        """
        if not (self.closed and isinstance(error, (TransportError, ClientClosed))):
            return error
        closed = ClientClosed(CLIENT_CLOSED)
        closed.__cause__ = error.__cause__ or error
        closed.sent = error.sent
        return closed

    def wake_on_close(self, wake: Callable[[], object]) -> WakeOnClose:
        """Return a context manager. If the client is closed in the `with` block, `wake` is called.

        `wake` may be called in any thread, and must not block or raise. Entering the block raises
        `ClientClosed` if the client is already closed.
        """
        return WakeOnClose(self, self._wakers.get(), wake)

    def close(self) -> None:
        """Wake all waiting calls. Later calls raise `ClientClosed`."""
        self.closed = True
        for wake in tuple(self._wakers.get().values()):
            wake()


@define(eq=False)
class WakeOnClose:
    """The context manager that `OpenCalls.wake_on_close` returns."""

    _calls: OpenCalls
    _wakers: dict[WakeOnClose, Callable[[], object]]
    _wake: Callable[[], object]

    def __enter__(self) -> None:
        self._wakers[self] = self._wake
        # `OpenCalls.close` may have run before `_wake` was added. Then it did not call `_wake`.
        if self._calls.closed:
            del self._wakers[self]
            self._calls.check()

    def __exit__(self, *_: object) -> None:
        del self._wakers[self]
