"""The operations of the server's API, with their routes and parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from http.cookies import SimpleCookie
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import frozen

from flux0.domain.enums import EventSource, EventType
from flux0.domain.errors import InvalidArgument
from flux0.domain.headers import Headers
from flux0.ports import Request
from flux0.testing.fake.validation import (
    IS_ID,
    Form,
    choice,
    flag,
    integer,
    mapping,
    optional,
    text,
)

_TYPE = choice(*(kind.value for kind in EventType))
_SOURCE = choice(*(source.value for source in EventSource))
_EVENTS = "/api/sessions/{session_id}/events"
_NEW_AGENT = Form({"name": text(1, 100), "type": text(1, 100), "description": optional(text())})
# The released flux0 server neither streams nor stores a greeting. Therefore, the fake checks the
# parameter `allow_greeting`, but creates no greeting.
_GREETING = {"allow_greeting": flag}
_SESSION = {"agent_id": IS_ID, "id": optional(IS_ID), "title": optional(text(longest=200))}
# `_NEWER` has the members of a new session that only the newest sources of the flux0 server accept.
# The released server rejects a new session with these members.
_NEWER = {"metadata": optional(mapping), "mode": optional(text())}
_NEW_SESSION = Form(_SESSION, query=_GREETING)
NEWER_SESSION = Form({**_SESSION, **_NEWER}, query=_GREETING)
_MESSAGE = Form({"type": _TYPE, "source": _SOURCE, "content": optional(text())})
# The released server reads the event types from the body, and ignores the query parameter `types`.
_FILTERS = Form(items=_TYPE, query={"min_offset": integer, "source": _SOURCE})


class Operation(NamedTuple):
    """An API operation. A method of `FakeServer`, such as `_agents_list`, handles it."""

    name: str
    method: str
    route: str
    form: Form = Form()

    def match(self, path: str) -> re.Match[str] | None:
        """Match `path` with the route. Like the real server, allow a line break at the end."""
        return re.match(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.route) + "$", path)


# `OPERATIONS` has the same order as the flux0 server, because a 405 response contains the method of
# the first operation with the requested path.
OPERATIONS = (
    Operation("agents.create", "POST", "/api/agents", _NEW_AGENT),
    Operation("agents.retrieve", "GET", "/api/agents/{agent_id}"),
    Operation("agents.list", "GET", "/api/agents"),
    Operation("sessions.create", "POST", "/api/sessions", _NEW_SESSION),
    Operation("sessions.retrieve", "GET", "/api/sessions/{session_id}"),
    Operation("sessions.list", "GET", "/api/sessions"),
    Operation("sessions.create_event", "POST", f"{_EVENTS}/stream", _MESSAGE),
    Operation("sessions.list_events", "GET", _EVENTS, _FILTERS),
)


def check_operation_name(name: str) -> None:
    names = [operation.name for operation in OPERATIONS]
    if name not in names:
        near = get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"the operations are {', '.join(names)}"
        raise InvalidArgument("operation", f"{name!r} does not exist in the API: {hint}")


@frozen
class Target:
    """The operation that a request calls, the parameters in its URL, and its user.

    Attributes:
        operation: the called operation; None if the request matches no operation.
        path: the percent-decoded path, without the fake's `path_prefix`.
        arguments: the parameters in the path.
        query: the parameters in the query. If a parameter is repeated, it has its last value.
        allowed: the methods that the path allows, if the request has another method.
        user_id: the user's id; empty before the server has read the user from the headers.
    """

    operation: Operation | None
    path: str
    arguments: Mapping[str, str]
    query: Mapping[str, str]
    allowed: tuple[str, ...] = ()
    user_id: str = ""


def target_from(request: Request, prefix: str = "") -> Target:
    url = urlsplit(request.url)
    path = unquote(url.path)
    operations = OPERATIONS if path.startswith(f"{prefix}/") else ()
    path = path.removeprefix(prefix)
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    allowed: list[str] = []
    for operation in operations:
        if (found := operation.match(path)) is not None:
            if operation.method == request.method:
                return Target(operation, path, found.groupdict(), query)
            allowed.append(operation.method)
    return Target(None, path, {}, query, tuple(allowed))


def user_of(headers: Headers) -> str | None:
    """Return the user from the last cookie `flux0_user_sub`, as the real server does; or None."""
    user = None
    for cookie in ";".join(headers.get_all("cookie")).split(";"):
        name, _, value = cookie.partition("=")
        if name.strip() == "flux0_user_sub":
            user = SimpleCookie().value_decode(value.strip())[0]
    return user
