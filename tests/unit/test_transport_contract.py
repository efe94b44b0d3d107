"""The transport contract catches transports that break it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import anyio
import httpx
import pytest
from attrs import evolve, field, frozen

from flux0.adapters.httpx import HttpxTransport
from flux0.domain.errors import ConnectError, ConnectionInterrupted, TransportError
from flux0.ports import AsyncByteStream, ByteStream, Request, Response
from flux0.testing.contract import (
    AsyncTransportContract,
    LimitedPoolContract,
    TransportContract,
)
from flux0.testing.contract.base import PATIENT
from flux0.testing.contract.byte_server import ByteServer


class Impatient(TransportContract):
    patience = 0.3


class AsyncImpatient(AsyncTransportContract):
    patience = 0.3


# --- transports that are right but for one thing


class FollowsRedirects(HttpxTransport):
    def send(self, request: Request) -> Response[ByteStream]:
        response = super().send(request)
        if response.status_code == 307:
            list(response.body)
            return super().send(request)
        return response


class KeepsCookies(HttpxTransport):
    def __init__(self) -> None:
        self._cookies_kept = httpx.Client()
        super().__init__(self._cookies_kept)

    def close(self) -> None:
        self._cookies_kept.close()


class RaisesRawErrors(HttpxTransport):
    def send(self, request: Request) -> Response[ByteStream]:
        try:
            return super().send(request)
        except TransportError as error:
            raise (error.__cause__ or error) from None


class HidesTheCause(HttpxTransport):
    def send(self, request: Request) -> Response[ByteStream]:
        try:
            return super().send(request)
        except ConnectError as error:
            raise ConnectError(str(error)) from None


class CallsEverythingAConnectError(HttpxTransport):
    def send(self, request: Request) -> Response[ByteStream]:
        try:
            return super().send(request)
        except TransportError as error:
            raise ConnectError(str(error)) from error


class WaitsForEver(HttpxTransport):
    def send(self, request: Request) -> Response[ByteStream]:
        return super().send(evolve(request, timeout=PATIENT))


class ChangedBody(HttpxTransport):
    """Does something to bodies."""

    def send(self, request: Request) -> Response[ByteStream]:
        response = super().send(request)
        return evolve(response, body=self.changed(response.body))

    def changed(self, body: ByteStream) -> ByteStream:
        raise NotImplementedError


@frozen
class Body:
    """A body in another's place."""

    pieces: Iterator[bytes]
    inner: ByteStream

    def __iter__(self) -> Iterator[bytes]:
        return self.pieces

    def close(self) -> None:
        self.inner.close()


class BuffersBodies(ChangedBody):
    def changed(self, body: ByteStream) -> ByteStream:
        return Body((b"".join(pieces) for pieces in [body]), body)


class TakesTheEndForAnEnd(ChangedBody):
    def changed(self, body: ByteStream) -> ByteStream:
        def pieces() -> Iterator[bytes]:
            with suppress(ConnectionInterrupted):
                yield from body

        return Body(pieces(), body)


class LosesTheLastByte(ChangedBody):
    def changed(self, body: ByteStream) -> ByteStream:
        return Body((piece[:-1] or piece for piece in body), body)


@frozen
class Unclosed:
    """A body that nobody can close."""

    inner: ByteStream

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.inner)

    def close(self) -> None:
        """Do nothing."""


class NeverCloses(ChangedBody):
    def changed(self, body: ByteStream) -> ByteStream:
        return Unclosed(body)


class RemembersBodies(ChangedBody):
    def __init__(self) -> None:
        super().__init__()
        self._remembered: list[ByteStream] = []

    def changed(self, body: ByteStream) -> ByteStream:
        self._remembered.append(body)
        return body


class CannotBeCancelled(HttpxTransport):
    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        responses: list[Response[AsyncByteStream]] = []
        with anyio.CancelScope(shield=True):
            responses.append(await super().send_async(request))
        return responses[0]


@frozen
class Case:
    """A transport, and a test that it fails."""

    transport: type[HttpxTransport]
    test: str
    arguments: dict[str, Any] = field(factory=dict[str, Any])

    def __str__(self) -> str:
        return f"{self.transport.__name__}-{self.test}"


IN_CHUNKS = {"framing": "chunked", "gzip": False}
STREAMING = {"stream": True}

CASES = [
    Case(FollowsRedirects, "test_redirects_are_not_followed"),
    Case(KeepsCookies, "test_cookies_are_not_kept"),
    Case(RaisesRawErrors, "test_the_headers_do_not_come"),
    Case(HidesTheCause, "test_a_silent_server"),
    Case(CallsEverythingAConnectError, "test_the_headers_do_not_come"),
    Case(WaitsForEver, "test_the_headers_do_not_come"),
    Case(WaitsForEver, "test_a_stream_stops"),
    Case(BuffersBodies, "test_a_piece_is_handed_over_at_once", {**IN_CHUNKS, **STREAMING}),
    Case(TakesTheEndForAnEnd, "test_a_body_is_cut_short", IN_CHUNKS),
    Case(TakesTheEndForAnEnd, "test_reading_on_after_closing"),
    Case(LosesTheLastByte, "test_a_body_in_pieces", {**IN_CHUNKS, **STREAMING}),
    Case(NeverCloses, "test_a_body_half_read", STREAMING),
    Case(NeverCloses, "test_closing_ends_a_read_elsewhere"),
    Case(RemembersBodies, "test_a_body_half_read_is_forgotten", STREAMING),
]


def run(contract: Any, case: Case, backend: str) -> None:
    with ExitStack() as servers:
        probe = contract.make_probe(case.transport(), backend)
        servers.callback(probe.stop)
        servers.callback(probe.close)

        def serve(*answers: Any, **options: Any) -> ByteServer:
            server = ByteServer(*answers, patience=contract.patience, **options)
            return servers.enter_context(server)

        getattr(contract, case.test)(probe, serve, **case.arguments)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_broken_transport_is_caught(case: Case) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, httpx.ReadTimeout)):
        run(Impatient(), case, "threads")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_broken_asynchronous_transport_is_caught(backend: str) -> None:
    case = Case(CannotBeCancelled, "test_waiting_for_the_headers")
    with pytest.raises(AssertionError, match="for the client to close its connections"):
        run(AsyncImpatient(), case, backend)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_right_transport_passes(case: Case) -> None:
    run(TransportContract(), evolve(case, transport=HttpxTransport), "threads")


@pytest.mark.parametrize(
    ("contract", "method", "arguments"),
    [
        (Impatient, "make_transport", ()),
        (AsyncImpatient, "make_transport", ()),
        (Impatient, "make_trusting_transport", ("ca.pem",)),
    ],
)
def test_what_is_not_said_is_asked_for(
    contract: type[Any], method: str, arguments: tuple[str, ...]
) -> None:
    with pytest.raises(NotImplementedError, match=f"{contract.__name__} does not say how"):
        getattr(contract(), method)(*arguments)


def test_a_limited_pool_is_asked_for() -> None:
    class Limited(LimitedPoolContract, TransportContract):
        pass

    with pytest.raises(NotImplementedError, match="Limited does not say how"):
        Limited().make_limited_transport()


def test_no_test_hides_another() -> None:
    names = Counter(
        name
        for part in AsyncTransportContract.__mro__
        for name in vars(part)
        if name.startswith("test_")
    )
    assert len(names) > 50
    assert {name: count for name, count in names.items() if count > 1} == {}
