"""The calls of a client that are in progress, so that closing the client ends them."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from flux0.domain.errors import ClientClosed, TransportError
from flux0.runtime.processes import PerProcess

CLIENT_CLOSED = "this Flux0 client is closed: create a new client"


class OpenCalls:
    """The waiting calls of one client.

    Registering takes no lock: one operation of a `dict` is atomic. Each process has its own calls,
    so that closing a client in a forked child does not end the calls of the parent.

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
        """Return the error to raise for `error`: `ClientClosed` if closing the client caused it."""
        if not (self.closed and isinstance(error, (TransportError, ClientClosed))):
            return error
        closed = ClientClosed(CLIENT_CLOSED)
        closed.__cause__ = error.__cause__ or error
        closed.sent = error.sent
        return closed

    def wake_on_close(self, wake: Callable[[], object]) -> WakeOnClose:
        """Return a context manager in which closing the client calls `wake`, from any thread.

        `wake` must not block or raise. Entering raises `ClientClosed` if the client is closed.
        """
        return WakeOnClose(self, self._wakers.get(), wake)

    def close(self) -> None:
        """Wake all waiting calls, and let further calls raise `ClientClosed`."""
        self.closed = True
        for wake in tuple(self._wakers.get().values()):
            wake()


class WakeOnClose:
    """A context manager around one wait of a call."""

    __slots__ = ("_calls", "_wake", "_wakers")

    def __init__(
        self,
        calls: OpenCalls,
        wakers: dict[WakeOnClose, Callable[[], object]],
        wake: Callable[[], object],
    ) -> None:
        self._calls = calls
        self._wakers = wakers
        self._wake = wake

    def __enter__(self) -> None:
        self._wakers[self] = self._wake
        if self._calls.closed:  # `close` may have read the wakers just before.
            del self._wakers[self]
            self._calls.check()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del self._wakers[self]
