"""The OpenTelemetry observer's spans and metrics."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

import anyio
import pytest
from attrs import evolve, field, frozen
from opentelemetry import context, propagate, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from flux0 import (
    AgentError,
    APIError,
    BackgroundTurns,
    BackoffStrategy,
    ConnectError,
    Flux0,
    Flux0Error,
    Participant,
    RetryConfig,
    StoreState,
    StreamIdleTimeout,
    TransportError,
    TurnStats,
)
from flux0.adapters.opentelemetry import OpenTelemetry, link_turn, observe_background_turns
from flux0.domain.errors import MissingDependency
from flux0.observers import AttemptEnd, Call, CallEnd, Observer
from flux0.ports import Request
from flux0.testing import (
    AgentReply,
    AgentStep,
    CallTool,
    Fail,
    FakeClock,
    FakeTransport,
    FallSilent,
    Gate,
    GiveResult,
    Pause,
    Reason,
    Report,
    Respond,
    Say,
    SendChunk,
    Truncate,
)
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import http_response
from support.in_memory import JSON, Script, in_both_loops, in_every_mode
from support.modes import in_mode
from support.transports import Mode

AGENT = b'{"id": "7", "name": "Drizzle", "type": "weather", "created_at": "2025-01-21T23:44:48Z"}'
AT_ONCE = RetryConfig(backoff=BackoffStrategy(initial_interval=0))
TOOL = CallTool("weather", {"city": "Paris"})
STEPS: list[AgentStep] = [
    *(Pause(1), Reason("Paris?"), TOOL, Pause(2)),
    *(GiveResult(TOOL, "rain"), Say("It rains.", pieces=3)),
]
TURN: AgentReply = STEPS
HTTP_SECONDS = "http.client.request.duration"
SERVER = {"server.address": "127.0.0.1", "server.port": 8080}


@frozen
class Telemetry:
    """Providers that keep all spans and metrics in memory."""

    spans: InMemorySpanExporter = field(factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = field(factory=InMemoryMetricReader)
    traces: TracerProvider = field(factory=TracerProvider)

    def __attrs_post_init__(self) -> None:
        self.traces.add_span_processor(SimpleSpanProcessor(self.spans))

    def observer(self, *, contents: bool = False) -> OpenTelemetry:
        return OpenTelemetry(self.traces, MeterProvider([self.reader]), contents=contents)

    def span(self, name: str) -> ReadableSpan:
        (span,) = (span for span in self.spans.get_finished_spans() if span.name == name)
        return span

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans.get_finished_spans()]

    def points(self, name: str) -> list[HistogramDataPoint]:
        """Return the data points of a histogram."""
        data = self.reader.get_metrics_data()
        assert data is not None
        metrics = [
            metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
        ]
        return [point for metric in metrics for point in metric.data.data_points]  # type: ignore[misc]


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    assert span.parent is not None
    return span.parent == parent.get_span_context()


async def turn(
    mode: Mode,
    telemetry: Telemetry,
    reply: AgentReply = "Hello there",
    *faults: Any,
    contents: bool = False,
    events: int | None = None,
    server_time: float = 0,
    **options: Any,
) -> Any:
    """Run a turn and read `events` events of its stream, or all; return the stream."""
    fake = FakeTransport(agent_name="Drizzle", clock=FakeClock(server_time))
    fake.script(reply)
    session = Flux0(transport=fake).sessions.create(agent_id=fake.agent_id)
    if faults:
        fake.inject(*faults)
    observer = telemetry.observer(contents=contents)
    client = Flux0(transport=fake, observers=[observer], retry_config=AT_ONCE, **options)
    async with in_mode(mode, client) as flux0:
        stream: Any = await flux0.sessions.create_event_async(session_id=session.id, content="Hi")
        async with stream:
            with suppress(Flux0Error):
                async for _ in stream:
                    if stream.event_count == events:
                        break
    return stream


# --- calls


def test_call_has_a_span_with_its_attempt_below_it() -> None:
    telemetry = Telemetry()
    with (
        ByteServer(http_response(AGENT, headers=JSON.items())) as server,
        Flux0(
            server.url.replace("//", "//user:secret@"), observers=[telemetry.observer()]
        ) as flux0,
    ):
        flux0.agents.retrieve(agent_id="7")
    call = telemetry.span("agents.retrieve")
    attempt = telemetry.span("GET /api/agents/{agent_id}")
    assert (call.kind, attempt.kind) == (SpanKind.INTERNAL, SpanKind.CLIENT)
    assert is_child(attempt, call)
    address = {"server.address": server.host, "server.port": server.port}
    assert attributes(call) == {"flux0.operation": "agents.retrieve", **address}
    assert attributes(attempt) == {
        "http.request.method": "GET",
        "url.full": f"{server.url}/api/agents/7",
        **address,
        "http.response.status_code": 200,
    }
    assert attempt.status.status_code is StatusCode.UNSET
    context = attempt.get_span_context()
    assert context is not None
    trace_id, span_id = server.requests[0].headers["traceparent"].split("-")[1:3]
    assert (trace_id, span_id) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")


@in_every_mode
async def test_each_attempt_is_a_span_and_a_data_point(mode: Mode) -> None:
    telemetry, fake = Telemetry(), FakeTransport()
    fake.inject(Respond(503))
    client = Flux0(transport=fake, observers=[telemetry.observer()], retry_config=AT_ONCE)
    async with in_mode(mode, client) as flux0:
        await flux0.agents.list_async()

    first, second, call = telemetry.spans.get_finished_spans()
    assert is_child(first, call)
    assert is_child(second, call)
    assert first.status.status_code is StatusCode.ERROR
    assert attributes(first)["error.type"] == "503"
    assert attributes(first)["http.response.status_code"] == 503
    assert "http.request.resend_count" not in attributes(first)
    assert attributes(second)["http.request.resend_count"] == 1
    assert (call.name, call.status.status_code) == ("agents.list", StatusCode.UNSET)
    method = {"http.request.method": "GET", **SERVER}
    assert [dict(each.attributes or {}) for each in telemetry.points(HTTP_SECONDS)] == [
        {**method, "http.response.status_code": 503, "error.type": "503"},
        {**method, "http.response.status_code": 200},
    ]


def test_error_status_is_recorded_in_both_spans() -> None:
    telemetry, fake = Telemetry(), FakeTransport()
    with Flux0(transport=fake, observers=[telemetry.observer()]) as flux0:
        fake.inject(Respond(403, "the detail"))
        with pytest.raises(APIError):
            flux0.agents.list()
    for span in telemetry.spans.get_finished_spans():
        assert span.status.status_code is StatusCode.ERROR
        assert attributes(span)["error.type"] == "403"
        assert span.status.description is None


@in_every_mode
async def test_status_of_a_response_is_recorded_even_if_its_body_cannot_be_read(mode: Mode) -> None:
    telemetry, fake = Telemetry(), FakeTransport()
    fake.inject(Truncate(after_bytes=1))
    client = Flux0(
        transport=fake, observers=[telemetry.observer()], retry_config=RetryConfig("none")
    )
    async with in_mode(mode, client) as flux0:
        with pytest.raises(TransportError) as caught:
            await flux0.agents.list_async()
    expected = {"http.response.status_code": 200, "error.type": type(caught.value).__name__}
    assert expected.items() <= attributes(telemetry.span("GET /api/agents")).items()
    (point,) = telemetry.points(HTTP_SECONDS)
    assert expected.items() <= dict(point.attributes or {}).items()


@in_both_loops
async def test_cancellation_is_not_an_error(mode: Mode) -> None:
    class Cancelled(Script):
        async def send_async(self, request: Request) -> Any:
            scope.cancel()
            await anyio.sleep_forever()

    telemetry = Telemetry()
    client = Flux0(transport=Cancelled([]), observers=[telemetry.observer()])
    async with in_mode(mode, client) as flux0:
        for call in (
            flux0.agents.list_async(),
            flux0.sessions.create_event_async(session_id="0123456789", content="Hi"),
        ):
            with anyio.CancelScope() as scope:
                await call
    assert len(telemetry.names) == 4
    for span in telemetry.spans.get_finished_spans():
        assert span.status.status_code is StatusCode.UNSET
        assert "error.type" not in attributes(span)
    for name in (HTTP_SECONDS, "gen_ai.client.operation.duration"):
        for point in telemetry.points(name):
            assert "error.type" not in (point.attributes or {})


def test_transport_error_span_has_error_type_and_default_port() -> None:
    telemetry = Telemetry()
    with (
        Flux0(
            "https://flux0.invalid",
            observers=[telemetry.observer()],
            retry_config=RetryConfig("none"),
        ) as flux0,
        pytest.raises(TransportError) as caught,
    ):
        flux0.agents.list()
    span = telemetry.span("GET /api/agents")
    assert attributes(span)["error.type"] == "ConnectError"
    assert attributes(span)["server.port"] == 443
    assert str(caught.value).endswith(str(span.status.description))


@in_every_mode
async def test_attempt_is_the_current_span_while_it_is_sent(mode: Mode) -> None:
    """The attempt's span is the parent of an instrumented HTTP library's spans."""
    current: list[trace.Span] = []

    def token() -> str:
        current.append(trace.get_current_span())
        return "token"

    telemetry, fake = Telemetry(), FakeTransport()
    client = Flux0(
        transport=fake, observers=[telemetry.observer()], headers={"authorization": token}
    )
    async with in_mode(mode, client) as flux0:
        await flux0.agents.list_async()
        assert trace.get_current_span() is trace.INVALID_SPAN

    assert current[0].get_span_context() == telemetry.span("agents.list").get_span_context()


@in_every_mode
async def test_instrumentation_of_http_libraries_is_suppressed_during_an_attempt(
    mode: Mode,
) -> None:
    """Otherwise, each attempt would have two client spans. The plain key is a public name."""

    def is_suppressed() -> object:
        return context.get_value("suppress_instrumentation")

    suppressed: list[object] = []

    def agent(_: object) -> str:
        suppressed.append(is_suppressed())
        return "Hello"

    telemetry, fake = Telemetry(), FakeTransport(agent)
    client = Flux0(transport=fake, observers=[telemetry.observer()])
    async with in_mode(mode, client) as flux0:
        conversation = await flux0.conversation_async(agent=fake.agent_id)
        async with await conversation.send("Hi") as stream:
            assert not is_suppressed()
            async for _ in stream:
                pass
    assert suppressed == [True]
    assert not is_suppressed()


# --- turns


@in_every_mode
async def test_complete_turn_is_one_client_span(mode: Mode) -> None:
    telemetry = Telemetry()
    stream = await turn(mode, telemetry, TURN)

    span = telemetry.span("invoke_agent Drizzle")
    assert span.kind is SpanKind.CLIENT
    assert attributes(span) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "flux0",
        "gen_ai.agent.id": stream.agent.id,
        "gen_ai.agent.name": "Drizzle",
        "gen_ai.conversation.id": stream.session_id,
        "gen_ai.response.time_to_first_chunk": stream.seconds_to_first_event,
        "flux0.operation": "sessions.create_event",
        "flux0.turn.ending": "confirmed",
        "flux0.turn.correlation_id": stream.correlation_id,
        "flux0.turn.event_count": stream.event_count,
        **SERVER,
    }
    assert span.status.status_code is StatusCode.UNSET
    assert seconds(span) == pytest.approx(3)
    assert is_child(telemetry.span("POST /api/sessions/{session_id}/events/stream"), span)


@in_every_mode
async def test_tool_calls_are_spans_within_the_turn(mode: Mode) -> None:
    await check_tool_span(mode, server_time=0)
    await check_tool_span(mode, server_time=9e9)  # The server's clock is ahead.


async def check_tool_span(mode: Mode, server_time: float) -> None:
    telemetry = Telemetry()
    stream = await turn(mode, telemetry, TURN, server_time=server_time)
    tool, whole = telemetry.span("execute_tool weather"), telemetry.span("invoke_agent Drizzle")
    assert is_child(tool, whole)
    assert tool.kind is SpanKind.INTERNAL
    assert attributes(tool) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "weather",
        "gen_ai.tool.call.id": stream.tool_calls[0].tool_call_id,
    }
    assert seconds(tool) == pytest.approx(2)
    assert tool.start_time is not None
    assert whole.start_time is not None
    assert tool.start_time >= whole.start_time
    assert tool.end_time is not None
    assert whole.end_time is not None
    assert tool.end_time <= whole.end_time


@in_every_mode
async def test_tool_call_starts_at_the_time_of_the_server(mode: Mode) -> None:
    telemetry, server_time = Telemetry(), time.time()
    steps: list[AgentStep] = [Pause(100), TOOL, Pause(2), GiveResult(TOOL, "rain"), Pause(100)]
    await turn(mode, telemetry, steps, server_time=server_time)
    tool = telemetry.span("execute_tool weather")
    assert tool.start_time == pytest.approx((server_time + 100) * 1e9, rel=0, abs=1e6)


def test_tool_call_is_not_longer_than_its_turn() -> None:
    """The server's clock may be faster. Here, the pauses of the agent take no real time."""
    telemetry, fake = Telemetry(), FakeTransport(TURN, agent_name="Drizzle")
    with fake.serve() as url, Flux0(url, observers=[telemetry.observer()]) as flux0:
        flux0.conversation(agent=fake.agent_id).ask("Hi")
    tool, whole = telemetry.span("execute_tool weather"), telemetry.span("invoke_agent Drizzle")
    assert (tool.start_time, tool.end_time) == (whole.start_time, whole.end_time)


