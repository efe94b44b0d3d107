"""A synchronous transport in asynchronous code: the loop goes on, and nothing is left open."""

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
from flux0.runtime.threads import ThreadedTransport, _Sending  # pyright: ignore[reportPrivateUsage] - its races can be had only one by one
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import Hold, answer
from support.in_memory import JSON, SSE, Body, Step, in_both_loops, tape
from support.transports import Mode

REQUEST = Request("GET", "http://h/api/agents", Headers())
# More than anyio runs threads by default.
MANY = 60
TOO_LONG = 20.0


def wait(event: threading.Event) -> None:
    assert event.wait(TOO_LONG), "it never happened"


async def happens(event: threading.Event) -> None:
    """Wait for what happens in a thread, while the event loop goes on."""
    await to_thread.run_sync(wait, event)


class Watched(Body):
    """A body that says when it is closed."""

    def __init__(self, *steps: Step) -> None:
        self.tape = tape(*steps)
        self.closed = threading.Event()
        super().__init__(self.tape)

    def close(self) -> None:
        super().close()
        self.closed.set()


@define(eq=False)
class Library:
    """A transport for synchronous code alone, in whose sending things happen."""

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
    """What a thread waits before until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, *_: object) -> bytes:
        self.reached.set()
        wait(self.opened)
        return b"late"


@in_both_loops
async def test_the_event_loop_goes_on_while_a_transport_works(mode: Mode) -> None:
    sending, reading = Door(), Door()
    library = Library(Watched(b"a", reading), sending)
    transport = ThreadedTransport(library)
    read: list[bytes] = []

    async def use() -> None:
        response = await transport.send_async(REQUEST)
        read.extend([piece async for piece in response.body])
        await transport.close_async()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use)
        for door in (sending, reading):
            await happens(door.reached)
            door.opened.set()  # A loop that stands still never comes here.

    assert read == [b"a", b"late"]
    assert library.closed_in != [threading.current_thread()]


@in_both_loops
async def test_many_send_and_read_at_once(mode: Mode) -> None:
    together = threading.Barrier(MANY, timeout=TOO_LONG)

    def meet(*_: object) -> bytes:
        together.wait()
        return b"x"

    async def use() -> None:
        response = await ThreadedTransport(Library(Watched(meet), meet)).send_async(REQUEST)
        assert [piece async for piece in response.body] == [b"x"]

    async with anyio.create_task_group() as tasks:
        for _ in range(MANY):
            tasks.start_soon(use)

    assert not together.broken


@in_both_loops
async def test_a_transport_sees_the_context_of_the_task_and_its_response_is_returned(
    mode: Mode,
) -> None:
    user: ContextVar[str] = ContextVar("user", default="nobody")
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
async def test_a_failure_is_the_callers(mode: Mode) -> None:
    for failure in (ConnectError("refused"), TypeError("a bug")):

        def fail(_: Request, failure: Exception = failure) -> None:
            raise failure

        with pytest.raises(type(failure)) as caught:
            await ThreadedTransport(Library(sending=fail)).send_async(REQUEST)
        assert caught.value is failure

        body = Watched(b"a", failure)
        response = await ThreadedTransport(Library(body)).send_async(REQUEST)
        with pytest.raises(type(failure)) as caught:
            async for _ in response.body:
                pass
        assert caught.value is failure
        assert body.tape.releases


@in_both_loops
async def test_a_call_that_is_cancelled_returns_at_once_and_leaves_nothing_open(mode: Mode) -> None:
    door, woken = Door(), threading.Event()

    def send(request: Request) -> None:
        request.interrupt.on_fire(woken.set)
        door()

    library = Library(sending=send)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ThreadedTransport(library).send_async, REQUEST)
        await happens(door.reached)
        assert not woken.is_set()
        tasks.cancel_scope.cancel()

    assert woken.is_set()
    assert not library.body.closed.is_set()
    door.opened.set()
    await happens(library.body.closed)


@pytest.mark.parametrize("first", ["the answer", "nobody waits"])
def test_an_answer_that_nobody_waits_for_is_closed_once(first: str) -> None:
    library = Library()
    sending = _Sending(library, REQUEST)

    if first == "the answer":
        sending()
        assert not library.body.tape.releases
        sending.abandon()
    else:
        sending.abandon()
        sending()

    assert library.body.tape.releases == 1


@in_both_loops
async def test_a_read_that_is_cancelled_returns_at_once_and_closes_the_body(mode: Mode) -> None:
    reached, ended = threading.Event(), threading.Event()

    def piece() -> bytes:
        reached.set()
        wait(body.closed)  # As a socket's read ends when the socket is shut down.
        ended.set()
        raise ConnectionInterrupted("closed")

    body = Watched(piece)
    response = await ThreadedTransport(Library(body)).send_async(REQUEST)

    async def read() -> None:
        await anext(aiter(response.body))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await happens(reached)
        tasks.cancel_scope.cancel()

    await happens(ended)


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
                print("begun", flush=True)
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
def test_a_process_ends_though_a_thread_may_still_wait(
    backend: str, transport: str, path: str
) -> None:
    """The server never answers, and the timeout is an hour."""
    silent = (Hold(),) if path == "send" else answer(Hold(), headers=SSE.items(), framing="chunked")
    with (
        ByteServer(silent) as server,
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
            assert process.stdout.readline() == "begun\n"
        _, complaints = process.communicate("leave\n", timeout=TOO_LONG)
        assert (process.returncode, complaints) == (0, "")


# --- over a client


@in_both_loops
async def test_a_call_that_takes_too_long_is_over_though_its_thread_is_not(mode: Mode) -> None:
    door = Door()
    library = Library(sending=door)

    async with Flux0(transport=library) as flux0:
        with pytest.raises(ReadTimeout):
            await flux0.agents.list_async(timeout_ms=200)
        door.opened.set()
        await happens(library.body.closed)
