"""The contract of transports: its form, and the bugs that it detects."""

from __future__ import annotations

import ast
import gc
from asyncio import shield
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, suppress
from functools import cache, partial
from importlib.resources import files
from inspect import signature
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import pytest
import trustme
from anyio.lowlevel import checkpoint
from attrs import evolve, field, frozen
from urllib3 import PoolManager

import flux0.testing.contract
from flux0 import HttpxTransport, Urllib3Transport
from flux0.domain.errors import (
    ConnectionInterrupted,
    ProtocolError,
    ReadTimeout,
    TransportError,
)
from flux0.domain.headers import Headers
from flux0.ports import Interrupt, Request, Response, Timeout
from flux0.runtime.event_loop import do_nothing
from flux0.testing.contract import (
    AsyncTransportContract,
    LimitedPoolContract,
    TransportContract,
    TurnStoreContract,
)
from flux0.testing.contract.base import THREADS, check
from flux0.testing.contract.connections import CancellationContract
from flux0.testing.contract.harness import LONG, LONG_TIMEOUT, run_in_thread
from support.secured import Secured, server_context


def test_each_assertion_says_what_is_required() -> None:
    folder = Path(str(files(flux0.testing.contract)))
    trees = [ast.parse(path.read_text("utf-8")) for path in folder.glob("*.py")]
    asserts = [
        ast.unparse(node)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert) and node.msg is None
    ]
    assert asserts == []


@pytest.mark.parametrize("contract", [TransportContract, AsyncTransportContract])
@pytest.mark.parametrize(
    ("method", "arguments"), [("make_transport", ()), ("make_trusting_transport", ("ca.pem",))]
)
def test_missing_method_of_a_subclass_is_named(
    contract: type[Any], method: str, arguments: tuple[str, ...]
) -> None:
    with pytest.raises(NotImplementedError, match=rf"{contract.__name__} must define {method}\(\)"):
        getattr(contract(), method)(*arguments)


def test_missing_make_store_is_named() -> None:
    with pytest.raises(NotImplementedError, match=r"TurnStoreContract must define make_store\(\)"):
        TurnStoreContract().make_stores()


def test_missing_make_limited_transport_is_named() -> None:
    class Limited(LimitedPoolContract, TransportContract):
        pass

    with pytest.raises(NotImplementedError, match="Limited must define make_limited"):
        Limited().make_limited_transport()


@pytest.mark.parametrize("contract", [TransportContract, AsyncTransportContract])
def test_no_test_overrides_another(contract: type[Any]) -> None:
    names = Counter(
        name for part in contract.__mro__ for name in vars(part) if name.startswith("test_")
    )
    assert len(names) > 50
    assert {name: count for name, count in names.items() if count > 1} == {}


# --- the contract detects bugs

Send = Callable[[Request], Response[Any]]
Bug = Callable[[Request, Send], Response[Any]]
KEPT: list[object] = []
OTHER_FIELDS = Headers((("link", "x"), ("content-type", "x"), ("accept-encoding", "br")))


@frozen
class Body:
    """A response body with these methods."""

    read: Callable[[float | None], bytes | None]
    close: Callable[[], object] = do_nothing


@frozen
class WrongTransport:
    """A transport with a bug, over real connections."""

    _bug: Bug
    _transport: Urllib3Transport = field(factory=Urllib3Transport)

    def send(self, request: Request) -> Response[Any]:
        return self._bug(request, self._transport.send)

    def close(self) -> None:
        if self._bug is not forget_to_close:
            self._transport.close()


def sending(**changes: Any) -> Bug:
    return lambda request, send: send(evolve(request, **changes))


def responding(**changes: Any) -> Bug:
    return lambda request, send: evolve(send(request), **changes)


def reading(read: Callable[[Any, float | None], bytes | None]) -> Bug:
    """Return a bug. `read` gets the correct body and the timeout of a read."""

    def respond(request: Request, send: Send) -> Response[Any]:
        response = send(request)
        return evolve(response, body=Body(partial(read, response.body), response.body.close))

    return respond


