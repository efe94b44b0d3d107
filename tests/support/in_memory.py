"""Scripted bodies, responses and transports in memory, without a server."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, cast

import anyio
import pytest
from attrs import define, evolve, field, frozen

from flux0 import AsyncEventStream, Flux0, RetryConfig
from flux0.adapters.json import JsonCodec
from flux0.adapters.sse import SSEParser
from flux0.domain.headers import Headers
from flux0.domain.stream_events import StreamEvent
from flux0.flows import CallRequest, Flow, Send
from flux0.ports import Request, Response
from flux0.turns.turn import Turn
from support.modes import in_mode, run, run_in_simulated_time
from support.transports import ASYNC, SYNC, Mode

JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream; charset=utf-8"}

CORRELATION_ID = "RID(1)::2"


@frozen
class Hang:
    """A step of a body at which an async reader waits forever."""


# A read of a body returns the next step, raises it if it is an exception, or calls it if it is a
# function. The function may return None for the body's end.
Step = bytes | BaseException | Callable[[], bytes | Hang | None] | Hang


@define
class Tape:
    """The steps of a body, the timeouts of its reads, and the number of its releases.

    `close` and `__del__` of the body release it.
    """

    steps: list[Step]
    timeouts: list[float | None] = field(factory=list[float | None])
    releases: int = 0

    @property
    def reads(self) -> int:
        return len(self.timeouts)

    def next(self, timeout: float | None) -> bytes | Hang | None:
        """Return the next piece, or None at the end; raise the next error."""
        assert not self.releases, "a body was read after it was closed"
        self.timeouts.append(timeout)
        step = self.steps.pop(0) if self.steps else None
        if isinstance(step, BaseException):
            raise step
        return step() if callable(step) else step


def tape(*steps: Step) -> Tape:
    return Tape(list(steps))


class Body:
    """A sync and async body with the steps of a tape. The tape records each release."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def read(self, timeout: float | None) -> bytes | None:
        piece = self._tape.next(timeout)
        assert not isinstance(piece, Hang), "a sync reader would hang"
        return piece

    def close(self) -> None:
        self._tape.releases += 1

    async def read_async(self, timeout: float | None) -> bytes | None:
        await anyio.lowlevel.checkpoint()
        piece = self._tape.next(timeout)
        while isinstance(piece, Hang):
            await anyio.sleep_forever()
        return piece

    async def close_async(self) -> None:
        self.close()

    def __del__(self) -> None:
        self._tape.releases += 1


class FailingBody(Body):
    """A body that cannot be closed, because the user's transport has a bug."""

    def close(self) -> None:
        raise OSError("the connection cannot be closed")

    async def close_async(self) -> None:
        self.close()


def scripted_response(
    *steps: Step, status: int = 200, headers: Mapping[str, str] = JSON
) -> Response[Any]:
    """Return a response whose body has these steps."""
    return response_from(tape(*steps), status=status, headers=headers)


def response_from(
    recorded: Tape, *, status: int = 200, headers: Mapping[str, str] = JSON
) -> Response[Any]:
    """Return a response whose body has the steps of a tape."""
    return Response(status, Headers(tuple(headers.items())), Body(recorded), raw_response=object())


@define
class Script:
    """A transport that returns the responses in order, raises errors, and records requests."""

    responses: list[Response[Any] | BaseException]
    requests: list[CallRequest] = field(factory=list[CallRequest])
    closes: int = 0

    def send(self, request: Request) -> Response[Any]:
        self.requests.append(cast("CallRequest", request))
        outcome = self.responses.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def send_async(self, request: Request) -> Response[Any]:
        await anyio.lowlevel.checkpoint()
        return self.send(request)

    def close(self) -> None:
        self.closes += 1

    async def close_async(self) -> None:
        self.closes += 1


def script(*responses: Response[Any] | BaseException) -> Script:
    return Script(list(responses))


def play(flow: Flow[Any], *outcomes: object) -> tuple[list[object], Any]:
    """Run a flow: send or raise the next of `outcomes` for each effect.

    Returns the effects and the result.
    """
    effects: list[object] = []
    try:
        effects.append(next(flow))
        for outcome in outcomes:
            effect = (
                flow.throw(outcome) if isinstance(outcome, BaseException) else flow.send(outcome)
            )
            effects.append(effect)
    except StopIteration as stop:
        return effects, stop.value
    raise AssertionError(f"the flow has more effects than outcomes: {effects[-1]}")


