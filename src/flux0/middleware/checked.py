"""Checks the user's middleware and the responses that it returns."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from inspect import isasyncgenfunction, isclass, iscoroutinefunction
from typing import Any, cast

from flux0.domain.api_errors import APIError
from flux0.domain.errors import InvalidArgument
from flux0.domain.http import is_event_stream
from flux0.flows import CallRequest, Flow, Middleware, SendFlow
from flux0.ports import Response


def checked(layer: Middleware, policy: Middleware) -> Middleware:
    """Return a middleware that calls `layer` and checks the response that it returns.

    If `layer` returns a response with an error status, `policy` raises an `APIError`. If `layer`
    returns an object that is not a valid `Response`, the middleware raises TypeError.

    Raises:
        InvalidArgument: `layer` is not a function, or is async.
    """
    if isclass(layer) or not callable(layer):
        raise InvalidArgument("middleware", f"must contain functions, not {layer!r}")
    for function in (layer, type(layer).__call__):
        if iscoroutinefunction(function) or isasyncgenfunction(function):
            kind = "function" if iscoroutinefunction(function) else "generator"
            advice = "write def instead of async def, and yield Await(...) to await"
            problem = f"must contain generator functions, not the async {kind} {layer!r}: {advice}"
            raise InvalidArgument("middleware", problem)

    def run(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        flow = layer(request, send)
        if not isinstance(cast("object", flow), Generator):
            advice = "send the request with `response = yield from send(request)`"
            problem = f"must be a generator function, but returned {flow!r}: {advice}"
            raise TypeError(f"the middleware {layer!r} {problem}")
        response = yield from flow
        if not isinstance(cast("object", response), Response):
            problem = f"returned {response!r}, not a Response"
            advice = "end the function with `return response`"
            raise TypeError(f"the middleware {layer!r} {problem}: {advice}")
        is_stream = request.is_streaming(response.status_code) and is_event_stream(response.headers)
        body = response.body
        if is_stream and not (hasattr(body, "read") or hasattr(body, "read_async")):
            problem = f"returned {body!r} as the body of a stream"
            advice = "return the response of `send`, or a body that is a ByteStream"
            raise TypeError(f"the middleware {layer!r} {problem}: {advice}")
        return response

    def run_and_check(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        try:
            return (yield from policy(request, partial(run, send=send)))
        except APIError as error:
            error.attach_request(request.operation, request.method, request.url)
            raise

    return run_and_check