def raising(change: Callable[[TransportError], TransportError | None]) -> Bug:
    """Return a bug that changes each error. If `change` returns None, no error is raised."""

    def read(body: Any, timeout: float | None) -> bytes | None:
        try:
            piece: bytes | None = body.read(timeout)
        except TransportError as error:
            if (changed := change(error)) is not None:
                raise changed from changed.__cause__
            return None
        return piece

    def respond(request: Request, send: Send) -> Response[Any]:
        try:
            return reading(read)(request, send)
        except TransportError as error:
            if (changed := change(error)) is not None:
                raise changed from changed.__cause__
            return Response(200, Headers(()), Body(lambda _: None))

    return respond


def generalized(error: TransportError) -> TransportError:
    general = TransportError(str(error))
    general.__cause__ = error.__cause__
    return general


def specialized(error: TransportError) -> TransportError:
    special: TransportError = type("Special", (type(error),), {})(str(error))
    special.__cause__ = error.__cause__
    return special


def without_text(error: TransportError) -> TransportError:
    silent = type(error)("")
    silent.__cause__ = error.__cause__
    return silent


def without_cause(error: TransportError) -> TransportError:
    error.__cause__ = None
    return error


def caused_by_flux0(error: TransportError) -> TransportError:
    error.__cause__ = ConnectionInterrupted("an error of the transport")
    return error


def cut_body(request: Request, send: Send) -> Response[Any]:
    return send(evolve(request, body=request.body and request.body[:-1]))


def reverse_body(request: Request, send: Send) -> Response[Any]:
    return send(evolve(request, body=request.body and request.body[::-1]))


def announce_a_type(request: Request, send: Send) -> Response[Any]:
    """The bug affects only POST requests."""
    headers = Headers((("content-type", "x"),) if request.method == "POST" else ())
    return send(evolve(request, headers=request.headers.merge(headers)))


def for_streamed_gzip(bug: Bug) -> Bug:
    """Limit a bug to the bodies of streams that are chunked and compressed."""

    def respond(request: Request, send: Send) -> Response[Any]:
        response = send(request)
        fields = [response.headers.get(f"{name}-encoding") for name in ("transfer", "content")]
        is_affected = request.stream and fields == ["chunked", "gzip"]
        return bug(request, lambda _: response) if is_affected else response

    return respond


def store_cookies() -> Bug:
    cookies: list[tuple[str, str]] = []

    def respond(request: Request, send: Send) -> Response[Any]:
        response = send(evolve(request, headers=request.headers.merge(Headers((*cookies,)))))
        cookies.extend(("cookie", value) for value in response.headers.get_all("set-cookie"))
        return response

    return respond


def cache_responses() -> Bug:
    heads: dict[str, Response[Any]] = {}

    def respond(request: Request, send: Send) -> Response[Any]:
        if request.url not in heads:
            response = send(request)
            heads[request.url] = evolve(response, body=None)
            return response
        pieces = iter((b"ok", None))
        return evolve(heads[request.url], body=Body(lambda _: next(pieces)))

    return respond


def without_tls(request: Request, send: Send) -> Response[Any]:
    return send(evolve(request, url=request.url.replace("https:", "http:")))


@cache
def httpx_transport() -> HttpxTransport:
    return HttpxTransport()


@cache
def urllib3_transport(**options: Any) -> Urllib3Transport:
    return Urllib3Transport(PoolManager(**options))


def send_a_field_in_two_cases(request: Request, _: Send) -> Response[Any]:
    headers = Headers((*request.headers.pairs, ("X-Field", "1"), ("x-field", "1")))
    return httpx_transport().send(evolve(request, headers=headers))


def trust_any_server(request: Request, _: Send) -> Response[Any]:
    return urllib3_transport(cert_reqs="CERT_NONE").send(request)


def trust_any_host(request: Request, _: Send) -> Response[Any]:
    return urllib3_transport(assert_hostname=False).send(request)


