"""The replay transport: it returns the responses of a cassette instead of sending requests."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import Any, Literal, TypeAlias, get_args

from attrs import define

from flux0.domain.errors import InvalidArgument
from flux0.domain.headers import Headers
from flux0.flows import CallRequest
from flux0.ports import AsyncByteStream, AsyncTransport, ByteStream, Request, Response, Transport
from flux0.testing.cassettes.cassette import (
    CLOSED,
    ERRORS,
    WHOLE,
    RecordedExchange,
    RecordedRequest,
    RecordedResponse,
    how_to_record,
    read_cassette,
)
from flux0.testing.cassettes.differences import (
    call_of,
    canonical_json,
    describe_request,
    differences,
    members_of,
    shorten,
)
from flux0.testing.cassettes.recording import RecordingTransport, recorded_request
from flux0.testing.cassettes.scrubbing import Scrub, checked
from flux0.testing.fake.body import FakeBody, SharedTransport, Starter
from flux0.testing.fake.calls import ReceivedCall, nearest, raise_if
from flux0.testing.fake.clock import FakeClock, Wait, Waits

Matching: TypeAlias = Literal["strict", "loose"]
CassetteMode: TypeAlias = Literal["once", "none", "all", "new_episodes"]
"""When to record a cassette: never, always, if its file is missing, or only for new requests."""


@define(eq=False)
class _Replay:
    number: int
    exchange: RecordedExchange
    key: str
    done: bool = False

    def __str__(self) -> str:
        return f"exchange {self.number}, {describe_request(self.exchange.request)}"

    def differences(self, request: RecordedRequest) -> list[str]:
        return differences(self.exchange.request, request)


@define(eq=False)
class _ReplayedBody(FakeBody):
    def _read(self, timeout: float | None) -> Waits[bytes | None]:  # noqa: ARG002 - ignored
        return super()._read(None)


class NotRecorded(AssertionError):
    """A request matches no exchange in the cassette."""

    # pytest shows the name `flux0.testing.NotRecorded`, which users import, although this module
    # defines the class.
    __module__ = "flux0.testing"


class ReplayTransport(SharedTransport):
    """Replays the exchanges of a cassette, for sync and async calls.

    Responses are the recorded responses, and errors have the recorded classes. Each call takes the
    recorded time on the transport's simulated clock, but no real time, unless you pass
    `sleep`. The timeouts of requests are ignored, except `timeout_ms`.

    A request matches a recorded request with the same method, path, query and body. Bodies are
    compared as JSON. Header fields are not compared.

    Args:
        path: The cassette's path.
        matching: "strict" requires the recorded order of requests; "loose" allows any order. With
            "loose", a request that was recorded once may be sent any number of times. A request
            that was recorded n times may be sent n times.
        match: A function that returns the part of a `ReceivedCall` to compare, such as
            `lambda call: call.operation`. Pass `match` if requests contain values that differ in
            each run.
        scrub: The `scrub` function with which the cassette was recorded, if any.
        sleep: A function that is called with the seconds of each wait. Pass `time.sleep` to replay
            in real time.

    Raises:
        CassetteError: The cassette is missing or damaged.
        NotRecorded: Raised by a call whose request does not match. The message lists the
            differences. `NotRecorded` is a subclass of AssertionError.
        AssertionError: The program reads more of a response than was recorded, because the
            recorded program closed the response early.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        matching: Matching = "strict",
        *,
        match: Callable[[ReceivedCall], object] | None = None,
        scrub: Scrub | None = None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        if matching not in get_args(Matching):
            raise InvalidArgument("matching", f'must be "strict" or "loose", not {matching!r}')
        super().__init__(FakeClock(sleep=sleep))
        self._path = Path(path)
        # `how_to_record` is the advice at the end of error messages: how to record the cassette.
        # The pytest plugin of flux0 replaces the advice.
        self.how_to_record: str = how_to_record(self._path)
        self._match = match
        self._scrub = checked(scrub)
        self._lock = RLock()
        exchanges = enumerate(read_cassette(self._path), 1)
        self._replays = tuple(_Replay(n, each, self._key(each.request)) for n, each in exchanges)
        self._find = self._find_next if matching == "strict" else self._find_any
        self._next = deque(self._replays)
        self._by_key: defaultdict[str, list[_Replay]] = defaultdict(list)
        for replay in self._replays:
            self._by_key[replay.key].append(replay)
        self._unused = {key: iter(matches) for key, matches in self._by_key.items()}

    def __repr__(self) -> str:
        return f"ReplayTransport({str(self._path)!r})"

    def assert_all_used(self) -> None:
        """Raise AssertionError if an exchange in the cassette was not replayed."""
        unused = [str(replay) for replay in self._replays if not replay.done]
        raise_if(f"some exchanges of {self._path} were not replayed:", unused)

    def respond(
        self,
        request: Request,
        starter: Starter,  # noqa: ARG002 - only a fake has agents
    ) -> Waits[Response[FakeBody]]:
        with self._lock:
            sent_request = recorded_request(request, self._scrub)
            replay = self._find(sent_request, self._key(sent_request))
            replay.done = True
        sent_at = self.clock.now()
        response = replay.exchange.response
        if response is None:
            yield Wait(sent_at + replay.exchange.after)
            raise self._failure(request, replay)
        head_time = sent_at + response.after
        yield Wait(head_time)
        pieces = self._pieces(request, replay, response, head_time)
        headers = Headers(tuple(response.headers.items()))
        body = _ReplayedBody(pieces, self.clock, self._lock, lambda _, __: False)
        return Response(response.status_code, headers, body)

    def _pieces(
        self, request: Request, replay: _Replay, response: RecordedResponse, head_time: float
    ) -> Iterator[bytes | Wait]:
        for piece in response.pieces:
            yield Wait(head_time + piece.after)
            yield piece.data
        yield Wait(head_time + replay.exchange.after)
        if replay.exchange.end != WHOLE:
            raise self._failure(request, replay)

    def _failure(self, request: Request, replay: _Replay) -> Exception:
        exchange = replay.exchange
        if exchange.end != CLOSED:
            return ERRORS[exchange.end](f"recorded in {self._path}")
        deadline = request.deadline if isinstance(request, CallRequest) else None
        if deadline is not None and deadline.left(self.clock.now()) < 0:
            # The call's deadline (`timeout_ms`) has passed. When the cassette was recorded, the
            # deadline of the recorded call had probably passed, too.
            return deadline.exceeded()
        start = "request" if exchange.response is None else "response head"
        end = f"the recorded call was cancelled or closed {exchange.after:g} s after the {start}"
        advice = f"To record the whole response, {self.how_to_record}."
        return AssertionError(f"{self._path} has no more data of {replay}: {end}\n{advice}")

    def _find_next(self, request: RecordedRequest, key: str) -> _Replay:
        if self._next and self._next[0].key == key:
            return self._next.popleft()
        lines = [f"{describe_request(request)} is not the next request in {self._path}"]
        if not self._next:
            lines.append(f"all {len(self._replays)} exchanges were replayed already")
        else:
            replay = self._next[0]
            lines.append("\n  ".join((f"next: {replay}", *replay.differences(request))))
        later = [str(replay.number) for replay in self._by_key.get(key, ()) if not replay.done]
        if later:
            numbers = shorten(", ".join(later))
            lines.append(f'the request is in exchange {numbers}: matching="loose" allows any order')
        raise self._mismatch(*lines)

    def _find_any(self, request: RecordedRequest, key: str) -> _Replay:
        matches = self._by_key.get(key, [])
        replay = matches[0] if len(matches) == 1 else next(self._unused.get(key, iter(())), None)
        if replay is not None:
            return replay
        call = describe_request(request)
        if matches:
            numbers = shorten(", ".join(str(replay.number) for replay in matches))
            problem = f"{call} was sent more often than it was recorded in {self._path}"
            raise self._mismatch(problem, f"exchanges {numbers} were replayed already")
        near = nearest(call, self._replays, lambda replay: replay.differences(request))
        lines = [f"{call} is not in {self._path}", *([f"nearest: {near}"] * bool(near))]
        recorded = (replay.exchange.request for replay in self._replays)
        if self._match is None and _without_ids(request) in map(_without_ids, recorded):
            problem = "in threads or tasks, equal requests may get responses with swapped ids"
            advice = "to ignore ids in paths, pass match=lambda call: (call.operation, call.body)"
            lines.append(f"{problem}: {advice}")
        raise self._mismatch(*lines)

    def _key(self, request: RecordedRequest) -> str:
        compared = members_of(request) if self._match is None else self._match(call_of(request))
        return canonical_json(compared)

    def _mismatch(self, *lines: str) -> NotRecorded:
        advice = f"If the cassette is outdated, record it again: {self.how_to_record}."
        return NotRecorded("\n".join((*lines, f"The code or the cassette has changed. {advice}")))


