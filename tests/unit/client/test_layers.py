"""The chain of a client: the order of its layers, the user's middleware, and `FLUX0_DEBUG`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import evolve

from flux0 import BackoffStrategy, Flux0, RetryConfig, RetryDetails
from flux0.domain.api_errors import APIError, ServerError
from flux0.domain.errors import ConnectError, DecodeError, InvalidArgument
from flux0.domain.headers import Headers
from flux0.domain.stored_models import Agents
from flux0.flows import CallRequest, Flow, Middleware, SendFlow, Sleep
from flux0.observers import Call, Observer
from flux0.ports import Request, Response
from support.in_memory import JSON, SSE, Script, chunk, in_every_mode, script, scripted_response
from support.modes import in_mode
from support.transports import Mode

AT_ONCE = RetryConfig(backoff=BackoffStrategy(initial_interval=0))
NO_AGENTS = b'{"data": []}'
URL = "http://127.0.0.1:8080/api/agents"


class EventLog(Observer):
    """Records the calls of each layer in one list."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    def layer(self, name: str) -> Middleware:
        def record(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
            self.entries.append(f"{name}: {request.operation} {request.attempt}")
            response = yield from send(request)
            self.entries.append(f"{name}: {response.body!r}")
            return response

        return record

    def compute(self) -> str:
        self.entries.append("headers")
        return "computed"

    def on_attempt_start(self, call: Call, number: int) -> None:
        self.entries.append(f"observer: attempt {number}")

    def on_retry(self, details: RetryDetails) -> None:
        self.entries.append(f"retry: {type(details.cause).__name__}")

    def debug(self, msg: str, *args: Any) -> None:
        verb = next(word for word in ("attempt", "failed", "returned") if word in msg)
        self.entries.append(f"log: {verb} {args[-1]}")


class LoggedTransport(Script):
    """A scripted transport that records its calls in an `EventLog`."""

    def __init__(self, log: EventLog, *answers: Response[Any] | BaseException) -> None:
        super().__init__(list(answers))
        self._log = log

    def send(self, request: Request) -> Response[Any]:
        self._log.entries.append(f"transport: {request.headers['x-computed']}")
        return super().send(request)


@in_every_mode
async def test_order_of_layers_is_as_documented(mode: Mode) -> None:
    log = EventLog()
    client = Flux0(
        transport=LoggedTransport(
            log,
            scripted_response(status=503),
            ConnectError("refused"),
            scripted_response(NO_AGENTS),
        ),
        middleware=[log.layer("first"), log.layer("second")],
        on_retry=log.on_retry,
        headers={"x-computed": log.compute},
        observers=[log],
        debug_logger=log,
        retry_config=AT_ONCE,
    )

    async with in_mode(mode, client) as flux0:
        await flux0.agents.list_async()

    assert log.entries == [
        "first: agents.list 1",
        "second: agents.list 1",
        *("headers", "observer: attempt 1"),
        *("log: attempt none", "transport: computed"),
        "log: failed 503: Service Unavailable",
        "retry: ServerError",
        *("headers", "observer: attempt 2"),
        *("log: attempt none", "transport: computed"),
        "log: failed refused",
        "retry: ConnectError",
        *("headers", "observer: attempt 3"),
        *("log: attempt none", "transport: computed"),
        'log: returned {"data": []}',
        f"second: {NO_AGENTS!r}",
        f"first: {NO_AGENTS!r}",
    ]


# --- the user's middleware


async def list_through(mode: Mode, layer: Middleware, transport: Script) -> Agents:
    async with in_mode(mode, Flux0(transport=transport, middleware=[layer])) as flux0:
        return await flux0.agents.list_async()


@in_every_mode
async def test_middleware_can_change_request_and_response_or_skip_sending(mode: Mode) -> None:
    def change(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        response = yield from send(evolve(request, url="http://other.example/"))
        return evolve(response, body=NO_AGENTS)

    def cached(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        yield from ()
        return evolve(scripted_response(), body=NO_AGENTS)

    transport = script(scripted_response(b"no JSON"))

    for layer in (change, cached):
        assert list(await list_through(mode, layer, transport)) == []
    assert [request.url for request in transport.requests] == ["http://other.example/"]


@in_every_mode
async def test_middleware_can_catch_an_error_sleep_and_send_again(mode: Mode) -> None:
    caught: list[APIError] = []

    def retrying(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        try:
            return (yield from send(evolve(request, retries=RetryConfig("none"))))
        except ServerError as error:
            caught.append(error)
        yield Sleep(0)
        return (yield from send(request))

    transport = script(scripted_response(status=503), scripted_response(NO_AGENTS))

    assert list(await list_through(mode, retrying, transport)) == []
    assert [error.attempts for error in caught] == [1]
    assert len(transport.requests) == 2


@in_every_mode
async def test_exceptions_of_middleware_are_raised_unchanged(mode: Mode) -> None:
    class RefusedError(Exception):
        pass

    def refuse(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        raise RefusedError

    def refuse_response(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        yield from send(request)
        raise RefusedError

    transport = script(scripted_response(NO_AGENTS))

    for layer in (refuse, refuse_response):
        with pytest.raises(RefusedError):
            await list_through(mode, layer, transport)
    assert len(transport.requests) == 1


@in_every_mode
async def test_middleware_without_yield_from_raises_type_error(mode: Mode) -> None:
    def without_yield_from(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        response: Response[Any] = yield send(request)  # type: ignore[misc]  # pyright: ignore[reportReturnType] - the mistake
        return response

    with pytest.raises(TypeError, match="yield from"):
        await list_through(mode, without_yield_from, script())


@in_every_mode
async def test_error_status_from_a_middleware_raises_the_api_error(mode: Mode) -> None:
    """An outer middleware gets the error. Sending a message raises it like any other call."""
    seen: list[str] = []

    def look(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        try:
            return (yield from send(request))
        except ServerError as error:
            seen.append(error.operation)
            raise

    def unavailable(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        yield from ()
        return Response(503, Headers(), b'{"detail": "the circuit is open"}')

    transport = script()
    client = Flux0(transport=transport, middleware=[look, unavailable])
    async with in_mode(mode, client) as flux0:
        for call in (
            flux0.agents.list_async,
            partial(flux0.sessions.create_event_async, session_id="s", content="Hi"),
        ):
            with pytest.raises(ServerError) as caught:
                await call()
            error = caught.value
            assert (error.status_code, error.message) == (503, "the circuit is open")
            assert str(error) == f"{error.method} {error.url}: 503: the circuit is open"
            assert error.sent == "no"

    assert seen == ["agents.list", "sessions.create_event"]
    assert transport.requests == []


def without_return(request: CallRequest, send: SendFlow) -> Any:
    yield from send(request)


def without_yield(request: CallRequest, send: SendFlow) -> Any:
    return scripted_response()


def returning_text(request: CallRequest, send: SendFlow) -> Any:
    yield from ()
    return Response(200, Headers(tuple(SSE.items())), b"text")


def returning_iterator(request: CallRequest, send: SendFlow) -> Any:
    yield from ()
    return Response(200, Headers(tuple(SSE.items())), iter((chunk("a"),)))


def returning_async_generator(request: CallRequest, send: SendFlow) -> Any:
    return async_generator(request, send)


@in_every_mode
async def test_mistake_in_a_middleware_raises_a_type_error_with_the_fix(mode: Mode) -> None:
    for layer, problem in (
        (
            without_return,
            "without_return .*returned None.*: end the function with `return response`",
        ),
        (without_yield, "without_yield .*must be a generator function"),
        (returning_async_generator, "must be a generator function"),
    ):
        with pytest.raises(TypeError, match=problem):
            await list_through(mode, layer, script(scripted_response(NO_AGENTS)))
    for layer, body in ((returning_text, "b'text'"), (returning_iterator, "<tuple_iterator")):
        async with in_mode(mode, Flux0(transport=script(), middleware=[layer])) as flux0:
            with pytest.raises(TypeError, match=rf"returned {body}.* as the body of a stream"):
                await flux0.sessions.create_event_async(session_id="s", content="Hi")


@in_every_mode
async def test_body_of_a_middleware_is_a_stream_only_in_the_response_to_a_message(
    mode: Mode,
) -> None:
    def returning_json(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        yield from ()
        return Response(200, Headers(tuple(JSON.items())), NO_AGENTS)

    with pytest.raises(DecodeError):
        await list_through(mode, returning_text, script())
    async with in_mode(mode, Flux0(transport=script(), middleware=[returning_json])) as flux0:
        with pytest.raises(DecodeError, match=r"expected text/event-stream, got application/json"):
            await flux0.sessions.create_event_async(session_id="s", content="Hi")


@in_every_mode
async def test_body_of_a_middleware_needs_only_the_methods_of_its_mode(mode: Mode) -> None:
    def replacing(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        response = yield from send(request)
        names = ("read", "close") if mode == "sync" else ("read_async", "close_async")
        return evolve(
            response, body=SimpleNamespace(**{each: getattr(response.body, each) for each in names})
        )

    transport = script(scripted_response(chunk("a"), headers=SSE))
    async with in_mode(mode, Flux0(transport=transport, middleware=[replacing])) as flux0:
        stream = await flux0.sessions.create_event_async(session_id="s", content="Hi")
        assert len([event async for event in stream]) == 1


@in_every_mode
async def test_middleware_sees_body_as_bytes_or_as_stream_of_a_turn(mode: Mode) -> None:
    bodies: list[Any] = []

    def look(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        response = yield from send(request)
        bodies.append(response.body)
        return response

    transport = script(scripted_response(NO_AGENTS), scripted_response(chunk("a"), headers=SSE))

    async with in_mode(mode, Flux0(transport=transport, middleware=[look])) as flux0:
        await flux0.agents.list_async()
        stream = await flux0.sessions.create_event_async(session_id="s", content="Hi")
        assert len([event async for event in stream]) == 1

    assert bodies[0] == NO_AGENTS
    assert not isinstance(bodies[1], bytes)


async def async_function(request: CallRequest, send: SendFlow) -> Any: ...


async def async_generator(request: CallRequest, send: SendFlow) -> Any:
    yield


class AsyncCallable:
    async def __call__(self, request: CallRequest, send: SendFlow) -> Any: ...


@pytest.mark.parametrize(
    ("middleware", "problem"),
    [
        (async_function, "must be a list of functions: pass"),
        (3, "must be a list of functions: pass"),
        ([3], "must contain functions, not 3"),
        ([AsyncCallable], "must contain functions, not <class"),
        ([async_function], "must contain generator functions, not the async function"),
        ([AsyncCallable()], "must contain generator functions, not the async function"),
        ([async_generator], "must contain generator functions, not the async generator .* write"),
    ],
)
def test_invalid_middleware_is_rejected(middleware: Any, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem) as caught:
        Flux0(transport=script(), middleware=middleware)

    assert caught.value.argument == "middleware"


@pytest.mark.parametrize(
    ("argument", "value", "problem"),
    [
        ("on_retry", "log", "must be a sync function, not 'log'"),
        ("on_retry", async_function, "must be a sync function"),
        ("debug_logger", print, "must be a logging.Logger"),
    ],
)
def test_invalid_function_or_logger_is_rejected(argument: str, value: Any, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem) as caught:
        Flux0(transport=script(), **{argument: value})

    assert caught.value.argument == argument


@in_every_mode
async def test_context_variable_of_a_middleware_is_visible_to_the_caller(mode: Mode) -> None:
    last: ContextVar[Response[Any]] = ContextVar("last")

    def keep(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        last.set(response := (yield from send(request)))
        return response

    transport = script(scripted_response(NO_AGENTS, headers=Headers((("x-id", "7"),))))
    await in_mode(mode, Flux0(transport=transport, middleware=[keep])).agents.list_async()

    assert (last.get().status_code, last.get().headers["x-id"]) == (200, "7")


# --- FLUX0_DEBUG


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The package's logger without handlers. The old state is restored after the test."""
    logger = logging.getLogger("flux0")
    kept = (logger.level, logger.handlers[:], logger.propagate)
    logger.handlers.clear()
    yield logger
    logger.setLevel(kept[0])
    logger.handlers[:] = kept[1]
    logger.propagate = kept[2]


@pytest.mark.parametrize(
    ("value", "logs"),
    [
        *((value, True) for value in ("1", "true", "YES", "on")),
        *((value, False) for value in ("", "0", "false", "no", "2")),
    ],
)
def test_flux0_debug_logs_to_standard_error(
    value: str,
    logs: bool,
    logger: logging.Logger,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger.propagate = False
    monkeypatch.setenv("FLUX0_DEBUG", value)
    transport = script(scripted_response(NO_AGENTS), scripted_response(NO_AGENTS))

    for _ in range(2):
        with Flux0(transport=transport, headers={"authorization": "secret"}) as flux0:
            flux0.agents.list()

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (4 if logs else 0), "two clients share one handler"
    if logs:
        assert f"flux0 GET {URL} attempt=1" in lines[0]
        assert "'authorization': '***'" in lines[0]
        assert f"flux0 GET {URL} returned 200" in lines[1]


@pytest.mark.parametrize("name", ["flux0", "mine"])
def test_flux0_debug_keeps_existing_log_handlers(
    name: str,
    logger: logging.Logger,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, name)
    monkeypatch.setenv("FLUX0_DEBUG", "1")
    own = None if name == "flux0" else logging.getLogger(name)

    with Flux0(transport=script(scripted_response(NO_AGENTS)), debug_logger=own) as flux0:
        flux0.agents.list()

    assert logger.handlers == []
    assert [(record.name, record.levelname) for record in caplog.records] == [(name, "DEBUG")] * 2