def send_twice(request: Request, send: Send) -> Response[Any]:
    send(request).body.close()
    return send(request)


def send_again(request: Request, send: Send) -> Response[Any]:
    try:
        return send(request)
    except ConnectionInterrupted:
        return send(request)


def send_again_and_raise(request: Request, send: Send) -> Response[Any]:
    try:
        return send(request)
    except TransportError as error:
        with suppress(TransportError):
            send(request).body.close()
        raise error from error.__cause__


def forget_to_close(request: Request, send: Send) -> Response[Any]:
    return send(request)


def keep_open(request: Request, send: Send) -> Response[Any]:
    response = send(request)
    KEPT.append(response.body)
    return evolve(response, body=Body(response.body.read))


def one_at_a_time() -> Bug:
    lock = Lock()

    def respond(request: Request, send: Send) -> Response[Any]:
        with lock:
            return send(request)

    return respond


def one_read_at_a_time() -> Bug:
    lock = Lock()

    def read(body: Any, timeout: float | None) -> bytes | None:
        with lock:
            piece: bytes | None = body.read(timeout)
            return piece

    return reading(read)


def fail_after_fire() -> Bug:
    interrupts: dict[str, Interrupt] = {}

    def respond(request: Request, send: Send) -> Response[Any]:
        if request.url in interrupts and interrupts[request.url].fired:
            raise ConnectionInterrupted("the earlier interrupt ends this call")
        interrupts[request.url] = request.interrupt
        return send(request)

    return respond


def read_whole_body(body: Any, timeout: float | None) -> bytes | None:
    return b"".join(iter(partial(body.read, timeout), None)) or None


def read_other_bytes(body: Any, timeout: float | None) -> bytes | None:
    piece: bytes | None = body.read(timeout)
    return piece and piece[:-1] + b"?"


def read_other_later_bytes(body: Any, timeout: float | None) -> bytes | None:
    if body in KEPT:
        return read_other_bytes(body, timeout)
    KEPT.append(body)
    piece: bytes | None = body.read(timeout)
    return piece


def end_early(body: Any, timeout: float | None) -> bytes | None:
    with suppress(TransportError):
        piece: bytes | None = body.read(timeout)
        return piece
    return None


def close_without_the_connection(request: Request, send: Send) -> Response[Any]:
    response = send(request)
    body = Body(response.body.read)

    def read(timeout: float | None) -> bytes | None:
        if body in KEPT:
            raise ConnectionInterrupted("the body is closed")
        return body.read(timeout)

    return evolve(response, body=Body(read, lambda: KEPT.append(body)))


def read_more_bytes(body: Any, timeout: float | None) -> bytes | None:
    piece: bytes | None = body.read(timeout)
    if piece is None and body not in KEPT:
        KEPT.append(body)
        return b"?"
    return piece


def join_fields(request: Request, send: Send) -> Response[Any]:
    response = send(request)
    return evolve(response, headers=Headers(tuple(response.headers.items())))


def without_timeouts(request: Request, send: Send) -> Response[Any]:
    return reading(lambda body, _: body.read(LONG))(evolve(request, timeout=LONG_TIMEOUT), send)


def abandon(request: Request, send: Send) -> Response[Any]:
    async def wait() -> Response[Any]:
        return send(evolve(request, timeout=LONG_TIMEOUT))

    try:
        return run_in_thread(wait).result(request.timeout.read)
    except futures.TimeoutError as error:
        raise ReadTimeout("too late") from error


def fail_and_keep(body: Any, _: float | None) -> bytes | None:
    KEPT.append(body)
    raise ProtocolError("malformed") from ValueError("malformed")


def interrupt_bodies(request: Request, send: Send) -> Response[Any]:
    response = send(request)
    request.interrupt.on_fire(response.body.close)
    return response


