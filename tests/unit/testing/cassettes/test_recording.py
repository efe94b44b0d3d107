"""Recording changes nothing for the program, and omits nothing except credentials."""

from __future__ import annotations

import gc
import json
import re
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import anyio
import httpx
import pytest
from attrs import evolve

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
from flux0.domain.errors import ConnectError, ConnectionInterrupted, ReadTimeout, TransportError
from flux0.models import APIError, Flux0Error, InvalidArgument
from flux0.testing import (
    CallTool,
    CassetteError,
    Delay,
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
from flux0.testing.cassettes.scrubbing import scrub_body, scrub_query
from support.cassettes import ONCE, loops, modes, record, use_client, without_root
from support.cost import calls_made
from support.fake_over_http import FakeOverHTTP
from support.fakes import message_to, new_session, request
from support.in_memory import SSE, Script, chunk, response_from, script, scripted_response, tape
from support.modes import in_mode, run
from support.ports import reserved_port
from support.sending import Pieces
from support.transports import Mode


def ends(path: Path) -> list[str]:
    """Return the `end` of each exchange of a cassette."""
    return [exchange.end for exchange in read_cassette(path)]


def recorded_pieces(path: Path, position: int = -1) -> Any:
    """Return the pieces of a recorded body."""
    response = read_cassette(path)[position].response
    assert response is not None
    return [piece.data for piece in response.pieces]


def test_times_of_a_body_are_seconds_after_the_response_head(path: Path) -> None:
    fake = FakeTransport([Report("typing"), Pause(2), Say("Hi"), Pause(4)])
    fake.inject(Delay(1 / 3), operation="sessions.create_event")
    turn = message_to(new_session(fake))
    list(Pieces(RecordingTransport(fake, path).send(turn).body))
    (exchange,) = read_cassette(path)
    assert exchange.response is not None
    times = exchange.response.after, [piece.after for piece in exchange.response.pieces]
    assert (*times, exchange.after) == (0.333333, [0, 1.666667], 5.666667)


def awaitable(function: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    """Return a sync function as an async function."""

    async def call() -> None:
        function()

    return call


HTML = {"content-type": "text/html"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "cassette.json"


# --- over real sockets


@modes
def test_recording_does_not_change_results(mode: Mode, path: Path) -> None:
    async def without() -> None:
        async with in_mode(mode, Flux0(server.url)) as flux0:
            results.append(await use_client(flux0))

    async def with_recording() -> None:
        results.append(await record(mode, server.url, path))

    results: list[Any] = []
    for program in (without, with_recording):
        with FakeOverHTTP(demo_transport()) as server:  # Both programs get the same responses.
            run(mode, program)
    assert results[0] == results[1]
    assert len(results[0][2]) > 10
    assert ends(path) == [WHOLE] * 5
    agents, _, turn, listed, missing = read_cassette(path)
    assert agents.request.path == "/api/agents"
    assert turn.request.path.endswith("/events/stream")
    assert (listed.request.query, listed.request.body) == (
        "types=message",
        Content(json=["message"]),
    )
    assert missing.response is not None
    assert missing.response.status_code == 404
    # How many pieces are received depends on the server's speed.
    assert b"".join(recorded_pieces(path, 2)).count(b"event: ") == len(results[0][2])
    assert len(recorded_pieces(path, 3)) == 1


@modes
def test_failed_exchanges_are_recorded_with_the_received_pieces(mode: Mode, path: Path) -> None:
    fake = FakeTransport([Say("Hello there", pieces=5)])
    session_id = new_session(fake)

    async def test() -> None:
        transport = RecordingTransport(fake, path)
        async with in_mode(mode, Flux0(transport=transport, retry_config=ONCE)) as flux0:

            async def read_turn(events: int) -> None:
                async with await flux0.sessions.create_event_async(
                    session_id=session_id, content="Hi"
                ) as stream:
                    for _ in range(events):
                        await anext(stream)

            for fault, error in (
                (Refuse(), ConnectError),
                (Respond(500, body=b"<html>"), APIError),
                (Truncate(after_events=2), StreamInterrupted),
                (Stall(after_events=2), StreamIdleTimeout),
            ):
                fake.inject(fault)
                with pytest.raises(error):
                    await read_turn(9)
            await read_turn(1)

    run(mode, test)
    refused, failed, broken, silent, left = read_cassette(path)
    assert (refused.response, refused.end) == (None, "ConnectError")
    assert failed.response is not None
    assert (failed.response.status_code, failed.end) == (500, WHOLE)
    assert broken.end == "ConnectionInterrupted"
    assert silent.end == "ReadTimeout"
    assert silent.after == 600
    for position in (2, 3):
        assert b"".join(recorded_pieces(path, position)).count(b"event: chunk") == 2
    assert left.end == CLOSED
    assert b"event: chunk" in recorded_pieces(path)[0]


@modes
def test_cassette_contains_no_credentials(mode: Mode, path: Path) -> None:
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
                    server_url=f"http://TOPSECRET@127.0.0.1:{reserved_port()}", http_headers=secrets
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
def test_scrub_replaces_strings_in_bodies_and_queries(path: Path, sizes: tuple[int, ...]) -> None:
    def scrub(text: str) -> str:
        return re.sub(r"\bsécret-\d+", "***", text)

    def program(transport: Any, secret: str) -> Any:
        with Flux0(transport=transport) as flux0:
            session = flux0.sessions.create(agent_id=fake.agent_id, title=f"Über {secret}")
            stream = flux0.sessions.create_event(session_id=session.id, content=f"My {secret}")
            flux0.sessions.list_events(session_id=session.id, correlation_id=secret)
            return session.title, "".join(stream.text())

    fake = FakeTransport(lambda message: [Say(f"You said: {message.content}")])
    fake.inject(Split(sizes), times=3)
    recording = RecordingTransport(fake, path, scrub=scrub)
    assert program(recording, "sécret-1") == ("Über sécret-1", "You said: My sécret-1")
    for body in ("I know sécret-1\nwell".encode(), b"\xff", "data: sécret-1".encode()):
        fake.inject(Respond(418, body=body))
    for _ in range(3):
        list(Pieces(recording.send(request("GET", "/x")).body))
    text = path.read_text("utf-8")
    assert "cret-1" not in text
    assert "I know ***" in text
    assert text.count('"title": "Über ***"') == 2  # Both bodies are stored as JSON.
    replay = ReplayTransport(path, scrub=scrub)
    assert program(replay, "sécret-2") == ("Über ***", "You said: My ***")


def test_scrub_replaces_secrets_in_paths(path: Path) -> None:
    def scrub(text: str) -> str:
        return re.sub(r"sécret-\d+", "***", text)

    def program(transport: Any, secret: str) -> int:
        response = transport.send(request("GET", f"/a%2fb/{secret}%20x/c"))
        list(Pieces(response.body))
        return int(response.status_code)

    recording = RecordingTransport(FakeTransport(), path, scrub=scrub)
    assert program(recording, "s%C3%A9cret-1") == 404
    (exchange,) = read_cassette(path)
    assert exchange.request.path == "/a%2fb/***%20x/c"
    assert program(ReplayTransport(path, scrub=scrub), "s%c3%a9cret-2") == 404


def test_scrub_replaces_secrets_in_bodies_that_are_not_utf8(path: Path) -> None:
    fake = FakeTransport()
    fake.inject(
        Respond(418, body="\xff sécret\xfe".encode("latin-1").replace(b"\xe9", b"\xc3\xa9"))
    )
    transport = RecordingTransport(
        fake, path, scrub=lambda text: text.replace("sécret", "***").replace("hidden", "***")
    )
    sent = evolve(request("POST", "/x"), body=b"\xff hidden")
    list(Pieces(transport.send(sent).body))
    assert recorded_pieces(path) == [b"\xff ***\xfe"]
    recorded = read_cassette(path)[0].request.body
    assert recorded is not None
    assert recorded.data == b"\xff ***"


@pytest.mark.parametrize("pieces", [1, 2, 5, 19])
def test_scrub_replaces_secrets_that_are_split_between_events(path: Path, pieces: int) -> None:
    def program(transport: Any) -> tuple[str, Any]:
        with Flux0(transport=transport) as flux0:
            session = flux0.sessions.create(agent_id=fake.agent_id)
            stream = flux0.sessions.create_event(session_id=session.id, content="Hi")
            events = list(stream)
            (call,) = stream.tool_calls
            text = "".join(message.text for message in stream.messages)
            assert len(events) == pieces + 3
            return text, call.args

    fake = FakeTransport(
        [Say("It is sécret-123, ok?", pieces=pieces), CallTool("t", {"key": "secret-4"})]
    )
    recording = RecordingTransport(
        fake, path, scrub=lambda text: re.sub(r"s.cret-\d+", "***", text)
    )
    assert program(recording) == ("It is sécret-123, ok?", {"key": "secret-4"})
    assert program(ReplayTransport(path)) == ("It is ***, ok?", {"key": "***"})
    added = re.findall(r'\\"value\\": \\"(.*?)\\"', path.read_text("utf-8"))
    assert "It is ***, ok?" in "".join(added)


@pytest.mark.parametrize("ending", ["interrupted", "unconfirmed", "closed"])
def test_incomplete_event_is_not_recorded_with_scrub(path: Path, ending: str) -> None:
    secret = 'caf\u00e9-"Zq"\\x'
    fake = FakeTransport([Say(f"My {secret}", pieces=2)])
    turn = message_to(new_session(fake))
    first, second = Pieces(fake.send(turn).body)
    for cut in (*range(1, len(first + second), 9), len(first) - 1, len(first), len(first) + 1):
        if ending != "closed":
            fake.inject(Truncate(after_bytes=cut, clean=ending == "unconfirmed"))
        else:
            fake.inject(Split((cut, 1000)))
        transport = RecordingTransport(fake, path, scrub=lambda text: text.replace(secret, "***"))
        body = transport.send(turn).body
        with suppress(ConnectionInterrupted):
            read = body.read(None)
            if ending != "closed":
                while read:
                    read = body.read(None)
        body.close()
        transport.close()
        assert len(b"".join(recorded_pieces(path))) == (len(first) if cut >= len(first) else 0)
        assert "Zq" not in path.read_text("utf-8")
        path.unlink()


def test_incomplete_json_is_not_recorded_with_scrub(path: Path) -> None:
    """It may end with a part of a secret."""
    fake = FakeTransport(agent_name="TOPSECRET")
    fake.inject(Truncate(after_bytes=50))
    body = RecordingTransport(fake, path, scrub=str.lower).send(request("GET", "/api/agents")).body
    with pytest.raises(ConnectionInterrupted):
        list(Pieces(body))
    assert (ends(path), recorded_pieces(path)) == (["ConnectionInterrupted"], [])


def test_event_with_other_line_breaks_is_recorded_with_scrub(path: Path) -> None:
    events = [b"data: 1\r\n\r\ndata: se", b"cret\r\n\r\n", b"data: sec"]
    sent = script(scripted_response(*events, headers=SSE), scripted_response(b"<p>x", headers=HTML))
    transport = RecordingTransport(sent, path, scrub=lambda text: text.replace("secret", "***"))
    for _ in range(2):
        list(Pieces(transport.send(request("GET", "/")).body))
    assert recorded_pieces(path, 0) == [b"data: 1\r\n\r\ndata: ***\r\n\r\n"]
    assert recorded_pieces(path, 1) == [b"<p>x"]


def test_scrub_that_returns_no_string_is_an_error(path: Path) -> None:
    def scrub(text: str) -> Any:
        return None if text == "agents" else text

    with (
        Flux0(transport=RecordingTransport(FakeTransport(), path, scrub=scrub)) as flux0,
        pytest.raises(InvalidArgument, match=r"scrub must return a str, but <.*> returned None"),
    ):
        flux0.agents.list()
    RecordingTransport(FakeTransport(), path).send(request("GET", "/api/agents")).body.close()
    with (
        Flux0(transport=ReplayTransport(path, scrub=scrub)) as flux0,
        pytest.raises(InvalidArgument, match="scrub must return a str"),
    ):
        flux0.agents.list()


def test_scrub_keeps_the_pieces_of_text_without_split_secrets() -> None:
    def scrubbed(*texts: str) -> list[str]:
        pieces = [chunk(text) for text in texts]
        return [
            json.loads(piece.split(b"data: ")[1])["patches"][0]["value"]
            for piece in scrub_body(pieces, lambda text: re.sub(r"key-\d", "***", text))
        ]

    assert scrubbed("key-1 ", "and ", "key-2") == ["*** ", "and ", "***"]
    assert scrubbed("so ", "key", "-1", " and", " so") == ["so *** and so", "", "", "", ""]


def test_scrub_replaces_split_secrets_in_events_that_also_have_patches_without_a_value() -> None:
    remove, *added = (
        {"op": "remove", "path": "/0"},
        *({"op": "add", "path": "/-", "value": text} for text in ("key", "-1")),
    )
    events = [{"event_id": "m", "patches": [remove, patch]} for patch in added]
    pieces = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    first, second = scrub_body(pieces, lambda text: text.replace("key-1", "***"))
    assert (b'"***"' in first, b'"-1"' in second) == (True, False)


def test_scrub_joins_only_the_texts_at_one_path_of_one_message() -> None:
    texts = [("m1", "/-", "ke"), ("m2", "/-", "x"), ("m1", "/a/-", "x"), ("m1", "/-", "y-1")]
    pieces: list[bytes] = []
    for event_id, path, text in texts:
        patch = {"op": "add", "path": path, "value": text}
        event = {"event_id": event_id, "patches": [patch]}
        pieces.append(f"data: {json.dumps(event)}\n\n".encode())
    scrubbed = scrub_body(pieces, lambda text: text.replace("key-1", "***"))
    values = [json.loads(piece.split(b"data: ")[1])["patches"][0]["value"] for piece in scrubbed]
    assert values == ["***", "x", "x", ""]


def test_names_of_members_are_not_scrubbed() -> None:
    assert scrub_body([b'{"key" : "a", "b":["c"]}'], str.upper) == [b'{"key" : "A", "b":["C"]}']


@pytest.mark.parametrize("data", ['{"patches": ["key-1', '{"patches": "key-1"}', '"patches key-1"'])
def test_scrub_replaces_secrets_in_chunks_of_an_unknown_form(data: str) -> None:
    event = f"event: chunk\ndata: {data}\n\n".encode()
    (scrubbed,) = scrub_body([event], lambda text: text.replace("key-1", "***"))
    assert scrubbed == event.replace(b"key-1", b"***")


# --- sync and async transports


def can(transport: object) -> list[bool]:
    return [
        hasattr(transport, method) and getattr(transport, kind, True)
        for kind, method in (("serves_sync", "send"), ("serves_async", "send_async"))
    ]


@pytest.mark.parametrize(
    "kind",
    [
        *(HttpxTransport, AiohttpTransport, RequestsTransport, FakeTransport),
        lambda: HttpxTransport(httpx.Client()),
        lambda: HttpxTransport(async_client=httpx.AsyncClient()),
    ],
)
def test_recording_transport_serves_the_same_calls_as_the_other(
    path: Path, kind: Callable[[], Any]
) -> None:
    transport = kind()
    assert can(RecordingTransport(transport, path)) == can(transport)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("asyncio", RequestsTransport), ("trio", RequestsTransport), ("asyncio", AiohttpTransport)],
)
def test_async_calls_are_recorded_over_any_transport(
    mode: Mode, kind: Callable[[], Any], path: Path
) -> None:
    async def test() -> None:
        async with Flux0(server.url, transport=RecordingTransport(kind(), path)) as flux0:
            assert len(await flux0.agents.list_async()) == 1

    with FakeOverHTTP(FakeTransport()) as server:
        run(mode, test)
    assert ends(path) == [WHOLE]


@modes
def test_times_of_a_fake_clock_are_recorded(mode: Mode, path: Path) -> None:
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


# --- writing the file


def test_exchange_is_written_when_it_ends(path: Path) -> None:
    fake = FakeTransport()
    session_id = new_session(fake)
    transport = RecordingTransport(fake, path)
    body = Pieces(transport.send(request("GET", "/api/agents")).body)
    next(body)
    assert not path.exists()
    assert next(body, None) is None
    assert ends(path) == [WHOLE]
    assert next(body, None) is None
    fake.inject(Refuse())
    with pytest.raises(ConnectError):
        transport.send(request("GET", "/api/agents"))
    assert ends(path) == [WHOLE, "ConnectError"]
    streaming = transport.send(message_to(session_id)).body
    transport.send(request("GET", "/api/agents")).body.close()
    assert ends(path) == [WHOLE, "ConnectError", CLOSED]
    list(Pieces(streaming))
    assert ends(path) == [
        WHOLE,
        "ConnectError",
        WHOLE,
        CLOSED,
    ]  # Exchanges are in the order of sending.
    transport.close()
    assert ends(path) == [WHOLE, "ConnectError", WHOLE, CLOSED]


def test_recording_continues_the_numbers_of_the_exchanges_that_it_keeps(path: Path) -> None:
    for number in (1, 2):
        kept = [evolve(each, number=7) for each in read_cassette(path)] if number == 2 else []
        transport = RecordingTransport(FakeTransport(), path, keep=kept)
        transport.send(request("GET", "/api/agents")).body.close()
        transport.close()
    assert [each.number for each in read_cassette(path)] == [7, 8]


def test_empty_json_body_is_recorded(path: Path) -> None:
    body = RecordingTransport(script(scripted_response()), path).send(request("GET", "/")).body
    assert list(Pieces(body)) == []
    assert (ends(path), recorded_pieces(path)) == ([WHOLE], [])


def test_ended_exchange_is_freed_and_written_only_once(path: Path) -> None:
    transport = RecordingTransport(script(scripted_response(b"of this test")), path)
    body = transport.send(request("GET", "/")).body
    assert list(Pieces(body)) == [b"of this test"]
    gc.collect()
    # The garbage collector does not track tuples of numbers and bytes, but the lists with them.
    things: list[Any] = gc.get_objects()
    lists: list[list[Any]] = [thing for thing in things if type(thing) is list and thing]
    pieces: list[tuple[Any, ...]] = [each[-1] for each in lists if type(each[-1]) is tuple]
    assert [piece for piece in pieces if piece[1:] == (b"of this test",)] == []
    path.unlink()
    body.close()
    transport.close()
    assert not path.exists()


def test_each_open_exchange_is_recorded_when_the_recording_is_closed(path: Path) -> None:
    transport = RecordingTransport(FakeTransport(), path)
    bodies = [transport.send(request("GET", "/api/agents")).body for _ in range(3)]
    transport.close()
    assert ends(path) == [CLOSED] * len(bodies)
    for body in bodies:
        with pytest.raises(ConnectionInterrupted):
            body.read(None)


def test_close_replaces_the_old_cassette(path: Path) -> None:
    fake = FakeTransport()
    RecordingTransport(fake, path).close()
    assert not path.exists()
    for agents in (1, 2):
        transport = RecordingTransport(fake, path)
        for _ in range(agents):
            Flux0(transport=transport).agents.list()
            assert ends(path) == [WHOLE]
        transport.close()
    assert ends(path) == [WHOLE, WHOLE]
    Flux0(transport=transport).agents.list()  # Recording continues after `close`.
    assert ends(path) == [WHOLE, WHOLE, WHOLE]
    RecordingTransport(fake, path).close()
    assert ends(path) == [WHOLE, WHOLE, WHOLE], "an empty recording replaced the cassette"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "fault", [Refuse(), Respond(503), Respond(500), Truncate(after_bytes=3), Stall(after_bytes=3)]
)
def test_failed_recording_does_not_replace_the_cassette(path: Path, fault: Fault) -> None:
    fake = FakeTransport()
    with Flux0(transport=RecordingTransport(fake, path)) as flux0:
        flux0.agents.list()
    good = path.read_bytes()
    fake.inject(fault)
    flux0 = Flux0(transport=RecordingTransport(fake, path), retry_config=ONCE)
    with pytest.raises(Flux0Error):
        flux0.agents.list()
    flux0.agents.list()
    advice = f"To record failures, first delete {re.escape(str(path))}$"
    with pytest.warns(UserWarning, match=f"was not replaced, because.*{advice}"):
        flux0.close()
    assert path.read_bytes() == good
    assert len(ends(path.with_name(f"{path.name}.new"))) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429])
