"""Headers whose values are computed for each attempt, such as a token that expires."""

from __future__ import annotations

from inspect import isawaitable
from typing import Any

from attrs import evolve

from flux0.domain import arguments
from flux0.domain.errors import Flux0Error, mark_user_error
from flux0.flows import Await, CallRequest, Flow, SendFlow
from flux0.ports import Response


def compute_headers(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
    """Call `request.header_functions`, send the request with the results, and return the response.

    The functions run in the call's thread or task and must not block for long. Async functions work
    only in async calls. Exceptions from the functions are re-raised, and the call is not retried.
    An invalid header value raises `InvalidArgument`.
    """
    computed: dict[str, object] = {}
    try:
        for name, function in request.header_functions.items():
            value = function()
            if not isinstance(value, str) and isawaitable(value):
                value = yield Await(value, f"headers[{name!r}]", request)
            computed[name] = value
    except Flux0Error as error:
        mark_user_error(error)
        raise
    if computed:
        headers = arguments.headers("headers", computed).merge(request.headers)
        request = evolve(request, headers=headers)
    return (yield from send(request))