# Bugs, each with the tests of the contract that must fail.
BUGS: list[tuple[Bug, str]] = [
    (sending(method="PUT"), "target_and_body_are_sent_unchanged"),
    (sending(method="GET", body=None), "empty_body_has_a_content_length"),
    (cut_body, "target_and_body_are_sent_unchanged large_body_is_sent_completely"),
    (reverse_body, "target_and_body_are_sent_unchanged"),
    (announce_a_type, "request_without_a_body_announces_none"),
    (
        lambda request, send: send(evolve(request, url=f"{request.url}/x")),
        "target_and_body_are_sent_unchanged concurrent_requests_do_not_block_each_other",
    ),
    (
        sending(headers=OTHER_FIELDS),
        "request_without_a_body_announces_none default_headers_are_sent_once "
        "request_headers_are_sent_unchanged",
    ),
    (send_a_field_in_two_cases, "default_headers_are_sent_once"),
    (sending(headers=Headers(())), "header_values_are_latin_1"),
    (store_cookies(), "cookies_are_not_stored"),
    (
        without_tls,
        "connection_is_not_reused_for_another_scheme unknown_authority_is_a_tls_error "
        "certificate_for_another_host_is_a_tls_error",
    ),
    (
        responding(status_code=299),
        "every_status_is_returned interim_responses_are_skipped redirects_are_not_followed "
        "responses_without_a_body_end_with_their_head",
    ),
    (
        responding(headers=OTHER_FIELDS),
        "every_status_is_returned interim_responses_are_skipped redirects_are_not_followed "
        "header_values_are_latin_1 response_headers_are_returned_unchanged",
    ),
    (join_fields, "response_headers_are_returned_unchanged"),
    (
        reading(read_more_bytes),
        "responses_without_a_body_end_with_their_head body_is_returned_unchanged",
    ),
    (
        sending(headers=Headers((("host", "x"),))),
        "ipv6_host_has_brackets request_headers_are_sent_unchanged",
    ),
    (responding(raw_response=None), "response_headers_are_returned_unchanged"),
    (
        lambda request, send: (
            (response := send(request))
            and evolve(response, close_delimited=not response.close_delimited)
        ),
        "body_is_returned_unchanged",
    ),
    (
        reading(read_other_bytes),
        "header_values_are_latin_1 every_status_is_returned interim_responses_are_skipped "
        "unusual_response_heads_are_accepted body_is_returned_unchanged "
        "pieces_are_yielded_when_they_arrive chunk_extensions_and_trailers_are_ignored "
        "content_codings_are_decoded redirects_are_not_followed "
        "finished_body_releases_its_connection_for_reuse "
        "connection_is_not_reused_for_another_port connection_is_not_reused_after_connection_close "
        "connection_with_surplus_bytes_is_not_reused concurrent_requests_do_not_block_each_other "
        "waiting_reads_do_not_block_other_calls closing_the_transport_closes_idle_connections "
        "interrupt_after_the_headers_has_no_effect each_address_of_a_host_is_tried "
        "ipv6_host_has_brackets trusted_server_is_used_over_tls each_read_has_its_own_timeout "
        "request_over_a_closed_pooled_connection_is_not_sent_twice pool_timeout_expires",
    ),
    (
        reading(read_other_later_bytes),
        "pieces_are_yielded_when_they_arrive waiting_reads_do_not_block_other_calls "
        "each_read_has_its_own_timeout interrupt_after_the_headers_has_no_effect",
    ),
    (
        for_streamed_gzip(reading(read_other_bytes)),
        "body_is_returned_unchanged pieces_are_yielded_when_they_arrive "
        "finished_body_releases_its_connection_for_reuse",
    ),
    (for_streamed_gzip(reading(end_early)), "truncated_body_is_an_interruption"),
    (
        raising(lambda _: None),
        "unknown_host_is_a_connect_error refused_connection_is_a_connect_error "
        "plain_http_instead_of_tls_is_a_tls_error connect_timeout_expires "
        "truncated_body_is_an_interruption "
        "truncated_gzip_is_an_interruption corrupt_gzip_data_is_a_protocol_error "
        "unsupported_coding_is_a_protocol_error bytes_before_an_error_are_yielded "
        "chunk_overhead_is_limited size_of_the_head_is_limited "
        "size_of_interim_responses_is_limited body_closed_early_closes_its_connection "
        "close_ends_a_read_in_another_thread_or_task close_ends_a_read_over_tls "
        "malformed_response_over_tls_is_a_protocol_error "
        "corrupt_tls_record_in_a_body_is_an_interruption pool_timeout_expires "
        "request_is_sent_once_if_writing_fails interrupt_ends_the_wait_for_headers",
    ),
    (
        raising(generalized),
        "unknown_host_is_a_connect_error read_timeout_limits_the_wait_for_headers "
        "timeout_of_a_read_limits_the_wait_for_a_piece truncated_body_is_an_interruption "
        "request_is_sent_once_if_its_response_fails",
    ),
    (raising(specialized), "unknown_host_is_a_connect_error"),
    (raising(without_text), "unknown_host_is_a_connect_error"),
    (cache_responses(), "connection_is_not_reused_after_connection_close"),
    (
        raising(without_cause),
        "unknown_host_is_a_connect_error bytes_before_an_error_are_yielded "
        "timeout_of_a_read_limits_the_wait_for_a_piece",
    ),
    (raising(caused_by_flux0), "unknown_host_is_a_connect_error"),
    (
        send_twice,
        "every_status_is_returned redirects_are_not_followed "
        "request_over_a_closed_pooled_connection_is_not_sent_twice",
    ),
    (send_again, "request_that_the_server_began_to_read_is_not_resent"),
    (
        send_again_and_raise,
        "request_is_sent_once_if_its_response_fails request_is_sent_once_if_writing_fails",
    ),
    (
        lambda request, _: Urllib3Transport().send(request),
        "finished_body_releases_its_connection_for_reuse trusted_server_is_used_over_tls "
        "responses_without_a_body_end_with_their_head",
    ),
    (
        keep_open,
        "body_closed_early_closes_its_connection garbage_collected_body_closes_its_connection "
        "close_ends_a_read_in_another_thread_or_task close_ends_a_read_over_tls "
        "garbage_collected_body_frees_its_place_in_the_pool",
    ),
    (close_without_the_connection, "body_closed_early_closes_its_connection"),
    (
        forget_to_close,
        "closing_the_transport_closes_idle_connections close_ends_a_read_in_another_thread_or_task",
    ),
    (one_at_a_time(), "concurrent_requests_do_not_block_each_other"),
    (one_read_at_a_time(), "waiting_reads_do_not_block_other_calls"),
    (
        reading(read_whole_body),
        "pieces_are_yielded_when_they_arrive bytes_before_an_error_are_yielded",
    ),
    (
        abandon,
        "read_timeout_limits_the_wait_for_headers request_is_sent_once_if_its_response_fails",
    ),
    (
        trust_any_server,
        "unknown_authority_is_a_tls_error certificate_for_another_host_is_a_tls_error",
    ),
    (trust_any_host, "certificate_for_another_host_is_a_tls_error"),
    (
        reading(fail_and_keep),
        "chunk_overhead_is_limited unsupported_coding_is_a_protocol_error",
    ),
    (
        without_timeouts,
        "read_timeout_limits_the_wait_for_headers timeout_of_a_read_limits_the_wait_for_a_piece "
        "write_timeout_expires connect_timeout_expires connect_timeout_limits_the_tls_handshake "
        "bytes_without_content_do_not_extend_the_timeout pool_timeout_expires",
    ),
    (sending(timeout=Timeout(0.01, 0.01, 0.01, 0.01)), "timeout_none_waits_without_limit"),
    (
        reading(lambda body, _: body.read(0.01)),
        "read_timeout_of_the_request_does_not_apply_to_a_body "
        "whole_body_may_take_longer_than_the_timeout_of_each_read",
    ),
    (
        lambda request, send: send(evolve(request, interrupt=Interrupt())),
        "interrupt_ends_the_wait_for_headers",
    ),
    (interrupt_bodies, "interrupt_after_the_headers_has_no_effect"),
    (fail_after_fire(), "interrupt_after_the_headers_has_no_effect"),
]