def test_status_that_the_cassette_does_not_have_keeps_the_cassette(path: Path, status: int) -> None:
    fake = FakeTransport()

    def record_again(failures: int) -> None:
        if failures:
            fake.inject(Respond(status), times=failures)
        with Flux0(transport=RecordingTransport(fake, path), retry_config=ONCE) as flux0:
            for _ in range(failures):
                with pytest.raises(APIError):
                    flux0.agents.list()
            flux0.agents.list()

    record_again(0)
    good = path.read_bytes()
    with pytest.warns(UserWarning, match=rf"was not replaced.*\(status {status}\): see "):
        record_again(1)
    assert path.read_bytes() == good
    path.unlink()
    record_again(1)
    record_again(2)
    assert ends(path) == [WHOLE] * 3


@modes
@pytest.mark.parametrize("error", [AssertionError, KeyboardInterrupt, SystemExit])
def test_recording_that_ends_with_an_exception_keeps_the_cassette(
    mode: Mode, error: type[BaseException], path: Path
) -> None:
    fake = FakeTransport()

    async def record(*, fails: bool) -> None:
        async with in_mode(mode, Flux0(transport=RecordingTransport(fake, path))) as flux0:
            await flux0.agents.list_async()
            if fails:
                raise error("as tested")
            await flux0.agents.list_async()

    async def test() -> None:
        await record(fails=False)
        good = path.read_bytes()
        with pytest.raises(error, match="as tested") as caught:
            await record(fails=True)
        assert path.read_bytes() == good
        assert ends(path.with_name(f"{path.name}.new")) == [WHOLE]
        if sys.version_info >= (3, 11):
            (note,) = caught.value.__notes__
            assert f"was not replaced, because the new recording failed ({error.__name__})" in note
        try:
            int("not a number")
        except ValueError:
            await record(fails=False)  # The exception was raised before the recording.
        assert not path.with_name(f"{path.name}.new").exists()

    run(mode, test)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_exception_during_a_call_keeps_the_cassette(path: Path, error: type[BaseException]) -> None:
    sent = request("GET", "/")
    list(Pieces(RecordingTransport(script(scripted_response(b"old")), path).send(sent).body))
    transport = RecordingTransport(script(scripted_response(b"new"), error()), path)
    list(Pieces(transport.send(sent).body))
    with pytest.raises(error):
        transport.send(request("GET", "/"))
    with pytest.warns(UserWarning, match=rf"failed \({error.__name__}\)") as warned:
        transport.close()
    assert warned[0].filename == __file__
    assert recorded_pieces(path) == [b"old"]