@in_every_mode
async def test_tool_call_without_a_result_has_no_duration(mode: Mode) -> None:
    telemetry = Telemetry()
    await turn(mode, telemetry, [TOOL, CallTool("clock"), Pause(2)], contents=True)

    assert seconds(telemetry.span("execute_tool clock")) == 0
    tool = telemetry.span("execute_tool weather")
    assert seconds(tool) == 0
    assert "gen_ai.tool.call.result" not in attributes(tool)


@in_every_mode
async def test_contents_are_recorded_only_on_request(mode: Mode) -> None:
    silent, talkative = Telemetry(), Telemetry()
    await turn(mode, silent, [*STEPS, Fail("the cause")])
    await turn(mode, talkative, TURN, contents=True)

    recorded = "".join(span.to_json() for span in silent.spans.get_finished_spans())
    for content in ("Hi", "Paris", "rain", "the cause"):
        assert content not in recorded
    span = attributes(talkative.span("invoke_agent Drizzle"))
    assert json.loads(span["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "Hi"}]}
    ]
    (answer,) = json.loads(span["gen_ai.output.messages"])
    assert answer.keys() == {"role", "parts"}
    assert answer["role"] == "assistant"
    assert [part["type"] for part in answer["parts"]] == ["reasoning", "tool_call", "text"]
    assert answer["parts"][1]["arguments"] == {"city": "Paris"}
    assert answer["parts"][2]["content"] == "It rains."
    tool = attributes(talkative.span("execute_tool weather"))
    assert json.loads(tool["gen_ai.tool.call.arguments"]) == {"city": "Paris"}
    assert json.loads(tool["gen_ai.tool.call.result"]) == "rain"


@in_every_mode
async def test_contents_that_are_not_text_have_the_form_of_the_conventions(mode: Mode) -> None:
    call: dict[str, Any] = {
        "type": "tool_call",
        "tool_call_id": None,
        "tool_name": "weather",
        "args": {},
    }
    steps: list[AgentStep] = [
        SendChunk("e1", [{"op": "add", "path": "", "value": {"tool_calls": [call]}}]),
        SendChunk("e2", [{"op": "add", "path": "", "value": {"card": "Graupelböen"}}]),
    ]
    telemetry = Telemetry()
    await turn(mode, telemetry, steps, contents=True)

    assert "gen_ai.tool.call.id" not in attributes(telemetry.span("execute_tool weather"))
    (answer,) = json.loads(
        attributes(telemetry.span("invoke_agent Drizzle"))["gen_ai.output.messages"]
    )
    assert answer["parts"] == [
        {"type": "tool_call", "id": None, "name": "weather", "arguments": {}},
        {"type": "text", "content": '{"card": "Graupelböen"}'},
    ]


def test_lone_surrogates_are_escaped_because_exporters_encode_text_as_utf8() -> None:
    odd = "a\ud800"
    call: dict[str, Any] = {"tool_call_id": odd, "tool_name": odd, "args": {odd: odd}}
    patches: list[dict[str, Any]] = [
        {"op": "add", "path": "/tool_calls/0", "value": {"type": "tool_call", **call}}
    ]
    chunk = SendChunk("e1", patches, metadata={"agent_id": odd, "agent_name": odd})
    telemetry, fake = Telemetry(), FakeTransport([chunk, Report("error", odd)])
    with Flux0(transport=fake, observers=[telemetry.observer(contents=True)]) as flux0:
        agent = evolve(flux0.agents.retrieve(agent_id=fake.agent_id), name=odd)
        with pytest.raises(AgentError):
            flux0.conversation(agent=agent).ask("Hi")

    turn = telemetry.span("invoke_agent a\\ud800")
    assert str(turn.status.description).endswith("a\\ud800")
    assert attributes(turn)["gen_ai.agent.name"] == "a\\ud800"
    (answer,) = json.loads(attributes(turn)["gen_ai.output.messages"])
    assert answer["parts"][0]["arguments"] == {odd: odd}
    for span in telemetry.spans.get_finished_spans():
        for value in (span.name, span.status.description, *attributes(span).values()):
            assert str(value).encode()


@in_every_mode
async def test_interrupted_turn_is_an_error(mode: Mode) -> None:
    telemetry = Telemetry()
    await turn(mode, telemetry, [Say("Hello there", pieces=5)], Truncate(after_events=2))

    span = telemetry.span("invoke_agent Drizzle")
    assert attributes(span)["error.type"] == "StreamInterrupted"
    assert attributes(span)["flux0.turn.ending"] == "interrupted"
    assert span.status.status_code is StatusCode.ERROR
    assert "after 2 events" in str(span.status.description)


@in_every_mode
async def test_silent_turn_is_an_error(mode: Mode) -> None:
    telemetry = Telemetry()
    await turn(mode, telemetry, [FallSilent()], contents=True, stream_idle_timeout_ms=5_000)

    span = telemetry.span("invoke_agent")
    assert attributes(span)["gen_ai.output.messages"] == "[]"
    assert attributes(span)["error.type"] == "StreamIdleTimeout"
    assert span.status.status_code is StatusCode.ERROR
    assert seconds(span) == pytest.approx(5)
    (point,) = telemetry.points("gen_ai.client.operation.duration")
    assert (point.attributes or {})["error.type"] == "StreamIdleTimeout"
    assert "gen_ai.agent.name" not in (point.attributes or {})


@in_every_mode
async def test_turn_without_events_names_the_agent_of_its_conversation(mode: Mode) -> None:
    telemetry, fake = Telemetry(), FakeTransport(agent_name="Drizzle")
    fake.script(*[[FallSilent()]] * 4)
    client = Flux0(transport=fake, observers=[telemetry.observer()], stream_idle_timeout_ms=5_000)
    async with in_mode(mode, client) as flux0:
        agent = await flux0.agents.first_async()
        first = await flux0.conversation_async(agent=agent)
        assert first.session is not None
        for conversation, known in (
            (first, Participant(agent.id, "Drizzle")),
            (await flux0.conversation_async(agent=agent.id), Participant(agent.id)),
            (await flux0.conversation_async(session=first.session), Participant(agent.id)),
            (await flux0.conversation_async(session=first.session_id), None),
        ):
            telemetry.spans.clear()
            stream = await conversation.send("Hi")
            with pytest.raises(StreamIdleTimeout):
                await stream.final_messages()
            assert stream.agent == known
            named = known is not None and known.name is not None
            span = attributes(telemetry.span("invoke_agent Drizzle" if named else "invoke_agent"))
            assert span.get("gen_ai.agent.id") == (None if known is None else agent.id)
            assert span.get("gen_ai.agent.name") == ("Drizzle" if named else None)


@in_every_mode
async def test_turn_that_is_closed_early_is_recorded_without_an_error(mode: Mode) -> None:
    telemetry = Telemetry()
    await turn(mode, telemetry, [Say("Hello there", pieces=5)], events=3)

    span = telemetry.span("invoke_agent Drizzle")
    assert attributes(span)["flux0.turn.ending"] == "closed"
    assert "error.type" not in attributes(span)
    assert span.status.status_code is StatusCode.UNSET


@in_every_mode
async def test_error_of_the_agent_is_the_error_of_the_turn(mode: Mode) -> None:
    telemetry = Telemetry()
    await turn(mode, telemetry, [Say("Oh"), Fail("the cause")])

    span = telemetry.span("invoke_agent Drizzle")
    assert attributes(span)["error.type"] == "AgentError"
    assert span.status.status_code is StatusCode.ERROR


@in_every_mode
async def test_message_that_is_refused_is_a_failed_turn(mode: Mode) -> None:
    telemetry = Telemetry()
    client = Flux0(transport=FakeTransport(), observers=[telemetry.observer()])
    async with in_mode(mode, client) as flux0:
        with pytest.raises(APIError) as caught:
            await flux0.sessions.create_event_async(session_id="0123456789", content="Hi")

    error_type = str(caught.value.status_code)
    assert attributes(telemetry.span("invoke_agent"))["error.type"] == error_type
    (point,) = telemetry.points("gen_ai.client.operation.duration")
    assert (point.attributes or {})["error.type"] == error_type


@in_every_mode
async def test_turns_have_metrics(mode: Mode) -> None:
    telemetry = Telemetry()
    await turn(mode, telemetry, TURN, Respond(429))

    whole = {"gen_ai.operation.name": "invoke_agent", "gen_ai.provider.name": "flux0", **SERVER}
    ended = {**whole, "flux0.turn.ending": "confirmed", "gen_ai.agent.name": "Drizzle"}
    (duration,) = telemetry.points("gen_ai.client.operation.duration")
    assert (duration.count, duration.sum, dict(duration.attributes or {})) == (1, 3, ended)
    assert duration.explicit_bounds[:2] == (0.01, 0.02)
    assert duration.explicit_bounds[-1] == 81.92
    (first,) = telemetry.points("gen_ai.client.operation.time_to_first_chunk")
    assert (first.count, first.sum, dict(first.attributes or {})) == (1, 1, whole)
    assert len(telemetry.points(HTTP_SECONDS)) == 2


def test_metrics_have_the_durations_in_seconds() -> None:
    telemetry = Telemetry()
    observer = telemetry.observer()
    error = ConnectError("connection refused")
    for failed in (False, True):
        call = Call("sessions.create_event", "POST", "http://127.0.0.1:8080", "/", content="Hi")
        observer.on_call_start(call)
        observer.on_attempt_start(call, 1)
        observer.on_attempt_end(call, AttemptEnd(1, 0.5, None, error if failed else None))
        observer.on_call_end(call, CallEnd(2.5, error if failed else None))
    assert [point.sum for point in telemetry.points(HTTP_SECONDS)] == [0.5, 0.5]
    (failed_turns,) = telemetry.points("gen_ai.client.operation.duration")
    assert failed_turns.sum == 2.5


def test_span_of_a_turn_has_the_same_format_with_another_propagator_of_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def inject(fields: dict[str, str], _: object) -> None:
        fields["b3"] = "1-2"

    telemetry, call = Telemetry(), Call("sessions.create_event", "POST", "http://a", "/")
    observer = telemetry.observer()
    monkeypatch.setattr(propagate, "inject", inject)
    observer.on_call_start(call)
    assert observer.on_attempt_start(call, 1) == {"b3": "1-2"}
    trace_parent = observer.trace_parent(call)
    observer.on_attempt_end(call, AttemptEnd(1, 0.5, 200, None))
    observer.on_call_end(call, CallEnd(2.5, None))
    span = telemetry.span("sessions.create_event").get_span_context()
    assert span is not None
    assert str(trace_parent).startswith(f"00-{span.trace_id:032x}-{span.span_id:016x}-")


def test_metrics_have_a_limited_number_of_agents() -> None:
    telemetry, fake = Telemetry(), FakeTransport()
    with Flux0(transport=fake, observers=[telemetry.observer()]) as flux0:
        session_id = flux0.conversation(agent=fake.agent_id).session_id
        for number in [*range(102), 99, 101]:
            metadata = {"agent_id": "7", "agent_name": f"Agent {number}"}
            fake.script([SendChunk("m", [{"op": "add", "path": "/-", "value": "a"}], 0, metadata)])
            flux0.conversation(session=session_id).ask("Hi")

    counts = {
        (point.attributes or {})["gen_ai.agent.name"]: point.count
        for point in telemetry.points("gen_ai.client.operation.duration")
    }
    assert len(counts) == 101
    assert (counts["Agent 98"], counts["Agent 99"], counts["_OTHER"]) == (1, 2, 3)


def values_of_turns(telemetry: Telemetry) -> list[int]:
    names = ["background_turns.running", "background_turns.followed", "relays.open"]
    names += "turn_store.available", "turn_store.failures"
    points = [telemetry.points(f"flux0.{name}") for name in names]
    return [point.value for (point,) in points]  # type: ignore[attr-defined]


def test_each_number_of_background_turns_has_its_own_metric() -> None:
    class Busy:
        def stats(self) -> TurnStats:
            store = StoreState(is_available=False, failures=3, followed_turns=2)
            return TurnStats(running_turns=1, open_relays=4, is_draining=False, store=store)

    telemetry = Telemetry()
    observe_background_turns(Busy(), MeterProvider([telemetry.reader]))
    assert values_of_turns(telemetry) == [1, 2, 4, 0, 3]


def test_background_turns_have_metrics() -> None:
    telemetry, gate = Telemetry(), Gate()
    fake, turns = FakeTransport([Say("Hello"), gate]), BackgroundTurns()
    observe_background_turns(turns, MeterProvider([telemetry.reader]))
    values = partial(values_of_turns, telemetry)
    with Flux0(transport=fake) as flux0:
        turn = turns.start(flux0.conversation(agent=fake.agent_id), "Hi")
        relay = turn.relay()
        assert next(relay)
        assert values() == [1, 0, 1, 1, 0]
        gate.open()
        assert list(relay) == []
        turns.close(drain_seconds=20)
        assert values() == [0, 0, 0, 1, 0]


@in_every_mode
async def test_span_of_a_request_that_joins_a_turn_links_the_span_of_the_turn(mode: Mode) -> None:
    telemetry, fake = Telemetry(), FakeTransport("Hello", agent_name="Drizzle")
    tracer, turns = telemetry.traces.get_tracer("app"), in_mode(mode, BackgroundTurns())
    client = Flux0(transport=fake, observers=[Observer(), telemetry.observer()])
    async with in_mode(mode, client) as flux0:
        conversation = await flux0.conversation_async(agent=fake.agent_id)
        with tracer.start_as_current_span("POST /message"):
            turn = await turns.start_async(conversation, "Hi")
        await turn.wait_async()
        joined = await turns.join_async(turn.session_id)
        assert joined is not None
        with tracer.start_as_current_span("GET /relay"):
            link_turn(joined)

    (link,) = telemetry.span("GET /relay").links
    span = telemetry.span("invoke_agent Drizzle").get_span_context()
    assert span is not None
    assert (link.context.trace_id, link.context.span_id) == (span.trace_id, span.span_id)


def test_turn_without_a_span_is_not_linked() -> None:
    telemetry, fake, turns = Telemetry(), FakeTransport("Hello"), BackgroundTurns()
    with Flux0(transport=fake) as flux0:
        turn = turns.start(flux0.conversation(agent=fake.agent_id), "Hi")
        turn.wait()
    with telemetry.traces.get_tracer("app").start_as_current_span("GET /relay"):
        link_turn(turn)

    assert turn.trace_parent is None
    assert telemetry.span("GET /relay").links == ()


def test_turn_is_a_child_of_the_span_of_the_user() -> None:
    telemetry, fake = Telemetry(), FakeTransport("Hello", agent_name="Drizzle")
    tracer = telemetry.traces.get_tracer("app")
    with Flux0(transport=fake, observers=[telemetry.observer()]) as flux0:
        conversation = flux0.conversation(agent=fake.agent_id)
        with tracer.start_as_current_span("request") as outer, conversation.send("Hi") as stream:
            for _ in stream:
                assert trace.get_current_span() is outer

    assert is_child(telemetry.span("invoke_agent Drizzle"), telemetry.span("request"))


def test_nothing_is_kept_after_the_end() -> None:
    calls: list[Call] = []

    class Recorder(Observer):
        def on_call_start(self, call: Call) -> None:
            calls.append(call)

    observer, fake = Telemetry().observer(), FakeTransport("Hello")
    with Flux0(transport=fake, observers=[Recorder(), observer]) as flux0:
        flux0.conversation(agent=fake.agent_id).ask("Hi")
    assert vars(observer)["_calls"] == {}
    assert observer.trace_parent(calls[-1]) is None


def test_missing_opentelemetry_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "flux0.adapters.opentelemetry")

    with pytest.raises(MissingDependency) as caught:
        import_module("flux0.adapters.opentelemetry")

    message = "OpenTelemetry needs the package opentelemetry: pip install"
    assert str(caught.value) == f"{message} 'flux0-client[opentelemetry]'"
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
