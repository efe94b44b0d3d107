"""Short descriptions of events, tool calls and errors for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

from flux0 import models
from flux0.domain.json_text import json_text
from flux0.models import ContentPart, MessageData, ReasoningPart, ToolCall, ToolCallPart, ToolData

Item: TypeAlias = models.MessagePart | ToolCall
Listed: TypeAlias = models.Agent | models.Agents | models.Session | models.Sessions | models.Events

# `flux0-client` shows at most these numbers of characters of a tool call's arguments and result.
# `flux0-client events --json` prints the complete values.
MAX_ARGS_SHOWN = 400
_MAX_RESULT_SHOWN = 1200

ID_LENGTH = 10
# `_OPTIONS` maps the client's arguments to their names on the command line. An argument that is
# missing in `_OPTIONS` has the same name as its option, apart from the dashes.
_OPTIONS = {
    "FLUX0_TOKEN": "FLUX0_TOKEN",
    "content": "MESSAGE",
    "headers": "--header",
    "message": "MESSAGE",
    "name": "NAME",
    "server_url": "--server-url",
    "stream_idle_timeout_ms": "--idle-timeout",
    "timeout_ms": "--timeout",
    "type_": "TYPE",
}


def to_text(value: Any, *, indent: int | None = None) -> str:
    return value if isinstance(value, str) else json_text(value, indent=indent, ascii=False)


def describe_status(status: str, data: Any) -> str:
    if isinstance(data, Mapping):
        values = [*cast("Mapping[str, Any]", data).values()]
        if len(values) == 1 and isinstance(values[0], str):
            data = values[0]
    return f"{status}: {to_text(data)}" if data else str(status)


def describe_call(call: ToolCall | ToolCallPart) -> str:
    args: Any = call.args
    if isinstance(args, Mapping):
        items = cast("Mapping[str, Any]", args).items()
        args = ", ".join(f"{name}={json_text(value, ascii=False)}" for name, value in items)
    return f"{call.tool_name}({_shorten(to_text(args), MAX_ARGS_SHOWN)})"


def describe_result(call: ToolCall) -> str:
    if call.error is not None:
        return call.error
    return _shorten(to_text(call.result and call.result.data), _MAX_RESULT_SHOWN)


def describe_data(data: models.EventData) -> str:
    if isinstance(data, models.StatusData):
        return describe_status(data.status, data.data)
    if isinstance(data, (MessageData, ToolData)):
        return " ".join(map(_describe_item, items_of(data)))
    return to_text(data)


def describe_error(error: models.Flux0Error, ids: Mapping[str, Any] | None = None) -> str:
    """Return a message for an error, with a hint at the likely cause.

    `ids` contains the ids from the command line, with the keys "agent" and "session".
    """
    is_of_server = isinstance(error, models.APIError) and error.status_code in {400, 404, 422}
    may_be_unknown = is_of_server or isinstance(error, models.InvalidArgument)
    for kind in ("agent", "session") if may_be_unknown else ():
        id_ = (ids or {}).get(kind)
        # If the server does not know the id, the error message names the argument or contains the
        # id. If the server does not know the route, its 404 response contains neither.
        if id_ is not None and (f"{kind}_id" in error.problem or id_ in error.problem):
            hint = "" if len(id_) == ID_LENGTH else f": ids have {ID_LENGTH} characters"
            return f"No {kind} has the id {id_!r}{hint}. To list ids: flux0-client {kind}s list"
    if isinstance(error, models.InvalidArgument):
        option = _OPTIONS.get(error.argument, f"--{error.argument.replace('_', '-')}")
        return error.problem.replace(error.argument, option, 1)
    if isinstance(error, models.ConnectError):
        return f"No connection to {error.url}: {error.problem}. Is the server running?"
    if isinstance(error, models.DecodeError):
        return f"The server at {error.url} is not a flux0 server: {error.problem}"
    problem = error.problem
    for name in ("stream_idle_timeout_ms", "timeout_ms", "server_url"):
        problem = problem.replace(name, _OPTIONS[name])
    return problem


def items_of(data: models.EventData | None) -> Sequence[Item]:
    if isinstance(data, MessageData):
        return data.parts
    return data.tool_calls if isinstance(data, ToolData) else ()


def _describe_item(item: Item) -> str:
    match item:
        case ContentPart(content):
            return to_text(content)
        case ReasoningPart(reasoning):
            return f"(reasoning) {to_text(reasoning)}"
        case ToolCallPart():
            return describe_call(item)
        case ToolCall():
            return f"{item.tool_name}: {describe_result(item)}"
        case _:
            return to_text(item)


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit:,} more characters)"
