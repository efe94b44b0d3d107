"""Header fields whose values are computed for each attempt, such as a token that is refreshed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Any

from attrs import evolve

from flux0.domain import arguments
from flux0.flows import Await, Flow, SendFlow
from flux0.ports import Request, Response


class ComputedHeaders:
    """Calls each function when a request is about to be sent, and sends what it returns.

    The functions run in the thread or task that makes the call and must not block for long. Those
    that are asynchronous serve asynchronous calls alone. What they raise reaches the caller as it
    is; a value that cannot be sent is an `InvalidArgument`. A field that the call itself sets wins.
    """

    def __init__(self, values: Mapping[str, Callable[[], str | Awaitable[str]]]) -> None:
        self._values = dict(values)

    def __call__(self, request: Request, send: SendFlow) -> Flow[Response[Any]]:
        """Return what the next layer returns."""
        computed: dict[str, object] = {}
        for name, function in self._values.items():
            value = function()
            if not isinstance(value, str) and isawaitable(value):
                value = yield Await(value, f"headers[{name!r}]")
            computed[name] = value
        headers = arguments.headers("headers", computed).merge(request.headers)
        return (yield from send(evolve(request, headers=headers)))