def test_second_recording_of_the_same_file_is_rejected(path: Path) -> None:
    fake = FakeTransport()
    first = RecordingTransport(fake, path)
    for same in (path, path.parent / ".." / path.parent.name / path.name):
        with pytest.raises(CassetteError, match="is being recorded already: use the same Recor"):
            RecordingTransport(fake, same)
    RecordingTransport(fake, path.with_name("other.json"))
    Flux0(transport=first).agents.list()
    with pytest.raises(CassetteError):
        RecordingTransport(fake, path)
    first.close()
    second = RecordingTransport(fake, path)
    first.close()
    with pytest.raises(CassetteError):
        RecordingTransport(fake, path)
    del second  # A garbage-collected recording does not block the path.
    RecordingTransport(fake, path).close()
    assert ends(path) == [WHOLE]


def test_folder_as_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CassetteError, match="is a folder: the path of a cassette must be a file"):
        RecordingTransport(FakeTransport(), tmp_path)


@modes
def test_open_exchange_is_recorded_as_closed_by_close(mode: Mode, path: Path) -> None:
    class Failing(Script):
        def close(self) -> None:
            super().close()
            raise OSError("cannot")

        async def close_async(self) -> None:
            self.close()

    async def test() -> None:
        failing = Failing([scripted_response(b"one", b"two")])
        transport = RecordingTransport(failing, path)
        pieces = Pieces(transport.send(request("GET", "/")).body)
        next(pieces)
        close = awaitable(transport.close) if mode == "sync" else transport.close_async
        with pytest.raises(OSError, match="cannot"):
            await close()
        assert failing.closes == 1
        assert (ends(path), recorded_pieces(path)) == ([CLOSED], [b"one"])
        assert list(pieces) == [b"two"]
        assert (ends(path), recorded_pieces(path)) == ([CLOSED], [b"one"])

    run(mode, test)