class QuickContract(TransportContract, LimitedPoolContract):
    timeout: ClassVar[float] = 0.1
    idle_test_seconds = 0.1
    bug: Bug

    def make_transport(self) -> WrongTransport:
        return WrongTransport(self.bug)

    def make_limited_transport(self) -> WrongTransport:
        return WrongTransport(self.bug, Urllib3Transport(PoolManager(maxsize=1, block=True)))


def arguments_of(test: Any) -> Iterator[dict[str, Any]]:
    """Yield the parameters of each run of a contract's test."""
    marks: list[Any] = getattr(test, "pytestmark", [])
    names = [each.args[0] for each in marks]
    for values in product(*(each.args[1] for each in marks)):
        given: dict[str, Any] = {}
        for name, value in zip(names, values, strict=True):
            given |= {name: value} if isinstance(name, str) else zip(name, value, strict=True)
        yield given


def run_each(test: str, bug: Bug, monkeypatch: pytest.MonkeyPatch, secured: Secured) -> None:
    """Run a test of the contract with all its parameters, over a transport with a bug."""
    contract, function = QuickContract(), getattr(QuickContract, f"test_{test}")
    contract.bug, names = bug, [*signature(function).parameters][1:]
    for arguments in arguments_of(function):
        with ExitStack() as ending:
            transport = contract.make_transport()
            if "limited" in names:
                transport = contract.make_limited_transport()
            harness = contract.make_harness(transport, THREADS, ending)
            given = {**dict.fromkeys(("harness", "trusting", "limited"), harness), **arguments}
            is_trusted = "trusting" in names
            tls = secured.server if is_trusted else server_context(trustme.CA())
            given |= {"tls": tls, "authority": secured.authority}
            given |= {"backend": THREADS, "monkeypatch": monkeypatch}
            if "background" in names:
                started = contract._start(THREADS, ending)  # pyright: ignore[reportPrivateUsage]
                given["background"] = {THREADS: started}
            function(contract, **{name: given[name] for name in names})


