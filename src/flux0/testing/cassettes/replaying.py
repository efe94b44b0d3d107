"""A transport that goes nowhere: it plays what `RecordingTransport` has recorded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import Literal, TypeAlias, get_args

from flux0.adapters.support.event_loop import Loop
from flux0.domain.errors import InvalidArgument, ReadTimeout
from flux0.domain.headers import Headers
from flux0.ports import AsyncTransport, Request, Response, Transport
from flux0.testing.cassettes.cassette import (
    CLOSED,
    ERRORS,
    WHOLE,
    RecordedResponse,
    how_to_record,
    read_cassette,
)
from flux0.testing.cassettes.matching import Matcher, Track
from flux0.testing.cassettes.recording import RecordingTransport
from flux0.testing.cassettes.scrubbing import Scrub, recorded_request
from flux0.testing.fake.body import BodyEnd, OpenBody, SharedTransport
from flux0.testing.fake.calls import Call
from flux0.testing.fake.clock import FakeClock, Wait, Waits

Matching: TypeAlias = Literal["strict", "loose"]
CassetteMode: TypeAlias = Literal["once", "none", "all"]


class ReplayTransport(SharedTransport):
    """A `Transport` and an `AsyncTransport` that answer as a cassette says.

    What was recorded happens again: heads, pieces of bodies, errors, and the time between them,
    whatever a request's timeouts are. The time passes on a clock of its own, so nothing waits.

    A request matches a recorded one of the same method, path, query and body; bodies are compared
    as JSON, and header fields are not compared. A request that matches none, or not in its turn, is
    an AssertionError that tells what is different. Reading on where the recorded program had left
    an answer is one too.

    Args:
        path: the cassette.
        matching: "strict" wants the requests in the order in which they were recorded. "loose"
            takes them in any order, each once; a request that matches no other recorded one is
            taken any number of times.
        match: returns the part of a `Call` that has to be equal, such as
            `lambda call: call.operation`, if some of its content changes from run to run.
        scrub: what the recording was given as `scrub`, if anything.
        sleep: is called with the seconds of each wait. With `time.sleep` everything takes as long
            as when it was recorded.

    Attributes:
        clock: the time.

    Raises:
        CassetteError: there is no such file, or this version cannot read it.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        matching: Matching = "strict",
        *,
        match: Callable[[Call], object] | None = None,
        scrub: Scrub | None = None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        if matching not in get_args(Matching):
            raise InvalidArgument("matching", f'must be "strict" or "loose", not {matching!r}')
        super().__init__(FakeClock(sleep=sleep))
        self._path = Path(path)
        exchanges = enumerate(read_cassette(self._path), start=1)
        self._tracks = tuple(Track(number, exchange) for number, exchange in exchanges)
        strict = matching == "strict"
        self._matcher = Matcher(self._path, self._tracks, strict=strict, match=match)
        self._scrub = scrub
        self._lock = RLock()

    def __repr__(self) -> str:
        return f"ReplayTransport({str(self._path)!r})"

    def assert_all_used(self) -> None:
        """Raise AssertionError if some exchange of the cassette was not played."""
        unused = [str(track) for track in self._tracks if not track.played]
        if unused:
            raise AssertionError("\n".join((f"not all of {self._path} was played:", *unused)))

    # --- within

    def answer(
        self,
        request: Request,
        loop: Loop | None = None,  # noqa: ARG002 - there is no agent to run in it
        *,
        patient: bool = False,
    ) -> Waits[Response[OpenBody]]:
        """Return what was recorded as the answer to `request`; see `SharedTransport.answer`."""
        with self._lock:
            track = self._matcher.find(recorded_request(request, self._scrub))
        sent = self.clock.now()
        response, end = track.exchange.response, track.exchange.end
        if response is None:
            yield Wait(sent + end.after)
            raise self._failure(request, track)
        began = sent + response.after
        yield Wait(began)
        pieces = self._pieces(request, track, response, began)
        headers = Headers(tuple(response.headers.items()))
        body = OpenBody(pieces, None, self.clock, self._lock, _nothing, patient=patient)
        return Response(response.status_code, headers, body)

    def _pieces(
        self, request: Request, track: Track, response: RecordedResponse, began: float
    ) -> Iterator[bytes | Wait]:
        for piece in response.pieces:
            yield Wait(began + piece.after)
            yield piece.data
        yield Wait(began + track.exchange.end.after)
        if track.exchange.end.how != WHOLE:
            raise self._failure(request, track)

    def _failure(self, request: Request, track: Track) -> Exception:
        end = track.exchange.end
        if end.how != CLOSED:
            return ERRORS[end.how](f"recorded in {self._path}")
        if request.deadline is not None and self.clock.now() > request.deadline:
            return ReadTimeout("the call took longer than its timeout_ms")  # Why it was left.
        return AssertionError(
            f"{self._path} has no more of {track}: the program left it there, {end.after:g} s "
            f"{'after the request' if track.exchange.response is None else 'into the answer'}\n"
            f"To have the rest of it, record it anew {how_to_record(self._path)}."
        )


def _nothing(_: OpenBody, __: BodyEnd) -> None:
    """Keep nothing of a body that has ended."""


def cassette(
    path: str | PathLike[str],
    transport: Callable[[], Transport | AsyncTransport] | None = None,
    *,
    mode: CassetteMode | None = None,
    matching: Matching = "strict",
    match: Callable[[Call], object] | None = None,
    scrub: Scrub | None = None,
) -> RecordingTransport | ReplayTransport:
    """Return a transport that replays a cassette, or one that records it.

    Args:
        path: the cassette.
        transport: returns what sends the requests when recording; by default `HttpxTransport`.
        mode: "once" replays a cassette that exists, and records one that does not; "none" only
            replays; "all" only records. The default is "none" where the environment variable `CI`
            is set, and "once" elsewhere.
        matching: see `ReplayTransport`.
        match: see `ReplayTransport`.
        scrub: see `ReplayTransport` and `RecordingTransport`.

    Raises:
        CassetteError: there is no such file and none is recorded, or this version cannot read it.
    """
    if mode is None:
        mode = "none" if os.environ.get("CI", "").lower() not in {"", "0", "false"} else "once"
    elif mode not in get_args(CassetteMode):
        raise InvalidArgument("mode", f'must be "once", "none" or "all", not {mode!r}')
    if mode == "none" or (mode == "once" and Path(path).exists()):
        return ReplayTransport(path, matching, match=match, scrub=scrub)
    return RecordingTransport((transport or _over_httpx)(), path, scrub=scrub)


def _over_httpx() -> Transport:
    from flux0.adapters.httpx import HttpxTransport  # noqa: PLC0415 - loads httpx

    return HttpxTransport()