def test_folder_that_cannot_be_created_is_an_error_before_sending(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CassetteError, match="json cannot be written: Not a directory"):
        RecordingTransport(FakeTransport(), tmp_path / "file" / "folder" / "c.json")


@modes
def test_recording_into_a_folder_without_permission_is_an_error(mode: Mode, tmp_path: Path) -> None:
    async def record_list(path: Path) -> None:
        async with in_mode(mode, Flux0(transport=RecordingTransport(FakeTransport(), path))) as it:
            await it.agents.list_async()

    async def test() -> None:
        tmp_path.chmod(0o500)
        for path in (tmp_path / "c.json", tmp_path / "folder" / "c.json"):
            with without_root(), pytest.raises(CassetteError, match="written: Permission denied"):
                await record_list(path)
        tmp_path.chmod(0o700)
        await record_list(tmp_path / "c.json")  # The failed recording does not block the path.

    run(mode, test)


@modes
def test_body_is_released_even_if_writing_fails(mode: Mode, tmp_path: Path) -> None:
    async def test() -> None:
        body_tape = tape(b"one")
        transport = RecordingTransport(script(response_from(body_tape)), tmp_path / mode / "c.json")
        (tmp_path / mode).rmdir()
        if mode == "sync":
            close = awaitable(transport.send(request("GET", "/")).body.close)
        else:
            close = (await transport.send_async(request("GET", "/"))).body.close_async
        with pytest.raises(CassetteError, match="cannot be written: No such file or directory"):
            await close()
        assert body_tape.releases

    run(mode, test)


