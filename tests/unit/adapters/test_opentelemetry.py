"""The spans of the OpenTelemetry middleware."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest
from attrs import evolve, frozen
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from flux0 import APIError, BackoffStrategy, Flux0, RetryConfig, TransportError
from flux0.adapters.opentelemetry import OpenTelemetry
from flux0.domain.errors import MissingDependency
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import http_response
from support.in_memory import JSON
from support.sending import AGENTS

AGENT = b'{"id": "7", "name": "Drizzle", "type": "weather", "created_at": "2025-01-21T23:44:48Z"}'


@frozen
class Tracing:
    """A client with tracing, and the exporter that keeps its spans."""

    flux0: Flux0
    exporter: InMemorySpanExporter

    def span(self) -> ReadableSpan:
        (span,) = self.exporter.get_finished_spans()
        return span


def traced(url: str, retries: RetryConfig | None = None) -> Tracing:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry = OpenTelemetry(provider)
    client = Flux0(url, middleware=[telemetry], on_retry=telemetry.on_retry, retry_config=retries)
    return Tracing(client, exporter)


def test_call_creates_one_client_span_with_http_attributes() -> None:
    with ByteServer(http_response(AGENT, headers=JSON.items())) as server:
        tracing = traced(server.url.replace("//", "//user:secret@"))
        with tracing.flux0 as flux0:
            flux0.agents.retrieve(agent_id="7")
    span = tracing.span()
    assert span.name == "GET /api/agents/{agent_id}"
    assert span.kind is SpanKind.CLIENT
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "url.full": f"{server.url}/api/agents/7",
        "url.template": "/api/agents/{agent_id}",
        "server.address": server.host,
        "server.port": server.port,
        "flux0.operation": "agents.retrieve",
        "http.response.status_code": 200,
    }
    assert span.status.status_code is StatusCode.UNSET
    context = span.get_span_context()
    assert context is not None
    trace_id, span_id = server.requests[0].headers["traceparent"].split("-")[1:3]
    assert (trace_id, span_id) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")


def test_error_status_is_recorded_in_the_span() -> None:
    refusal = http_response(b'{"detail": "no"}', status="403 Forbidden", headers=JSON.items())
    with ByteServer(refusal) as server:
        tracing = traced(server.url)
        with tracing.flux0 as flux0, pytest.raises(APIError):
            flux0.agents.list()
    span = tracing.span()
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "403"
    assert (span.attributes or {})["http.response.status_code"] == 403


def test_transport_error_span_has_error_type_and_default_port() -> None:
    tracing = traced("https://flux0.invalid", RetryConfig("none"))
    with tracing.flux0 as flux0, pytest.raises(TransportError):
        flux0.agents.list()
    assert (tracing.span().attributes or {})["error.type"] == "ConnectError"
    assert (tracing.span().attributes or {})["server.port"] == 443


def test_retry_is_an_event_of_the_span() -> None:
    quick = RetryConfig("backoff", evolve(BackoffStrategy(), initial_interval=1))
    with ByteServer(http_response(status="503 Busy"), AGENTS) as server:
        tracing = traced(server.url, quick)
        with tracing.flux0 as flux0:
            flux0.agents.list()
    (event,) = tracing.span().events
    assert event.name == "retry"
    assert (event.attributes or {})["error.type"] == "ServerError"
    assert (event.attributes or {})["http.request.resend_count"] == 1


def test_missing_opentelemetry_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "flux0.adapters.opentelemetry")

    with pytest.raises(MissingDependency) as caught:
        import_module("flux0.adapters.opentelemetry")

    message = "OpenTelemetry needs the package opentelemetry: pip install"
    assert str(caught.value) == f"{message} 'flux0-client[opentelemetry]'"
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
