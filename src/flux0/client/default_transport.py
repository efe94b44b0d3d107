"""The transport of clients that were created without a transport, and its replacement in tests."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast

from flux0.domain.safe_text import shown_url
from flux0.flows import CallRequest, Flow, SendFlow
from flux0.ports import AsyncByteStream, ByteStream, Request, Response, Time
from flux0.runtime.time import SystemTime

T = TypeVar("T")

# `_replacements` starts with None. Each active `with default_transport(...)` block adds its
# transport. Clients without a transport use the last item, unless the last item is None. The list
# is global, because the code under test can send in any thread or task.
_replacements: Final[list[Any]] = [None]
# `_allowed` starts with True. Each active `with real_transports(...)` block adds its argument
# `allowed`. The last item says whether real transports can send.
_allowed: Final[list[bool]] = [True]
# With the value "1" of this environment variable, real transports cannot send. Child processes get
# it from the process that runs the tests.
_VARIABLE: Final = "FLUX0_FORBID_REAL"


@contextmanager
def default_transport(transport: T) -> Generator[T, None, None]:
    """In the `with` block, send the calls of all clients without a transport over `transport`.

    `transport` is a `Shared` transport with an attribute `time`. Clients that were created with the
    argument `transport`, `async_transport`, `client` or `async_client` are not affected.
    `FakeTransport.installed` calls this function.
    """
    _replacements.append(transport)
    try:
        yield transport
    finally:
        _replacements.remove(transport)


@contextmanager
def real_transports(*, allowed: bool) -> Generator[None, None, None]:
    """In the `with` block, allow or forbid the calls that a transport of flux0 sends to a server.

    Only clients that were created in such a block are checked, so the first block must start before
    the clients are created. The environment variable `FLUX0_FORBID_REAL` does the same for the
    clients of child processes that are started in the block.
    """
    _allowed.append(allowed)
    previous = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = str(int(not allowed))
    try:
        yield
    finally:
        _allowed.pop()
        if previous is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = previous


def guarded(send: SendFlow, transports: Iterable[object]) -> SendFlow:
    """Return `send`; in a `real_transports` block, a function that checks each request first.

    A process whose environment variable `FLUX0_FORBID_REAL` is set checks the requests, too.
    """
    if len(_allowed) == 1 and _VARIABLE not in os.environ:
        return send

    def check_and_send(request: CallRequest) -> Flow[Response[Any]]:
        # The variable is only for child processes: a test may remove it with `monkeypatch`.
        is_child = len(_allowed) == 1
        is_forbidden = os.environ.get(_VARIABLE) == "1" if is_child else not _allowed[-1]
        if is_forbidden and any(map(_is_real, transports)):
            setting = (
                f"environment variable {_VARIABLE}" if is_child else "ini option flux0_forbid_real"
            )
            raise AssertionError(
                f"{request.operation} must not be sent to a server ({request.method} "
                f"{shown_url(request.url)}), because the {setting} is set: "
                "install a fake (`with FakeTransport().installed()`), pass a transport of "
                "flux0.testing to the client, or mark the test with @pytest.mark.flux0_real"
            )
        return send(request)

    return check_and_send


class DefaultTransport:
    """The transport of a client that was created without a transport.

    It sends over the transport that a `with default_transport(...)` block has installed. Outside of
    such a block, it sends over its own transport: the transport that was installed when this object
    was created, or else the result of `create`.
    """

    def __init__(self, create: Callable[[], Any]) -> None:
        replacement = _replacements[-1]
        self._own: Any = create() if replacement is None else replacement.for_client()
        self._last = replacement, self._own
        self.time: Any = _DefaultTime(None if replacement is None else replacement.time)

    def __repr__(self) -> str:
        return repr(self.current())

    def send(self, request: Request) -> Response[ByteStream]:
        return cast("Response[ByteStream]", self.current().send(request))

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        return cast("Response[AsyncByteStream]", await self.current().send_async(request))

    def close(self) -> None:
        for transport in {self._own, self._last[1]}:
            transport.close()

    async def close_async(self) -> None:
        for transport in {self._own, self._last[1]}:
            await transport.close_async()

    def current(self) -> Any:
        replacement, (last, transport) = _replacements[-1], self._last
        if replacement is None:
            return self._own
        if replacement is not last:
            transport = replacement.for_client()
            self._last = replacement, transport
        return transport


def _is_real(transport: object) -> bool:
    used = transport.current() if isinstance(transport, DefaultTransport) else transport
    return any(kind.__module__.startswith("flux0.adapters.") for kind in type(used).__mro__)


@Time.register
class _DefaultTime:
    """The clock of the installed default transport, or `own` if none is installed."""

    def __init__(self, own: Time | None) -> None:
        self._own = SystemTime() if own is None else own
        # A stream reads the clock for each event. `_own_monotonic` can be `time.monotonic` itself,
        # because this function is faster than the method of `SystemTime`.
        self._own_monotonic = time.monotonic if own is None else own.monotonic

    def monotonic(self) -> float:
        replacement = _replacements[-1]
        now: float = self._own_monotonic() if replacement is None else replacement.time.monotonic()
        return now

    def __getattr__(self, name: str) -> Any:
        replacement = _replacements[-1]
        return getattr(self._own if replacement is None else replacement.time, name)
