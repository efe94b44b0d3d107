"""An observer that records traces and metrics with OpenTelemetry.

Turns follow the semantic conventions for generative AI, version 0.1.0 (`invoke_agent` and
`execute_tool`). Attempts follow the stable semantic conventions for HTTP client spans and metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextvars import Token
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast
from urllib.parse import urlsplit

from attrs import define, field

from flux0._version import __version__
from flux0.domain.api_errors import APIError
from flux0.domain.errors import AgentError, MissingDependency, StreamError, TransportError
from flux0.domain.json_text import json_text
from flux0.domain.stored_models import ContentPart, MessageData, ReasoningPart
from flux0.observers import AttemptEnd, Call, CallEnd, Observer, TurnEnd

try:
    from opentelemetry import context, metrics, propagate, trace
    from opentelemetry.trace import Span, SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as _error:
    raise MissingDependency(
        f"OpenTelemetry needs the package {_error.name}: pip install 'flux0-client[opentelemetry]'"
    ) from _error

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from flux0.domain.messages.tool_calls import TimedToolCall
    from flux0.domain.stored_models import ToolCallPart
    from flux0.turn_store import TurnStats

_Attributes: TypeAlias = "dict[str, str | int | float]"

_DEFAULT_PORTS = {"http": 80, "https": 443}

# The upper bounds of the histograms' buckets in seconds, from OpenTelemetry's conventions.
_TURN_BUCKETS = tuple(0.01 * 2**power for power in range(14))
_HTTP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_HISTOGRAMS = (
    ("gen_ai.client.operation.duration", "GenAI operation duration.", _TURN_BUCKETS),
    (
        "gen_ai.client.operation.time_to_first_chunk",
        "Time from sending the message to the first event.",
        _TURN_BUCKETS,
    ),
    ("http.client.request.duration", "Duration of HTTP client requests.", _HTTP_BUCKETS),
)
# `trace_parent` has this format even if the program has configured another propagator for requests,
# such as B3.
_TRACE_CONTEXT: Final = TraceContextTextMapPropagator()
_TRACE_PARENT: Final = "traceparent"
# Metrics contain at most this number of agent names, because each name adds time series. All other
# names are replaced by `_OTHER`.
_MAX_AGENTS: Final = 100


@define
class _Observed:
    """The spans of a call in progress. A call that starts a turn lasts until the turn ends.

    Attributes:
        span: the span for the call or turn.
        context: the OpenTelemetry context that contains the span.
        token: the token with which `context` is detached.
        start: the span's start, in nanoseconds since 1970.
        server: the attributes with the server's address and port, for spans and metrics.
        attempt: the span for the attempt in progress.
        attempt_token: the token with which the attempt's context is detached.
    """

    span: Span
    context: Context
    token: Token[Context]
    start: int
    server: _Attributes
    attempt: Span = field(init=False)
    attempt_token: Token[Context] = field(init=False)


class OpenTelemetry(Observer):
    """Records a span for each turn, call and attempt, and metrics of turns and attempts.

        Flux0(observers=[OpenTelemetry()])

    A turn's span starts before the message is sent, and ends when the call fails, or when the
    stream ends, fails or is closed. Each request contains the context of its attempt in its
    headers, so that the server's spans become children of the attempt's span.

    Args:
        tracer_provider: The provider of the tracer. Default: OpenTelemetry's global provider.
        meter_provider: The provider of the meter. Default: OpenTelemetry's global provider.
        contents: Whether to record the content of messages, and the arguments and results of tools.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        *,
        contents: bool = False,
    ) -> None:
        self._contents = contents
        self._calls: dict[Call, _Observed] = {}
        self._agents: dict[str, None] = {}
        self._tracer = trace.get_tracer("flux0", __version__, tracer_provider)
        meter = metrics.get_meter("flux0", __version__, meter_provider)
        self._turn_seconds, self._first_event_seconds, self._attempt_seconds = (
            meter.create_histogram(name, "s", text, explicit_bucket_boundaries_advisory=buckets)
            for name, text, buckets in _HISTOGRAMS
        )

    def on_call_start(self, call: Call) -> None:
        """Start the span of a call or of a turn."""
        server, name, kind = _server(call), call.operation, SpanKind.INTERNAL
        attributes = server | _known(
            ("flux0.operation", call.operation),
            ("gen_ai.conversation.id", call.session_id),
            ("gen_ai.agent.id", call.agent_id),
            ("gen_ai.agent.name", call.agent_name),
        )
        if call.starts_turn:
            name, kind = _turn_name(call.agent_name), SpanKind.CLIENT
            attributes |= _INVOKE_AGENT
            if self._contents:
                part = {"type": "text", "content": call.content}
                attributes["gen_ai.input.messages"] = _json([{"role": "user", "parts": [part]}])
        start = time_ns()
        span = self._tracer.start_span(name, kind=kind, attributes=attributes, start_time=start)
        within = trace.set_span_in_context(span)
        self._calls[call] = _Observed(span, within, context.attach(within), start, server)

    def on_attempt_start(self, call: Call, number: int) -> Mapping[str, str]:
        """Start the span of an attempt, and return header fields that propagate its context."""
        observed = self._calls[call]
        attributes = observed.server | _known(
            ("http.request.method", call.method),
            ("url.full", call.url),
            ("http.request.resend_count", number - 1 or None),
        )
        name, kind = f"{call.method} {call.route}", SpanKind.CLIENT
        span = self._tracer.start_span(name, observed.context, kind, attributes)
        # The value `suppress_instrumentation` in the context prevents a second span for the same
        # attempt: with this value, the instrumentation of an HTTP library, such as httpx, records
        # no span.
        within = context.set_value(
            "suppress_instrumentation", value=True, context=trace.set_span_in_context(span)
        )
        observed.attempt, observed.attempt_token = span, context.attach(within)
        fields: dict[str, str] = {}
        propagate.inject(fields, within)
        return fields

    def on_attempt_end(self, call: Call, attempt: AttemptEnd) -> None:
        """End the span of an attempt, and record its duration."""
        observed = self._calls[call]
        context.detach(observed.attempt_token)
        status = _known(("http.response.status_code", attempt.status_code))
        observed.attempt.set_attributes(status)
        outcome = status | self._end_span(observed.attempt, _failure(attempt.error))
        attributes = {"http.request.method": call.method, **observed.server, **outcome}
        self._attempt_seconds.record(attempt.seconds, attributes)

    def trace_parent(self, call: Call) -> str | None:
        """Return a turn's span as a `traceparent`, for `link_turn`; None if the turn has ended."""
        fields: dict[str, str] = {}
        if (observed := self._calls.get(call)) is not None:
            _TRACE_CONTEXT.inject(fields, observed.context)
        return fields.get(_TRACE_PARENT)

    def on_call_end(self, call: Call, end: CallEnd) -> None:
        """End the span of a call. If the call has started a turn, `on_turn_end` ends the span."""
        observed = self._calls[call]
        context.detach(observed.token)
        if call.starts_turn and end.error is None:
            return
        del self._calls[call]
        outcome = self._end_span(observed.span, _failure(end.error))
        if call.starts_turn:
            self._turn_seconds.record(end.seconds, {**_INVOKE_AGENT, **observed.server, **outcome})

    def on_first_event(self, call: Call, seconds: float) -> None:
        """Record the time to the first event of a turn."""
        observed = self._calls[call]
        observed.span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)
        self._first_event_seconds.record(seconds, {**_INVOKE_AGENT, **observed.server})

    def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
        """End the span of a turn, and record its tool calls and its duration."""
        observed = self._calls.pop(call)
        span, end = observed.span, observed.start + round(turn.seconds * 1e9)
        attributes = _known(
            ("gen_ai.agent.id", turn.agent_id),
            ("gen_ai.agent.name", turn.agent_name),
            ("flux0.turn.ending", turn.ending),
            ("flux0.turn.correlation_id", turn.correlation_id),
            ("flux0.turn.event_count", turn.event_count),
        )
        span.set_attributes(attributes)
        span.update_name(_turn_name(turn.agent_name))
        for tool_call in turn.tool_calls:
            self._record_tool_call(observed, tool_call, end)
        if self._contents:
            parts = list(_parts(turn))
            messages = [{"role": "assistant", "parts": parts}] if parts else []
            span.set_attribute("gen_ai.output.messages", _json(messages))
        outcome = self._end_span(span, turn.error or turn.agent_error, end)
        outcome |= _known(
            ("flux0.turn.ending", turn.ending), ("gen_ai.agent.name", self._agent(turn.agent_name))
        )
        self._turn_seconds.record(turn.seconds, {**_INVOKE_AGENT, **observed.server, **outcome})

    def _agent(self, name: str | None) -> str | None:
        if name is not None and len(self._agents) < _MAX_AGENTS:
            self._agents[name] = None
        return name if name is None or name in self._agents else "_OTHER"

    def _record_tool_call(self, turn: _Observed, timed: TimedToolCall, turn_end: int) -> None:
        call = timed.call
        attributes = _known(
            ("gen_ai.operation.name", "execute_tool"),
            ("gen_ai.tool.name", call.tool_name),
            # The span has no attribute for the tool call's id if the agent has sent null as the id.
            ("gen_ai.tool.call.id", call.tool_call_id),
        )
        if self._contents:
            attributes["gen_ai.tool.call.arguments"] = _json(call.args)
            if call.result is not None:
                attributes["gen_ai.tool.call.result"] = _json(call.result.data)
        # The times of a tool call come from the server's clock, which may differ from the local
        # clock. Limit the times, so that the tool call's span is within the turn's span.
        duration = min(round((timed.seconds or 0) * 1e9), turn_end - turn.start)
        start = turn_end if timed.started_at is None else round(timed.started_at * 1e9)
        start = min(max(start, turn.start), turn_end - duration)
        name = f"execute_tool {_utf8(call.tool_name)}"
        span = self._tracer.start_span(name, turn.context, attributes=attributes, start_time=start)
        span.end(start + duration)

    def _end_span(
        self, span: Span, error: BaseException | None, end: int | None = None
    ) -> _Attributes:
        attributes: _Attributes = {}
        if error is not None:
            status = str(error.status_code) if isinstance(error, APIError) else None
            attributes["error.type"] = status or type(error).__qualname__
            span.set_attributes(attributes)
            # flux0 itself writes the messages of transport errors and stream errors. Messages of
            # other errors may contain text from the agent or the server, which is recorded only if
            # `contents` is True.
            own = isinstance(error, (TransportError, StreamError))
            shown = self._contents or (own and not isinstance(error, AgentError))
            span.set_status(StatusCode.ERROR, _utf8(error) if shown else None)
        span.end(end)
        return attributes