# --- how exchanges end


class OwnTimeout(ReadTimeout):
    """An error of a user's transport. The recording has the name of its base class."""


@modes
@pytest.mark.parametrize(
    ("error", "end"), [(OwnTimeout, "ReadTimeout"), (TransportError, "TransportError")]
)
def test_error_ends_the_exchange_and_a_later_close_changes_nothing(
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
                list(Pieces(body))
            body.close()
        else:
            with pytest.raises(error, match="early"):
                await transport.send_async(request("GET", "/"))
            async_body = (await transport.send_async(request("GET", "/"))).body
            with pytest.raises(error, match="late"):
                [piece async for piece in Pieces(async_body)]
            await async_body.close_async()

    run(mode, test)
    assert (ends(path), recorded_pieces(path)) == ([end, end], [b"one"])


@loops
def test_cancelled_call_is_recorded_as_closed(mode: Mode, path: Path) -> None:
    """After a cancellation, the recording still replaces the old cassette."""
    old = RecordingTransport(FakeTransport(), path)
    list(Pieces(old.send(request("GET", "/api/agents")).body))
    old.close()

    async def test() -> None:
        transport = RecordingTransport(
            script(scripted_response(b"one"), scripted_response(b"one")), path
        )
        with anyio.CancelScope() as scope:
            scope.cancel()
            await transport.send_async(request("GET", "/"))
        response = await transport.send_async(request("GET", "/"))
        pieces = Pieces(response.body)
        await anext(pieces)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anext(pieces)
        await response.body.close_async()
        await transport.close_async()

    run(mode, test)
    cancelled, left = read_cassette(path)
    assert (cancelled.response, cancelled.end) == (None, CLOSED)
    assert left.response is not None
    assert (left.end, recorded_pieces(path)) == (CLOSED, [b"one"])


@loops
def test_break_from_an_async_loop_releases_the_connection(mode: Mode, path: Path) -> None:
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
    assert ends(path) == [WHOLE, CLOSED]
    assert len(recorded_pieces(path)) == 1


# --- concurrency


def test_threads_can_share_a_recording(path: Path) -> None:
    fake = FakeTransport([Say("Hello there", pieces=11)])
    barrier = Barrier(8)

    def one_turn(number: int) -> list[bytes]:
        session_id = new_session(fake)
        barrier.wait()
        return list(Pieces(transport.send(message_to(session_id, str(number))).body))

    transport = RecordingTransport(fake, path)
    with ThreadPoolExecutor(8) as threads:
        bodies = list(threads.map(one_turn, range(8)))
    assert ends(path) == [WHOLE] * 8
    by_content = {
        content(each): recorded_pieces(path, at) for at, each in enumerate(read_cassette(path))
    }
    assert by_content == {str(number): body for number, body in enumerate(bodies)}


def content(exchange: RecordedExchange) -> Any:
    assert exchange.request.body is not None
    return json.loads(exchange.request.body.data)["content"]


@loops
def test_pieces_of_interleaved_streams_are_recorded_separately(mode: Mode, path: Path) -> None:
    async def test() -> None:
        responses = (scripted_response(*(chunk(f"{name}{n}") for n in range(3))) for name in "abc")
        transport = RecordingTransport(script(*responses), path)
        sent = [await transport.send_async(request("GET", f"/{n}")) for n in range(3)]
        bodies = [Pieces(response.body) for response in sent]
        for _ in range(4):
            for body in reversed(bodies):
                await anext(body, None)

    run(mode, test)
    assert [each.request.path for each in read_cassette(path)] == ["/0", "/1", "/2"]
    for position, name in enumerate("abc"):
        assert recorded_pieces(path, position) == [b"".join(chunk(f"{name}{n}") for n in range(3))]


# --- cost


@pytest.mark.parametrize("scrub", [None, str.upper, partial(re.sub, "xx", "*")])
def test_cost_of_a_turn_is_linear(path: Path, scrub: Callable[[str], str] | None) -> None:
    def cost(events: int) -> int:
        fake = FakeTransport([Say("x" * events, pieces=events)])
        turn = message_to(new_session(fake))
        transport = RecordingTransport(fake, path.with_name(str(events)), scrub=scrub)
        return calls_made(lambda: list(Pieces(transport.send(turn).body)))

    assert cost(500) < 10.5 * cost(50)
    assert len(recorded_pieces(path.with_name("500"))) == 500


def test_blank_and_repeated_values_of_parameters_are_recorded() -> None:
    assert scrub_query("a=&b=x&b=y", str.upper) == "a=&b=X&b=Y"