def sent(effect: object) -> CallRequest:
    assert isinstance(effect, Send)
    return effect.request


# --- turns


def new_turn(max_event_bytes: int = 1000, *, idle: float = 600.0) -> Turn:
    request = CallRequest(
        "POST",
        "http://127.0.0.1:8080/api/sessions/s/events/stream",
        Headers(),
        operation="sessions.create_event",
    )
    return Turn(SSEParser(max_event_bytes=max_event_bytes), JsonCodec(), request, idle)


def frame(name: str, data: object) -> bytes:
    """Return an event of a stream as the server writes it."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def chunk(value: object, *, event_id: str = "e", correlation_id: str = CORRELATION_ID) -> bytes:
    """Return a chunk event that appends `value` to a message."""
    return frame(
        "chunk",
        {
            "correlation_id": correlation_id,
            "event_id": event_id,
            "seq": 0,
            "patches": [{"op": "add", "path": "/-", "value": value}],
            "metadata": {"agent_id": "a", "agent_name": "Drizzle"},
            "timestamp": 1795559230.7,
        },
    )


def status(name: str, data: object = None) -> bytes:
    """Return a status event."""
    return frame(
        "status",
        {
            "id": "",
            "source": "ai_agent",
            "type": "status",
            "correlation_id": CORRELATION_ID,
            "data": {"type": "status", "status": name, "data": data},
            "metadata": None,
        },
    )


def events_of(data: bytes) -> list[StreamEvent]:
    """Parse and decode the bytes of a stream."""
    codec, parser = JsonCodec(), SSEParser()
    events = [codec.decode_event(event) for event in parser.feed(data)]
    assert not parser.pending
    return events


def close_delimited(*pieces: bytes) -> Response[Any]:
    return evolve(scripted_response(*pieces, headers=SSE), close_delimited=True)


def stored(*texts: str) -> Response[Any]:
    """Return a response that lists these messages as the turn's stored events."""
    events: list[dict[str, Any]] = [
        {
            "id": f"id{offset}",
            "correlation_id": CORRELATION_ID,
            "type": "message",
            "source": "ai_agent",
            "offset": offset,
            "data": {
                "type": "message",
                "parts": [{"type": "content", "content": text}],
                "participant": {"id": "a", "name": "Drizzle"},
            },
            "deleted": False,
            "created_at": "2026-01-01T00:00:00Z",
            "metadata": {},
        }
        for offset, text in enumerate(texts)
    ]
    return scripted_response(json.dumps({"data": events}).encode())


SESSION = {
    "id": "abcdefghij",
    "agent_id": "agent12345",
    "user_id": "anonymous",
    "title": None,
    "consumption_offsets": {"client": 0},
    "created_at": "2026-01-01T00:00:00Z",
}


async def begin(mode: Mode, transport: Script) -> AsyncEventStream:
    flux0 = in_mode(mode, Flux0(transport=transport, retry_config=RetryConfig("none")))
    return await flux0.sessions.create_event_async(session_id="s", content="Hi")


# --- decorators for async tests

Test = Callable[[Mode], Coroutine[Any, Any, None]]


def _in_modes(
    test: Test, modes: tuple[Mode, ...], run: Callable[..., None] = run
) -> Callable[[Mode], None]:
    @pytest.mark.parametrize("mode", modes)
    def run_test(mode: Mode) -> None:
        run(mode, functools.partial(test, mode))

    return run_test


def in_every_mode(test: Test) -> Callable[[Mode], None]:
    """Run an async test under asyncio and trio, and as a sync test."""
    return _in_modes(test, SYNC + ASYNC)


def in_both_loops(test: Test) -> Callable[[Mode], None]:
    """Run an async test under asyncio and trio."""
    return _in_modes(test, ASYNC)


def in_simulated_time(test: Test) -> Callable[[Mode], None]:
    """Run an async test under asyncio and trio; see `run_in_simulated_time`."""
    return _in_modes(test, ASYNC, run_in_simulated_time)