DETECTING = {test for _, tests in BUGS for test in tests.split()}
# On a busy machine, the short waits of these tests would fail with a correct transport.
TOO_SHORT = {
    "read_timeout_of_the_request_does_not_apply_to_a_body",
    "whole_body_may_take_longer_than_the_timeout_of_each_read",
}
# The servers of these tests wait for less than a second. All other tests wait for no server.
WAITING = {
    "bytes_without_content_do_not_extend_the_timeout",
    "each_read_has_its_own_timeout",
}


@pytest.mark.parametrize("test", sorted(DETECTING - TOO_SHORT))
def test_contract_accepts_a_transport_without_a_bug(
    test: str, monkeypatch: pytest.MonkeyPatch, secured: Secured
) -> None:
    """A test that always fails would detect each bug."""
    monkeypatch.setattr(QuickContract, "timeout", 10.0)
    run_each(test, lambda request, send: send(request), monkeypatch, secured)


@pytest.mark.parametrize(
    ("bug", "test"),
    [
        pytest.param(bug, test, id=f"{number}-{test}")
        for number, (bug, tests) in enumerate(BUGS)
        for test in tests.split()
    ],
)
@pytest.mark.usefixtures("little_garbage")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Wrong transports leave connections open.
@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_contract_detects_a_bug(
    bug: Bug, test: str, monkeypatch: pytest.MonkeyPatch, secured: Secured
) -> None:
    if test in WAITING:
        monkeypatch.setattr(QuickContract, "timeout", 1.0)
    with pytest.raises((AssertionError, TransportError, pytest.fail.Exception)) as caught:
        run_each(test, bug, monkeypatch, secured)
    assert "from pytest-timeout" not in str(caught.value)
    KEPT.clear()
    gc.collect()