def _without_ids(request: RecordedRequest) -> tuple[str, Any]:
    call = call_of(request)
    return call.operation, call.body


class NewEpisodesTransport(RecordingTransport):
    """Replays the requests that are in the cassette. Sends and records all other requests."""

    def __init__(
        self,
        transport: Transport | AsyncTransport,
        path: str | PathLike[str],
        *,
        match: Callable[[ReceivedCall], object] | None = None,
        scrub: Scrub | None = None,
    ) -> None:
        super().__init__(transport, path, scrub=scrub, keep=read_cassette(Path(path)))
        self._replay = ReplayTransport(path, "loose", match=match, scrub=scrub)
        # A call's deadline is a time on the client's clock. Therefore, the simulated clock of the
        # replay starts at the current time of the client's clock.
        self._replay.clock = FakeClock(self._clock())

    def send(self, request: Request) -> Response[ByteStream]:
        with suppress(NotRecorded):
            return self._replay.send(request)
        return super().send(request)

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        with suppress(NotRecorded):
            return await self._replay.send_async(request)
        return await super().send_async(request)


def cassette(
    path: str | PathLike[str],
    transport: Callable[[], Transport | AsyncTransport] | None = None,
    *,
    mode: CassetteMode | None = None,
    matching: Matching = "strict",
    match: Callable[[ReceivedCall], object] | None = None,
    scrub: Scrub | None = None,
) -> RecordingTransport | ReplayTransport:
    """Return a transport that replays the cassette, or a transport that records it.

    Args:
        path: The cassette's path.
        transport: A function that returns the transport for recording. The default is
            `HttpxTransport`.
        mode: "once" replays the cassette if it exists, and records it otherwise. "none" always
            replays, "all" always records. "new_episodes" replays the requests that the cassette
            contains, in any order, and records all other requests. The default is "none" if the
            environment variable `CI` is set, and "once" otherwise.
        matching: "strict" requires the recorded order of requests; "loose" allows any order.
        match: A function that returns the part of a `ReceivedCall` to compare with the recorded
            call. By default, the method, the path, the query and the body are compared.
        scrub: A function that is called with each string in a path, a query or a body, and returns
            the string to record, for example to replace a secret.
    """
    if mode is None:
        mode = "none" if os.environ.get("CI", "").lower() not in {"", "0", "false"} else "once"
    elif mode not in get_args(CassetteMode):
        known = '"once", "none", "all" or "new_episodes"'
        raise InvalidArgument("mode", f"must be {known}, not {mode!r}")
    if mode == "none" or (mode == "once" and Path(path).exists()):
        return ReplayTransport(path, matching, match=match, scrub=scrub)
    if transport is None:
        from flux0.adapters.httpx import HttpxTransport  # noqa: PLC0415 - loads httpx

        transport = HttpxTransport
    if mode == "new_episodes" and Path(path).exists():
        return NewEpisodesTransport(transport(), path, match=match, scrub=scrub)
    return RecordingTransport(transport(), path, scrub=scrub)