class HasTraceParent(Protocol):
    """An object with a `trace_parent`, such as a `BackgroundTurn`."""

    @property
    def trace_parent(self) -> str | None: ...


def link_turn(turn: HasTraceParent) -> None:
    """Add a link from the current span to the span of a background turn.

    Call this function in the request that joins and relays the turn. The current span is then the
    span that the instrumentation of the web framework has created for the request. If the turn has
    no span, nothing is added.

    Args:
        turn: The turn from `BackgroundTurns.join`. Any process may have started it.
    """
    if turn.trace_parent is not None:
        linked = _TRACE_CONTEXT.extract({_TRACE_PARENT: turn.trace_parent}, context.Context())
        turn_span = trace.get_current_span(linked).get_span_context()
        trace.get_current_span().add_link(turn_span)


class HasStats(Protocol):
    """An object with `stats`, such as `BackgroundTurns`."""

    def stats(self) -> TurnStats: ...


def observe_background_turns(
    turns: HasStats, meter_provider: metrics.MeterProvider | None = None
) -> None:
    """Record the numbers of `BackgroundTurns.stats` as metrics, whenever metrics are collected.

    The meter provider keeps a reference to `turns`.

    Args:
        turns: The `BackgroundTurns` of this process.
        meter_provider: The provider of the meter. Default: OpenTelemetry's global provider.
    """
    meter = metrics.get_meter("flux0", __version__, meter_provider)
    gauge, counter = meter.create_observable_up_down_counter, meter.create_observable_counter

    def observe(number: Callable[[TurnStats], int]) -> list[Any]:
        def callback(_: object) -> list[metrics.Observation]:
            return [metrics.Observation(number(turns.stats()))]

        return [callback]

    gauge("flux0.background_turns.running", observe(lambda stats: stats.running_turns), "{turn}")
    gauge(
        "flux0.background_turns.followed",
        observe(lambda stats: stats.store.followed_turns),
        "{turn}",
    )
    gauge("flux0.relays.open", observe(lambda stats: stats.open_relays), "{relay}")
    gauge("flux0.turn_store.available", observe(lambda stats: stats.store.is_available))
    counter("flux0.turn_store.failures", observe(lambda stats: stats.store.failures), "{failure}")


