"""The routes of the API, and which of them a request goes to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import field, frozen

from flux0.ports import Request


@frozen
class Route:
    """How one operation of the API is reached."""

    operation: str
    method: str
    template: str
    _pattern: re.Pattern[str] = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.template)
        object.__setattr__(self, "_pattern", re.compile(pattern))

    def path_arguments(self, path: str) -> Mapping[str, str] | None:
        """Return what stands for the placeholders in `path`, or None if it is not this route's."""
        found = self._pattern.fullmatch(path)
        return None if found is None else found.groupdict()


# In the server's order: where no method fits, the first route of a path says what is allowed.
ROUTES = (
    Route("agents.create", "POST", "/api/agents"),
    Route("agents.retrieve", "GET", "/api/agents/{agent_id}"),
    Route("agents.list", "GET", "/api/agents"),
    Route("sessions.create", "POST", "/api/sessions"),
    Route("sessions.retrieve", "GET", "/api/sessions/{session_id}"),
    Route("sessions.list", "GET", "/api/sessions"),
    Route("sessions.create_event", "POST", "/api/sessions/{session_id}/events/stream"),
    Route("sessions.list_events", "GET", "/api/sessions/{session_id}/events"),
)


@frozen
class Target:
    """Where a request goes.

    `operation` is empty where there is no such route; `allowed` are then the methods that the path
    does have. `path` is decoded.
    """

    operation: str
    path: str
    arguments: Mapping[str, str]
    query: Mapping[str, str]
    allowed: tuple[str, ...] = ()


def target_of(request: Request) -> Target:
    """Return where `request` goes. Of a query parameter that is repeated, the last counts."""
    url = urlsplit(request.url)
    path = unquote(url.path)
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    allowed: list[str] = []
    for route in ROUTES:
        arguments = route.path_arguments(path)
        if arguments is not None:
            if route.method == request.method:
                return Target(route.operation, path, arguments, query)
            allowed.append(route.method)
    return Target("", path, {}, query, tuple(allowed))


def is_route(path: str) -> bool:
    """Whether some operation has this path."""
    return any(route.path_arguments(path) is not None for route in ROUTES)
