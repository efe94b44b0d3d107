"""The operations on sessions and their events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from attrs import evolve

from flux0.domain import arguments
from flux0.domain.enums import EventSource, EventType
from flux0.domain.errors import DecodeError, InvalidArgument
from flux0.domain.http import is_event_stream
from flux0.domain.stored_models import Events, Session, Sessions
from flux0.flows import CallRequest, Flow
from flux0.ports import Response
from flux0.usecases.agents import with_name_hint
from flux0.usecases.call import ApiCall

_ROUTE = "/api/sessions"
_SESSION = f"{_ROUTE}/{{session_id}}"
_EVENTS = f"{_SESSION}/events"


def create_session(
    call: ApiCall,
    agent_id: str,
    allow_greeting: bool,
    id: str | None,
    title: str | None,
    metadata: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Flow[Session]:
    """Create a session with an agent and return it.

    The call is not idempotent: if a session with this `id` exists, the server 0.1.0b4 creates a
    second session with the same `id`.
    """
    body: dict[str, Any] = {"agent_id": arguments.text("agent_id", agent_id)}
    if id is not None:
        body["id"] = arguments.identifier("id", id)
    if (checked := arguments.optional_text("title", title)) is not None:
        body["title"] = checked
    if metadata is not None:
        body["metadata"] = arguments.members("metadata", metadata)
        # Encode `metadata` separately, so that the error for an invalid value names `metadata`.
        call.codec.encode(body["metadata"], "metadata")
    if mode is not None:
        body["mode"] = arguments.text("mode", mode)
    greeting = arguments.instance("allow_greeting", bool, allow_greeting)
    query = (("allow_greeting", "true"),) if greeting else ()
    request = call.request("sessions.create", "POST", _ROUTE, query=query, body=body)
    return with_name_hint(call.perform(request, partial(_decode_session, call)), agent_id)


def list_sessions(call: ApiCall, agent_id: str | None) -> Flow[Sessions]:
    query = () if agent_id is None else (("agent_id", arguments.text("agent_id", agent_id)),)
    return call.fetch(Sessions, call.request("sessions.list", "GET", _ROUTE, query=query))


def retrieve_session(call: ApiCall, session_id: str) -> Flow[Session]:
    request = call.request("sessions.retrieve", "GET", _SESSION, session_id=session_id)
    return call.perform(request, partial(_decode_session, call))


def _decode_session(call: ApiCall, response: Response[Any]) -> Session:
    session = call.codec.decode(Session, response.body)
    try:
        arguments.identifier("id", session.id)
    except InvalidArgument as error:
        raise DecodeError(error.problem.removeprefix("id "), field="id") from error
    return session


def list_events(
    call: ApiCall,
    session_id: str,
    min_offset: int | None = None,
    source: EventSource | str | None = None,
    correlation_id: str | None = None,
    types: Iterable[EventType | str] | None = None,
) -> Flow[Events]:
    """Return the stored events of a session that match all filters, in the order of their offsets.

    The server 0.1.0b4 reads `types` from the body of a GET request; later versions read it from the
    query. Therefore, `types` is sent in the body and in the query. The returned events are filtered
    by type again, in case the server ignores `types`.
    """
    query: list[tuple[str, str]] = []
    if min_offset is not None:
        smallest = arguments.integer("min_offset", min_offset, smallest=0)
        query.append(("min_offset", str(smallest)))
    if source is not None:
        query.append(("source", arguments.text("source", source)))
    if correlation_id is not None:
        query.append(("correlation_id", arguments.text("correlation_id", correlation_id)))
    type_names = None if types is None else arguments.names("types", types)
    query.extend(("types", name) for name in type_names or ())
    request = call.request(
        "sessions.list_events", "GET", _EVENTS, session_id=session_id, query=query, body=type_names
    )
    flow = call.fetch(Events, request)
    return flow if type_names is None else _filtered(flow, type_names)


def _filtered(flow: Flow[Events], type_names: tuple[str, ...]) -> Flow[Events]:
    events = yield from flow
    return evolve(events, data=tuple(event for event in events if event.type in type_names))


def create_event(
    call: ApiCall, session_id: str, type_: EventType | str, source: EventSource | str, content: str
) -> CallRequest:
    """Return the request that creates a message event. Its response is an `event_stream`."""
    body = {
        "type": arguments.text("type_", type_),
        "source": arguments.text("source", source),
        "content": arguments.text("content", content),
    }
    operation, route = "sessions.create_event", f"{_EVENTS}/stream"
    return call.request(
        operation, "POST", route, session_id=session_id, body=body, content=body["content"]
    )


def event_stream(response: Response[Any]) -> Response[Any]:
    if is_event_stream(response.headers):
        return response
    content_type = response.headers.get("content-type", "no content type")
    body = response.body.decode("utf-8", "replace")
    raise DecodeError(f"expected text/event-stream, got {content_type}", body=body)
