"""A sync transport in async code: the event loop keeps running, and no response stays open."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar

import anyio
import pytest
from anyio import to_thread
from attrs import define, field

from flux0 import Flux0
from flux0.domain.errors import ConnectError, ConnectionInterrupted, ReadTimeout
from flux0.domain.headers import Headers
from flux0.ports import Request, Response
from flux0.runtime.threads import ThreadedTransport, run_in_thread
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import WaitForRelease, http_response
from support.in_memory import JSON, SSE, Body, Step, in_both_loops, tape
from support.sending import Pieces
from support.transports import Mode

REQUEST = Request("GET", "http://h/api/agents", Headers())
MANY = 60  # More than the default number of worker threads of anyio (40).
TOO_LONG = 20.0  # The limit of all waits, in seconds.


def wait(event: threading.Event) -> None:
    assert event.wait(TOO_LONG), "the event was not set in time"


async def wait_in_thread(event: threading.Event) -> None:
    """Wait for an event in a thread, while the event loop keeps running."""
    await to_thread.run_sync(wait, event)


class Watched(Body):
    """A body that sets an event when it is closed."""

    def __init__(self, *steps: Step) -> None:
        self.tape = tape(*steps)
        self.closed = threading.Event()
        super().__init__(self.tape)

    def close(self) -> None:
        super().close()
        self.closed.set()


@define(eq=False)
class Library:
    """A sync transport that calls `sending` for each request."""

    body: Watched = field(factory=Watched)
    sending: Callable[[Request], object] = lambda _: None
    content: dict[str, str] = field(factory=lambda: JSON)
    closed_in: list[threading.Thread] = field(factory=list[threading.Thread])

    def send(self, request: Request) -> Response[Body]:
        self.sending(request)
        headers = Headers(tuple(self.content.items()))
        return Response(200, headers, self.body, raw_response=request, close_delimited=True)

    def close(self) -> None:
        self.closed_in.append(threading.current_thread())


class Door:
    """A callable that sets `reached`, and blocks its thread until `opened` is set."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, *_: object) -> bytes:
        self.reached.set()
        wait(self.opened)
        return b"late"


@in_both_loops
async def test_event_loop_keeps_running_while_the_transport_blocks(mode: Mode) -> None:
    sending, reading = Door(), Door()
    library = Library(Watched(b"a", reading), sending)
    transport = ThreadedTransport(library)
    read: list[bytes] = []

    async def use() -> None:
        response = await transport.send_async(REQUEST)
        read.extend([piece async for piece in Pieces(response.body)])
        await transport.close_async()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use)
        for door in (sending, reading):
            await wait_in_thread(door.reached)
            door.opened.set()  # A blocked loop would not run this line.

    assert read == [b"a", b"late"]
    assert library.closed_in != [threading.current_thread()]


@in_both_loops
async def test_function_without_a_thread_raises_the_error_of_the_caller(mode: Mode) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    for kind in (ConnectError, ConnectionInterrupted):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            with pytest.raises(kind, match="no thread could be started: can't start new thread"):
                await run_in_thread(int, kind)


@in_both_loops
async def test_transport_is_closed_although_no_thread_can_be_started(mode: Mode) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    library = Library(Watched())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        await ThreadedTransport(library).close_async()
    assert library.closed_in == [threading.current_thread()]


@in_both_loops
async def test_closing_the_body_closes_the_body_of_the_sync_transport(mode: Mode) -> None:
    library = Library()
    response = await ThreadedTransport(library).send_async(REQUEST)
    assert (mode, library.body.tape.releases) == (mode, 0)
    await response.body.close_async()
    assert library.body.tape.releases == 1


@in_both_loops
async def test_many_calls_send_and_read_at_the_same_time(mode: Mode) -> None:
    together = threading.Barrier(MANY, timeout=TOO_LONG)

    def meet(*_: object) -> bytes:
        together.wait()
        return b"x"

    async def use() -> None:
        response = await ThreadedTransport(Library(Watched(meet), meet)).send_async(REQUEST)
        assert [piece async for piece in Pieces(response.body)] == [b"x"]

    async with anyio.create_task_group() as tasks:
        for _ in range(MANY):
            tasks.start_soon(use)

    assert not together.broken


@in_both_loops
async def test_transport_sees_the_context_of_the_task_and_its_response_is_returned(
    mode: Mode,
) -> None:
    user: ContextVar[str] = ContextVar("user", default="anonymous")
    seen: list[str] = []
    user.set("ada")

    library = Library(sending=lambda _: seen.append(user.get()))
    response = await ThreadedTransport(library).send_async(REQUEST)

    assert seen == ["ada"]
    assert (response.status_code, response.headers) == (200, Headers(tuple(JSON.items())))
    assert response.raw_response == REQUEST
    assert response.close_delimited