_INVOKE_AGENT: _Attributes = {
    "gen_ai.operation.name": "invoke_agent",
    "gen_ai.provider.name": "flux0",
}


def _turn_name(agent_name: str | None) -> str:
    return "invoke_agent" if agent_name is None else f"invoke_agent {_utf8(agent_name)}"


def _server(call: Call) -> _Attributes:
    parts = urlsplit(call.url)
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    return {"server.address": parts.hostname or "", "server.port": port}


def _failure(error: BaseException | None) -> BaseException | None:
    # In OpenTelemetry's conventions, a cancellation, such as a `CancelledError` of asyncio or a
    # `KeyboardInterrupt`, is not an error.
    return error if isinstance(error, Exception) else None


def _parts(turn: TurnEnd) -> Iterator[dict[str, Any]]:
    for message in turn.messages:
        for part in message.data.parts if isinstance(message.data, MessageData) else ():
            match part:
                case ContentPart(content):
                    yield {"type": "text", "content": _text(content)}
                case ReasoningPart(reasoning):
                    yield {"type": "reasoning", "content": _text(reasoning)}
                case _:
                    # The part is a tool call, because the other types of parts were handled above.
                    call = cast("ToolCallPart", part)
                    name, id_ = call.tool_name, call.tool_call_id
                    yield {"type": "tool_call", "id": id_, "name": name, "arguments": call.args}


def _known(*attributes: tuple[str, str | int | None]) -> _Attributes:
    known = (attribute for attribute in attributes if attribute[1] is not None)
    return {key: value if type(value) is int else _utf8(value) for key, value in known}


def _text(value: object) -> str:
    return value if isinstance(value, str) else _json(value)


def _json(value: object) -> str:
    return _utf8(json_text(value, ascii=False, default=str))


def _utf8(value: object) -> str:
    """Return `value` as text that UTF-8 can encode: lone surrogates are escaped as in JSON.

    The JSON of an agent may contain lone surrogates. If a span contains one, an OTLP exporter loses
    the whole batch of spans.
    """
    return str(value).encode(errors="backslashreplace").decode()
