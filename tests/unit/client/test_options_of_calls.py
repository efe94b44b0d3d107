"""Each option of each public method reaches the requests of the call.

The methods are found by introspection: a new method with options is tested, too.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from attrs import evolve

from flux0 import (
    AsyncConversation,
    AsyncEventStream,
    BackgroundTurns,
    Conversation,
    EventStream,
    Flux0,
    InvalidArgument,
    RetryConfig,
)
from flux0.client.resources import AgentsResource, SessionsResource
from flux0.flows import CallRequest
from flux0.ports import Response
from flux0.testing import FakeTransport
from flux0.usecases.options import CallOptions, TurnOptions, UserOptions
from support.in_memory import in_every_mode, script
from support.modes import in_mode, result_of
from support.transports import Mode

KINDS: tuple[type[Any], ...] = (
    *(AgentsResource, SessionsResource, Conversation, AsyncConversation),
    *(EventStream, AsyncEventStream, BackgroundTurns, Flux0),
)
ACCEPTED = {f"Unpack[{kind.__name__}]": kind for kind in (CallOptions, TurnOptions, UserOptions)}


def accepted(method: Any) -> dict[str, Any]:
    """Return the options that a method accepts, by name."""
    annotations = getattr(inspect.unwrap(method), "__annotations__", {})
    kind = ACCEPTED.get(annotations.get("options", ""))
    return {} if kind is None else kind.__annotations__


METHODS = [
    (kind, name, option)
    for kind in KINDS
    for name, method in vars(kind).items()
    if name != "with_options"  # It sends no request.
    for option in accepted(method)
]
VALUES: dict[str, Any] = {
    "retries": RetryConfig("none"),
    "server_url": "http://other.example",
    "timeout_ms": 7_000,
    "http_headers": {"x-probe": "1"},
    "extra_query": {"probe": "1"},
    "extra_body": {"probe": 1},
    "stream_idle_timeout_ms": 9_000,
    "user": "Zoë",
}
# Options that only the first request has. The events of a turn are listed without its options.
FIRST = {"retries", "timeout_ms", "extra_query", "extra_body", "stream_idle_timeout_ms"}


class Body:
    """A body that records the timeouts of its reads."""

    def __init__(self, body: Any, timeouts: list[float | None]) -> None:
        self._body = body
        self._timeouts = timeouts

    def read(self, timeout: float | None) -> Any:
        self._timeouts.append(timeout)
        return self._body.read(timeout)

    async def read_async(self, timeout: float | None) -> Any:
        self._timeouts.append(timeout)
        return await self._body.read_async(timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


class Recorder:
    """Sends requests to a fake, and records them while `is_recording` is set."""

    def __init__(self, fake: FakeTransport) -> None:
        self.fake = fake
        self.time = fake.clock
        self.is_recording = False
        self.requests: list[CallRequest] = []
        self.timeouts: list[float | None] = []

    def send(self, request: Any) -> Response[Any]:
        return self._recorded(request, self.fake.send(self._known(request)))

    async def send_async(self, request: Any) -> Response[Any]:
        return self._recorded(request, await self.fake.send_async(self._known(request)))

    def _known(self, request: CallRequest) -> CallRequest:
        """Remove the member that the fake, as the server, does not know."""
        return evolve(request, body=request.body and request.body.replace(b',"probe":1', b""))

    def _recorded(self, request: CallRequest, response: Response[Any]) -> Response[Any]:
        if self.is_recording:
            self.requests.append(request)
            if request.stream:
                return evolve(response, body=Body(response.body, self.timeouts))
        return response

    def close(self) -> None: ...

    async def close_async(self) -> None: ...


# Whether a request has the value of the option in `VALUES`.
HAS_OPTION: dict[str, Callable[[CallRequest], bool]] = {
    "retries": lambda request: request.retries is VALUES["retries"],
    "server_url": lambda request: request.url.startswith("http://other.example/"),
    "timeout_ms": lambda request: (request.timeout.read or 60) <= 7,
    "http_headers": lambda request: request.headers.get("x-probe") == "1",
    "extra_query": lambda request: "probe=1" in request.url.partition("?")[2],
    "extra_body": lambda request: b'"probe":1' in (request.body or b""),
    "user": lambda request: "flux0_user_sub=Zo%C3%AB" in request.headers.get("cookie", ""),
}


def is_post(name: str) -> bool:
    """Return whether the first request of a method has a JSON object."""
    return name.startswith(("create", "send", "ask", "start", "conversation"))


async def target(kind: type[Any], name: str, client: Flux0, agent_id: str) -> tuple[Any, Any]:
    """Return an object with the method, and a conversation for it."""
    is_async = name.endswith("_async") or kind in (AsyncConversation, AsyncEventStream)
    open_conversation = client.conversation_async if is_async else client.conversation
    conversation = await result_of(open_conversation(agent=agent_id))
    if kind in (EventStream, AsyncEventStream):
        stream = await result_of(conversation.send("Hi"))
        await result_of(stream.final_messages())
        return stream, conversation
    targets: dict[type[Any], Any] = {
        AgentsResource: client.agents,
        SessionsResource: client.sessions,
        BackgroundTurns: BackgroundTurns(),
        Flux0: client,
    }
    return targets.get(kind, conversation), conversation


def valid_arguments(method: Callable[..., Any], conversation: Any, agent_id: str) -> dict[str, Any]:
    """Return values for the parameters that a call of a method needs."""
    values = {
        "agent_id": agent_id,
        "session_id": conversation.session_id,
        "content": "Hi",
        "name": "An agent",
        "type_": "fake",
        "conversation": conversation,
    }
    parameters = inspect.signature(method).parameters.values()
    needed = {each.name: values[each.name] for each in parameters if each.default is each.empty}
    if method.__name__ == "find_turn":
        needed["correlation_id"] = "RID(1)::1"
    elif method.__name__.startswith("conversation"):
        needed["agent"] = agent_id
    return needed


@pytest.mark.parametrize(
    ("kind", "name", "option"),
    METHODS,
    ids=[f"{kind.__name__}.{name}-{option}" for kind, name, option in METHODS],
)
def test_option_reaches_the_requests_of_the_call(kind: type[Any], name: str, option: str) -> None:
    async def call() -> None:
        fake = FakeTransport()
        recorder = Recorder(fake)
        client = Flux0(transport=recorder)
        owner, conversation = await target(kind, name, client, fake.agent_id)
        method = getattr(owner, name)
        arguments = valid_arguments(method, conversation, fake.agent_id)
        recorder.is_recording = True
        arguments[option] = VALUES[option]
        if option == "extra_body" and not is_post(name):
            with pytest.raises(InvalidArgument, match="extra_body"):
                await result_of(method(**arguments))
            assert recorder.requests == []
            return
        result = await result_of(method(**arguments))
        if hasattr(result, "final_messages"):
            await result_of(result.final_messages())
        elif hasattr(result, "wait"):
            await result.wait_async()
        elif kind is Flux0:
            await result_of(result.next_offset())
        requests = recorder.requests[:1] if option in FIRST else recorder.requests
        assert requests
        if option == "stream_idle_timeout_ms":
            assert recorder.timeouts[0] == 9
        else:
            assert all(map(HAS_OPTION[option], requests))

    asyncio.run(call())


# The options that a method does not have, and that other methods have.
FOREIGN = [
    (kind, name, option)
    for kind in KINDS
    for name, method in vars(kind).items()
    for option in VALUES
    if accepted(method) and option not in inspect.signature(method).parameters
]


@pytest.mark.parametrize(
    ("kind", "name", "option"),
    FOREIGN,
    ids=[f"{kind.__name__}.{name}-{option}" for kind, name, option in FOREIGN],
)
def test_option_of_another_method_is_rejected_with_the_options_of_the_method(
    kind: type[Any], name: str, option: str
) -> None:
    async def call() -> None:
        fake = FakeTransport()
        owner, conversation = await target(kind, name, Flux0(transport=fake), fake.agent_id)
        method = getattr(owner, name)
        arguments = valid_arguments(method, conversation, fake.agent_id)
        sent = len(fake.calls)
        with pytest.raises(InvalidArgument) as caught:
            await result_of(method(**arguments, **{option: VALUES[option]}))
        assert caught.value.argument == option
        options = ", ".join(accepted(vars(kind)[name]))
        assert str(caught.value).endswith(f"of this method: its options are {options}")
        assert len(fake.calls) == sent

    asyncio.run(call())


def test_type_checkers_reject_the_option_of_another_method() -> None:
    """In strict mode, mypy reports each comment "type: ignore" that is not necessary."""
    with Flux0(transport=script()) as flux0:
        with pytest.raises(InvalidArgument):
            flux0.agents.list(user="bob")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
        with pytest.raises(InvalidArgument):
            flux0.sessions.list(stream_idle_timeout_ms=5)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


def test_methods_with_options_are_found() -> None:
    assert {kind for kind, _, _ in METHODS} == set(KINDS)
    assert {option for _, _, option in METHODS} == VALUES.keys()


@pytest.mark.parametrize(
    ("name", "of_client", "of_call"),
    [
        ("timeout", "timeout_ms, in milliseconds", "timeout_ms, in milliseconds"),
        ("max_retries", "retry_config", "retries"),
        ("base_url", "server_url", "server_url"),
        ("api_key", 'headers={"authorization": ...}', 'http_headers={"authorization": ...}'),
        ("default_headers", "headers", "http_headers"),
    ],
)
def test_options_of_other_libraries_are_rejected_with_the_name_to_use(
    name: str, of_client: str, of_call: str
) -> None:
    transport = script()
    options: Any = {name: "value"}
    with pytest.raises(TypeError) as caught:
        Flux0(transport=transport, **options)
    assert str(caught.value) == f"unexpected keyword argument {name!r}: use {of_client}"
    with Flux0(transport=transport) as flux0:
        for call in (flux0.agents.list, partial(flux0.agents.retrieve, agent_id="0123456789")):
            with pytest.raises(TypeError) as caught:
                call(**options)
            assert str(caught.value) == f"unexpected keyword argument {name!r}: use {of_call}"


@in_every_mode
async def test_unknown_options_of_calls_are_rejected_before_sending(mode: Mode) -> None:
    transport = script()
    unknown: Any = {"user_id": 1}
    async with in_mode(mode, Flux0(transport=transport)) as flux0:
        with pytest.raises(TypeError, match=r"^unexpected keyword argument 'user_id'$"):
            await flux0.sessions.create_async(agent_id="0123456789", **unknown)
    assert transport.requests == []


def test_signature_shows_each_option() -> None:
    for kind, name, option in METHODS:
        parameters = inspect.signature(getattr(kind, name)).parameters
        shown = parameters[option]
        assert "options" not in parameters
        assert shown.kind is inspect.Parameter.KEYWORD_ONLY
        assert shown.default is None
        assert shown.annotation == accepted(getattr(kind, name))[option].__forward_arg__