def test_message_for_a_wrong_large_body_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """In CI, pytest shows all differences of two compared values."""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(AssertionError, match="the body must be b'b") as caught:
        check(b"a" * 2000, b"b" * 2000, "the body")
    assert len(str(caught.value)) < 1000


def test_each_test_of_the_contract_detects_a_bug() -> None:
    names = {name.removeprefix("test_") for name in dir(QuickContract) if "test_" in name[:5]}
    assert names - DETECTING == {
        # The bugs would need a longer time, another process or much memory.
        "connection_idle_for_long_is_not_reused",
        "closing_the_transport_during_a_send_returns",
        "decompression_bomb_is_decoded_in_pieces",
        "garbage_collection_at_any_moment_does_not_deadlock",
        "part_of_a_tls_record_does_not_extend_the_timeout",
    }


# --- the contract detects bugs of async transports

AsyncSend = Callable[[Request], Awaitable[Response[Any]]]
AsyncBug = Callable[[Request, AsyncSend], Awaitable[Response[Any]]]


@frozen
class AsyncBody:
    """A response body with these methods."""

    read_async: Callable[[float | None], Awaitable[bytes | None]]
    close_async: Callable[[], Awaitable[object]]


@frozen
class WrongAsyncTransport:
    """An async transport with a bug, over real connections."""

    _bug: AsyncBug
    _transport: HttpxTransport = field(factory=HttpxTransport)

    async def send_async(self, request: Request) -> Response[Any]:
        return await self._bug(request, self._transport.send_async)

    async def close_async(self) -> None:
        await self._transport.close_async()


async def send_without_a_bug(request: Request, send: AsyncSend) -> Response[Any]:
    return await send(request)


async def keep_connections_open(request: Request, send: AsyncSend) -> Response[Any]:
    response = await shield(send(request))

    async def read(timeout: float | None) -> bytes | None:
        piece: bytes | None = await shield(response.body.read_async(timeout))
        return piece

    return evolve(response, body=AsyncBody(read, checkpoint))


async def end_after_a_cancelled_read(request: Request, send: AsyncSend) -> Response[Any]:
    response = await send(request)
    ended = False

    async def read(timeout: float | None) -> bytes | None:
        nonlocal ended
        was_ended, ended = ended, True
        piece: bytes | None = None if was_ended else await response.body.read_async(timeout)
        ended = was_ended
        return piece

    return evolve(response, body=AsyncBody(read, response.body.close_async))


ASYNC_BUGS: list[tuple[AsyncBug, str]] = [
    (keep_connections_open, "cancelled_send_closes_its_connection"),
    (keep_connections_open, "body_closed_on_cancellation_closes_its_connection"),
    (end_after_a_cancelled_read, "cancelled_read_does_not_end_the_body"),
]


class QuickAsyncContract(AsyncTransportContract):
    timeout: ClassVar[float] = 10.0
    bug: AsyncBug

    def make_transport(self) -> WrongAsyncTransport:
        return WrongAsyncTransport(self.bug)


def run_in_asyncio(test: str, bug: AsyncBug) -> None:
    contract, function = QuickAsyncContract(), getattr(QuickAsyncContract, f"test_{test}")
    contract.bug = bug
    for arguments in arguments_of(function):
        with ExitStack() as ending:
            harness = contract.make_harness(contract.make_transport(), "asyncio", ending)
            function(contract, harness, **arguments)


@pytest.mark.parametrize(("bug", "test"), ASYNC_BUGS)
def test_contract_detects_a_bug_of_an_async_transport(
    bug: AsyncBug, test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in_asyncio(test, send_without_a_bug)
    monkeypatch.setattr(QuickAsyncContract, "timeout", 0.1)
    with pytest.raises(AssertionError):
        run_in_asyncio(test, bug)


def test_each_test_of_cancellation_detects_a_bug() -> None:
    names = {name.removeprefix("test_") for name in vars(CancellationContract) if "test_" in name}
    assert names == {test for _, test in ASYNC_BUGS}
