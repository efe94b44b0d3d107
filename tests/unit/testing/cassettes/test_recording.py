"""Recording: the program notices nothing, and the cassette lacks nothing but credentials."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import anyio
import pytest

from flux0 import (
    AiohttpTransport,
    ChunkEvent,
    Flux0,
    HttpxTransport,
    RequestsTransport,
    StreamIdleTimeout,
    StreamInterrupted,
)
from flux0.cli.demo_agent import demo_transport
from flux0.domain.errors import ConnectError, ReadTimeout, TransportError
from flux0.models import APIError, Flux0Error
from flux0.testing import (
    FakeTransport,
    Fault,
    Pause,
    RecordingTransport,
    Refuse,
    ReplayTransport,
    Report,
    Respond,
    Say,
    Split,
    Stall,
    Truncate,
)
from flux0.testing.cassettes.cassette import CLOSED, WHOLE, Content, RecordedExchange, read_cassette
from support.cassettes import ONCE, record, talk
from support.cost import calls_made
from support.fake_over_http import FakeOverHTTP
from support.fakes import message_to, new_session, request
from support.in_memory import Script, chunk, response_from, script, scripted_response, tape
from support.modes import in_mode, run
from support.server import free_port
from support.transports import ASYNC, SYNC, Mode

modes = pytest.mark.parametrize("mode", SYNC + ASYNC)
loops = pytest.mark.parametrize("mode", ASYNC)


def ways(path: Path) -> list[str]:
    """Return how each exchange of a cassette ended."""
    return [exchange.end for exchange in read_cassette(path)]


def recorded(path: Path, position: int = -1) -> Any:
    """Return the pieces of a recorded body."""
    response = read_cassette(path)[position].response
    assert response is not None
    return [piece.data for piece in response.pieces]


def awaitable(function: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    """Return a function that does not block as asynchronous code calls it."""

    async def call() -> None:
        function()

    return call


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "cassette.json"


# --- over real sockets


@modes
def test_a_program_notices_nothing(mode: Mode, path: Path) -> None:
    async def without() -> None:
        async with in_mode(mode, Flux0(server.url)) as flux0:
            came.append(await talk(flux0))

    async def with_recording() -> None:
        came.append(await record(mode, server.url, path))

    came: list[Any] = []
    for program in (without, with_recording):
        with FakeOverHTTP(demo_transport()) as server:  # Each of which says the very same.
            run(mode, program)
    assert came[0] == came[1]
    assert len(came[0][2]) > 10
    assert ways(path) == [WHOLE] * 5
    agents, _, turn, listed, missing = read_cassette(path)
    assert agents.request.path == "/api/agents"
    assert turn.request.path.endswith("/events/stream")
    assert (listed.request.query, listed.request.body) == (
        "types=message",
        Content(json=["message"]),
    )
    assert missing.response is not None
    assert missing.response.status_code == 404
    assert len(recorded(path, 2)) > 1  # In pieces, as they came.
    assert len(recorded(path, 3)) == 1


@modes
def test_failures_are_recorded_with_what_came_before_them(mode: Mode, path: Path) -> None:
    fake = FakeTransport([Say("Hello there", pieces=5)])
    session_id = new_session(fake)

    async def test() -> None:
        nowhere = f"http://127.0.0.1:{free_port()}"
        transport = RecordingTransport(HttpxTransport(), path)
        options: dict[str, Any] = {"transport": transport, "retry_config": ONCE}
        async with in_mode(mode, Flux0(server.url, **options)) as flux0:

            async def read_turn(events: int, **options: Any) -> None:
                async with await flux0.sessions.create_event_async(
                    session_id=session_id, content="Hi", **options
                ) as stream:
                    for _ in range(events):
                        await anext(stream)

            with pytest.raises(ConnectError):
                await flux0.agents.list_async(server_url=nowhere)
            for fault, error in (
                (Respond(500, body=b"<html>"), APIError),
                (Truncate(after_events=2), StreamInterrupted),
                (Stall(after_events=2), StreamIdleTimeout),
            ):
                fake.inject(fault)
                with pytest.raises(error):
                    await read_turn(9, stream_idle_timeout_ms=50)
            await read_turn(1)

    with FakeOverHTTP(fake) as server:
        run(mode, test)
    refused, failed, broken, silent, left = read_cassette(path)
    assert (refused.response, refused.end) == (None, "ConnectError")
    assert failed.response is not None
    assert (failed.response.status_code, failed.end) == (500, WHOLE)
    assert broken.end in {"ConnectionInterrupted", "ProtocolError"}
    assert silent.end == "ReadTimeout"
    assert silent.after >= 0.05
    for position in (2, 3):
        assert b"".join(recorded(path, position)).count(b"event: chunk") == 2
    assert left.end == CLOSED
    assert b"event: chunk" in recorded(path)[0]


@modes
def test_no_secret_is_in_the_file(mode: Mode, path: Path) -> None:
    fake = FakeTransport()
    fake.inject(
        Respond(
            503,
            headers={
                "set-cookie": "token=TOPSECRET",
                "location": "http://u:TOPSECRET@h/",
                "x-new": "TOPSECRET",
                "x-request-id": "shown",
            },
        )
    )
    secrets = {
        "authorization": "Bearer TOPSECRET",
        "cookie": "flux0_user_sub=TOPSECRET",
        "X-API-Key": "TOPSECRET",
        "proxy-authorization": "TOPSECRET",
    }

    async def test() -> None:
        url = server.url.replace("http://", "http://TOPSECRET:TOPSECRET@")
        transport = RecordingTransport(HttpxTransport(), path)
        async with in_mode(
            mode,
            Flux0(
                url,
                transport=transport,
                retry_config=ONCE,
                headers={"x-token": lambda: "TOPSECRET"},
            ),
        ) as flux0:
            with pytest.raises(APIError):
                await flux0.agents.list_async(http_headers=secrets)
            await flux0.agents.list_async(http_headers=secrets)
            with pytest.raises(ConnectError):
                await flux0.agents.list_async(
                    server_url=f"http://TOPSECRET@127.0.0.1:{free_port()}", http_headers=secrets
                )

    with FakeOverHTTP(fake) as server:
        run(mode, test)
    assert fake.calls[-1].headers["X-API-Key"] == "TOPSECRET"
    text = path.read_text("utf-8")
    assert "TOPSECRET" not in text
    assert "127.0.0.1" not in text
    assert '"x-request-id": "shown"' in text
    for name in [*secrets, "x-token", "set-cookie", "location", "x-new"]:
        assert f'"{name.lower()}": "***"' in text


@pytest.mark.parametrize("sizes", [(1,), (7, 1000), (10_000,)])
def test_texts_are_left_out_of_bodies_and_queries(path: Path, sizes: tuple[int, ...]) -> None:
    def scrub(text: str) -> str:
        return re.sub(r"\bsécret-\d+", "***", text)

    def program(transport: Any, secret: str) -> Any:
        with Flux0(transport=transport) as flux0:
            session = flux0.sessions.create(agent_id=fake.agent_id, title=f"About {secret}")
            stream = flux0.sessions.create_event(session_id=session.id, content=f"My {secret}")
            flux0.sessions.list_events(session_id=session.id, correlation_id=secret)
            return session.title, "".join(stream.text())

    fake = FakeTransport(lambda message: [Say(f"You said: {message.content}")])
    fake.inject(Split(sizes), times=3)
    recording = RecordingTransport(fake, path, scrub=scrub)
    assert program(recording, "sécret-1") == ("About sécret-1", "You said: My sécret-1")
    for body in ("I know sécret-1\nwell".encode(), b"\xff", "data: sécret-1".encode()):
        fake.inject(Respond(418, body=body))
    for _ in range(3):
        list(recording.send(request("GET", "/x")).body)
    text = path.read_text("utf-8")
    assert "cret-1" not in text
    assert "I know ***" in text
    replay = ReplayTransport(path, scrub=scrub)
    assert program(replay, "sécret-2") == ("About ***", "You said: My ***")


# --- what it can do is what the other transport can do


def can(transport: object) -> list[bool]:
    return [
        hasattr(transport, method) and getattr(transport, kind, True)
        for kind, method in (("serves_sync", "send"), ("serves_async", "send_async"))
    ]


@pytest.mark.parametrize(
    "kind", [HttpxTransport, AiohttpTransport, RequestsTransport, FakeTransport]
)
def test_it_can_do_what_the_other_transport_can(path: Path, kind: Callable[[], Any]) -> None:
    transport = kind()
    assert can(RecordingTransport(transport, path)) == can(transport)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("asyncio", RequestsTransport), ("trio", RequestsTransport), ("asyncio", AiohttpTransport)],
)
def test_any_transport_serves_asynchronous_code(
    mode: Mode, kind: Callable[[], Any], path: Path
) -> None:
    async def test() -> None:
        async with Flux0(server.url, transport=RecordingTransport(kind(), path)) as flux0:
            assert len(await flux0.agents.list_async()) == 1

    with FakeOverHTTP(FakeTransport()) as server:
        run(mode, test)
    assert ways(path) == [WHOLE]


@modes
def test_time_that_is_not_real_is_recorded_and_kept(mode: Mode, path: Path) -> None:
    async def test() -> None:
        transport = RecordingTransport(fake, path)
        async with in_mode(mode, Flux0(transport=transport)) as flux0:
            before = fake.clock.now()
            await flux0.agents.list_async()
            assert fake.clock.now() - before == 7
            async for _ in await flux0.sessions.create_event_async(
                session_id=session_id, content="Hi"
            ):
                pass

    fake = FakeTransport([Report("typing"), Pause(5), Say("Hello"), Pause(0.25)])
    session_id = new_session(fake)
    fake.inject(Respond(429, retry_after=7))
    run(mode, test)
    turn = read_cassette(path)[-1]
    assert turn.response is not None
    assert [piece.after for piece in turn.response.pieces] == [0, 5]
    assert (turn.end, turn.after) == (WHOLE, 5.25)


# --- when it is written


def test_an_exchange_is_in_the_file_as_soon_as_it_has_ended(path: Path) -> None:
    fake = FakeTransport()
    session_id = new_session(fake)
    transport = RecordingTransport(fake, path)
    body = iter(transport.send(request("GET", "/api/agents")).body)
    next(body)
    assert not path.exists()
    assert next(body, None) is None
    assert ways(path) == [WHOLE]
    assert next(body, None) is None
    fake.inject(Refuse())
    with pytest.raises(ConnectError):
        transport.send(request("GET", "/api/agents"))
    assert ways(path) == [WHOLE, "ConnectError"]
    streaming = transport.send(message_to(session_id)).body
    transport.send(request("GET", "/api/agents")).body.close()
    assert ways(path) == [WHOLE, "ConnectError", CLOSED]
    list(streaming)
    assert ways(path) == [WHOLE, "ConnectError", WHOLE, CLOSED]  # As they were sent.
    transport.close()
    assert ways(path) == [WHOLE, "ConnectError", WHOLE, CLOSED]


def test_nothing_is_kept_or_written_again_of_what_has_ended(path: Path) -> None:
    transport = RecordingTransport(script(scripted_response(b"of this test")), path)
    body = transport.send(request("GET", "/")).body
    assert list(body) == [b"of this test"]
    gc.collect()
    things: list[Any] = gc.get_objects()
    pieces: list[Any] = [thing for thing in things if type(thing) is tuple]
    assert b"of this test" not in [piece[1] for piece in pieces if len(piece) == 2]
    path.unlink()
    body.close()
    transport.close()
    assert not path.exists()


def test_a_new_recording_takes_the_place_of_the_old_one_when_it_is_closed(path: Path) -> None:
    fake = FakeTransport()
    RecordingTransport(fake, path).close()
    assert not path.exists()
    for agents in (1, 2):
        transport = RecordingTransport(fake, path)
        for _ in range(agents):
            Flux0(transport=transport).agents.list()
            assert ways(path) == [WHOLE]
        transport.close()
    assert ways(path) == [WHOLE, WHOLE]
    Flux0(transport=transport).agents.list()  # It goes on after its close.
    assert ways(path) == [WHOLE, WHOLE, WHOLE]
    RecordingTransport(fake, path).close()
    assert ways(path) == [WHOLE, WHOLE, WHOLE], "a recording of nothing destroys a cassette"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "fault", [Refuse(), Respond(503), Respond(500), Truncate(after_bytes=3), Stall(after_bytes=3)]
)
def test_a_recording_that_fails_destroys_no_cassette(path: Path, fault: Fault) -> None:
    fake = FakeTransport()
    with Flux0(transport=RecordingTransport(fake, path)) as flux0:
        flux0.agents.list()
    good = path.read_bytes()
    fake.inject(fault)
    flux0 = Flux0(transport=RecordingTransport(fake, path), retry_config=ONCE)
    with pytest.raises(Flux0Error):
        flux0.agents.list()
    flux0.agents.list()
    with pytest.warns(UserWarning, match=r"stays as it was.*To record failures, delete"):
        flux0.close()
    assert path.read_bytes() == good
    assert len(ways(path.with_name(f"{path.name}.new"))) == 2


@modes
def test_what_is_open_at_the_close_counts_as_left_there(mode: Mode, path: Path) -> None:
    class Failing(Script):
        def close(self) -> None:
            super().close()
            raise OSError("cannot")

        async def close_async(self) -> None:
            self.close()

    async def test() -> None:
        failing = Failing([scripted_response(b"one", b"two")])
        transport = RecordingTransport(failing, path)
        pieces = iter(transport.send(request("GET", "/")).body)
        next(pieces)
        close = awaitable(transport.close) if mode == "sync" else transport.close_async
        with pytest.raises(OSError, match="cannot"):
            await close()
        assert failing.closes == 1
        assert (ways(path), recorded(path)) == ([CLOSED], [b"one"])
        assert list(pieces) == [b"two"]
        assert (ways(path), recorded(path)) == ([CLOSED], [b"one"])

    run(mode, test)


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        RecordingTransport(FakeTransport(), tmp_path / "file" / "folder" / "c.json")


@modes
def test_a_body_is_released_though_the_file_cannot_be_written(mode: Mode, tmp_path: Path) -> None:
    async def test() -> None:
        reel = tape(b"one")
        transport = RecordingTransport(script(response_from(reel)), tmp_path / mode / "c.json")
        (tmp_path / mode).rmdir()
        if mode == "sync":
            close = awaitable(transport.send(request("GET", "/")).body.close)
        else:
            close = (await transport.send_async(request("GET", "/"))).body.close_async
        with pytest.raises(OSError, match=tmp_path.name):
            await close()
        assert reel.releases

    run(mode, test)


# --- how exchanges end


class OwnTimeout(ReadTimeout):
    """An error of a transport that a user wrote: it goes by the name of its kind."""


@modes
@pytest.mark.parametrize(
    ("error", "end"), [(OwnTimeout, "ReadTimeout"), (TransportError, "TransportError")]
)
def test_an_error_ends_an_exchange_and_closing_it_then_changes_nothing(
    mode: Mode, error: type[TransportError], end: str, path: Path
) -> None:
    async def test() -> None:
        transport = RecordingTransport(
            script(error("early"), scripted_response(b"one", error("late"))), path
        )
        if mode == "sync":
            with pytest.raises(error, match="early"):
                transport.send(request("GET", "/"))
            body = transport.send(request("GET", "/")).body
            with pytest.raises(error, match="late"):
                list(body)
            body.close()
        else:
            with pytest.raises(error, match="early"):
                await transport.send_async(request("GET", "/"))
            async_body = (await transport.send_async(request("GET", "/"))).body
            with pytest.raises(error, match="late"):
                [piece async for piece in async_body]
            await async_body.close_async()

    run(mode, test)
    assert (ways(path), recorded(path)) == ([end, end], [b"one"])


@loops
def test_a_cancelled_call_counts_as_left(mode: Mode, path: Path) -> None:
    async def test() -> None:
        transport = RecordingTransport(
            script(scripted_response(b"one"), scripted_response(b"one")), path
        )
        with anyio.CancelScope() as scope:
            scope.cancel()
            await transport.send_async(request("GET", "/"))
        held = await transport.send_async(request("GET", "/"))
        pieces = aiter(held.body)
        await anext(pieces)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anext(pieces)
        await held.body.close_async()

    run(mode, test)
    cancelled, left = read_cassette(path)
    assert (cancelled.response, cancelled.end) == (None, CLOSED)
    assert left.response is not None
    assert (left.end, recorded(path)) == (CLOSED, [b"one"])


@loops
def test_leaving_an_asynchronous_loop_releases_the_connection(mode: Mode, path: Path) -> None:
    async def test() -> None:
        fake = FakeTransport([Say("Hello", pieces=5)])
        async with Flux0(transport=RecordingTransport(fake, path)) as flux0:
            session = await flux0.sessions.create_async(agent_id=fake.agent_id)
            async for event in await flux0.sessions.create_event_async(
                session_id=session.id, content="Hi"
            ):
                assert isinstance(event, ChunkEvent)
                break
            gc.collect()
            fake.assert_no_open_streams()

    run(mode, test)
    assert ways(path) == [WHOLE, CLOSED]
    assert len(recorded(path)) == 1


# --- many at once


def test_many_threads_share_a_recording(path: Path) -> None:
    fake = FakeTransport([Say("Hello there", pieces=11)])
    barrier = Barrier(8)

    def one_turn(number: int) -> list[bytes]:
        session_id = new_session(fake)
        barrier.wait()
        return list(transport.send(message_to(session_id, str(number))).body)

    transport = RecordingTransport(fake, path)
    with ThreadPoolExecutor(8) as threads:
        bodies = list(threads.map(one_turn, range(8)))
    assert ways(path) == [WHOLE] * 8
    by_content = {content(one): recorded(path, at) for at, one in enumerate(read_cassette(path))}
    assert by_content == {str(number): body for number, body in enumerate(bodies)}


def content(exchange: RecordedExchange) -> Any:
    assert exchange.request.body is not None
    return json.loads(exchange.request.body.data)["content"]


@loops
def test_streams_that_are_read_in_turns_keep_their_pieces_apart(mode: Mode, path: Path) -> None:
    async def test() -> None:
        answers = (scripted_response(*(chunk(f"{name}{n}") for n in range(3))) for name in "abc")
        transport = RecordingTransport(script(*answers), path)
        sent = [await transport.send_async(request("GET", f"/{n}")) for n in range(3)]
        bodies = [aiter(one.body) for one in sent]
        for _ in range(4):
            for body in reversed(bodies):
                await anext(body, None)

    run(mode, test)
    assert [one.request.path for one in read_cassette(path)] == ["/0", "/1", "/2"]
    for position, name in enumerate("abc"):
        assert recorded(path, position) == [b"".join(chunk(f"{name}{n}") for n in range(3))]


# --- cost


def test_the_cost_of_a_turn_is_linear(path: Path) -> None:
    def cost(events: int) -> int:
        fake = FakeTransport([Say("x" * events, pieces=events)])
        turn = message_to(new_session(fake))
        transport = RecordingTransport(fake, path.with_name(str(events)))
        return calls_made(lambda: list(transport.send(turn).body))

    assert cost(10_000) < 10.5 * cost(1000)
    assert len(recorded(path.with_name("10000"))) == 10_000