# --- failures


@in_both_loops
async def test_errors_of_the_transport_are_raised_in_the_caller(mode: Mode) -> None:
    for failure in (ConnectError("refused"), TypeError("a bug")):

        def fail(_: Request, failure: Exception = failure) -> None:
            raise failure

        with pytest.raises(type(failure)) as caught:
            await ThreadedTransport(Library(sending=fail)).send_async(REQUEST)
        assert caught.value is failure

        body = Watched(b"a", failure)
        response = await ThreadedTransport(Library(body)).send_async(REQUEST)
        with pytest.raises(type(failure)) as caught:
            async for _ in Pieces(response.body):
                pass
        assert caught.value is failure
        assert body.tape.releases


@in_both_loops
async def test_cancelled_call_returns_at_once_and_closes_its_response(mode: Mode) -> None:
    door, woken = Door(), threading.Event()

    def send(request: Request) -> None:
        request.interrupt.on_fire(woken.set)
        door()

    library = Library(sending=send)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ThreadedTransport(library).send_async, REQUEST)
        await wait_in_thread(door.reached)
        assert not woken.is_set()
        tasks.cancel_scope.cancel()

    assert woken.is_set()
    assert not library.body.closed.is_set()
    door.opened.set()
    await wait_in_thread(library.body.closed)


@in_both_loops
async def test_response_is_closed_if_the_call_is_cancelled_before_it_gets_the_response(
    mode: Mode,
) -> None:
    door = Door()
    library = Library(sending=door)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ThreadedTransport(library).send_async, REQUEST)
        await wait_in_thread(door.reached)
        door.opened.set()
        for thread in threading.enumerate():
            if thread.name == "flux0-call":
                thread.join(TOO_LONG)  # Meanwhile, the event loop is blocked.
        assert not library.body.closed.is_set()
        tasks.cancel_scope.cancel()

    assert library.body.tape.releases == 1


@in_both_loops
async def test_cancelled_read_returns_at_once_and_closes_the_body(mode: Mode) -> None:
    reached, ended = threading.Event(), threading.Event()

    def piece() -> bytes:
        reached.set()
        wait(body.closed)  # Closing the body ends its read, as with a socket.
        ended.set()
        raise ConnectionInterrupted("closed")

    body = Watched(piece)
    response = await ThreadedTransport(Library(body)).send_async(REQUEST)

    async def read() -> None:
        await anext(Pieces(response.body))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await wait_in_thread(reached)
        tasks.cancel_scope.cancel()

    await wait_in_thread(ended)


LEAVE = """
import sys
import anyio
import flux0

async def main(url, name, path):
    client = flux0.Flux0(url, transport=getattr(flux0, name)(), timeout_ms=3_600_000)
    async with anyio.create_task_group() as tasks:
        async def call():
            if path == "send":
                await client.agents.list_async()
            else:
                stream = await client.sessions.create_event_async(session_id="s", content="Hi")
                print("started", flush=True)
                await anext(stream)
        tasks.start_soon(call)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        tasks.cancel_scope.cancel()

anyio.run(main, *sys.argv[2:], backend=sys.argv[1])
"""


@pytest.mark.parametrize(
    ("backend", "transport", "path"),
    [("asyncio", "RequestsTransport", "read"), ("trio", "Urllib3Transport", "send")],
)
def test_process_exits_while_a_thread_still_waits(backend: str, transport: str, path: str) -> None:
    """The server never responds, and the timeout is an hour."""
    steps = (
        (WaitForRelease(),)
        if path == "send"
        else http_response(WaitForRelease(), headers=SSE.items(), framing="chunked")
    )
    with (
        ByteServer(steps) as server,
        subprocess.Popen(
            [sys.executable, "-c", LEAVE, backend, server.url, transport, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        server.wait_for_requests(1)
        if path == "read":
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
        _, errors = process.communicate("leave\n", timeout=TOO_LONG)
        assert (process.returncode, errors) == (0, "")


# --- a client with a sync transport in async code


@in_both_loops
async def test_call_times_out_while_its_thread_still_waits(mode: Mode) -> None:
    door = Door()
    library = Library(sending=door)

    async with Flux0(transport=library) as flux0:
        with pytest.raises(ReadTimeout):
            await flux0.agents.list_async(timeout_ms=200)
        door.opened.set()
        await wait_in_thread(library.body.closed)
