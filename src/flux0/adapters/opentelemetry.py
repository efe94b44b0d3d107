"""A middleware for tracing with OpenTelemetry.

Its spans follow the semantic conventions for HTTP client spans, version 1.23 and later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from attrs import evolve

from flux0._version import __version__
from flux0.domain.errors import APIError, MissingDependency
from flux0.domain.headers import Headers

try:
    from opentelemetry import propagate, trace
    from opentelemetry.trace import SpanKind, StatusCode
except ModuleNotFoundError as _error:
    raise MissingDependency(
        f"OpenTelemetry needs the package {_error.name}: pip install 'flux0-client[opentelemetry]'"
    ) from _error

if TYPE_CHECKING:
    from flux0.domain.retrying import RetryDetails
    from flux0.flows import Flow, SendFlow
    from flux0.ports import Request, Response

_DEFAULT_PORTS = {"http": 80, "https": 443}


class OpenTelemetry:
    """Creates one client span for each call. Retries become events of this span.

    The span of a stream ends when the response headers have been received. The context of the span
    is sent in the request headers, so that spans of the server can become its children. Pass
    `on_retry` to the client, too:

        telemetry = OpenTelemetry()
        Flux0(middleware=[telemetry], on_retry=telemetry.on_retry)

    Args:
        tracer_provider: Creates the tracer. Default: the global tracer provider of OpenTelemetry.
    """

    def __init__(self, tracer_provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("flux0", __version__, tracer_provider)

    def __call__(self, request: Request, send: SendFlow) -> Flow[Response[Any]]:
        """Send `request` in a span and return its response."""
        with self._tracer.start_as_current_span(
            f"{request.method} {request.route}",
            kind=SpanKind.CLIENT,
            attributes=_attributes(request),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                response = yield from send(_with_context(request))
            except Exception as error:
                kind = type(error).__qualname__
                if isinstance(error, APIError):
                    kind = str(error.status_code)
                    span.set_attribute("http.response.status_code", error.status_code)
                span.set_attribute("error.type", kind)
                span.set_status(StatusCode.ERROR, str(error))
                raise
            span.set_attribute("http.response.status_code", response.status_code)
            return response

    def on_retry(self, details: RetryDetails) -> None:
        """Add an event for a retry to the current span."""
        trace.get_current_span().add_event(
            "retry",
            {
                "http.request.resend_count": details.attempt,
                "error.type": type(details.cause).__qualname__,
                "flux0.retry.delay_ms": details.delay_ms,
            },
        )


def _attributes(request: Request) -> dict[str, str | int]:
    parts = urlsplit(request.url)
    return {
        "http.request.method": request.method,
        "url.full": request.url,
        "url.template": request.route,
        "server.address": parts.hostname or "",
        "server.port": parts.port or _DEFAULT_PORTS[parts.scheme],
        "flux0.operation": request.operation,
    }


def _with_context(request: Request) -> Request:
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    headers = Headers(tuple(carrier.items())).merge(request.headers)
    return evolve(request, headers=headers)
