"""What the server's values are called on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

from flux0 import models
from flux0.models import ContentPart, MessageData, ReasoningPart, ToolCall, ToolCallPart, ToolData

Item: TypeAlias = models.MessagePart | ToolCall
Listed: TypeAlias = models.Agent | models.Agents | models.Session | models.Sessions | models.Events

# A terminal is for looking on; the JSON of `flux0-client events` has all of it. In characters.
LONGEST_ARGS = 400
_LONGEST_RESULT = 1200

_ID_LENGTH = 10
# What the command line calls arguments of the client; for all others it is an option.
_OPTIONS = {
    "FLUX0_TOKEN": "FLUX0_TOKEN",
    "headers": "--header",
    "message": "MESSAGE",
    "name": "NAME",
    "type_": "TYPE",
}


def in_words(value: Any, *, indent: int | None = None) -> str:
    """Return a text as it is, and anything else as JSON, on one line unless it is indented."""
    return value if isinstance(value, str) else json.dumps(value, indent=indent, ensure_ascii=False)


def status_in_words(status: str, data: Any) -> str:
    """Return a status with what the agent added to it."""
    if isinstance(data, Mapping):
        values = [*cast("Mapping[str, Any]", data).values()]
        if len(values) == 1 and isinstance(values[0], str):
            data = values[0]
    return f"{status}: {in_words(data)}" if data else str(status)


def call_in_words(call: ToolCall | ToolCallPart) -> str:
    """Return a tool call as it is written in code."""
    args: Any = call.args
    if isinstance(args, Mapping):
        given = cast("Mapping[str, Any]", args).items()
        args = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given)
    return f"{call.tool_name}({_cut(in_words(args), LONGEST_ARGS)})"


def result_in_words(call: ToolCall) -> str:
    """Return what a tool gave back."""
    if call.error is not None:
        return call.error
    return _cut(in_words(call.result and call.result.data), _LONGEST_RESULT)


def describe_data(data: models.EventData) -> str:
    """Return the data of an event in a few words."""
    if isinstance(data, models.StatusData):
        return status_in_words(data.status, data.data)
    if isinstance(data, (MessageData, ToolData)):
        return " ".join(map(_item_in_words, items_of(data)))
    return in_words(data)


def describe_error(error: models.Flux0Error, ids: Mapping[str, Any] | None = None) -> str:
    """Return what went wrong, and where it is likely to help, what to look at.

    `ids` are what the user gave as the id of an agent or a session, by `agent` and `session`.
    """
    for kind in ("agent", "session"):
        given = (ids or {}).get(kind)
        if given is not None and _is_unknown(kind, given, error):
            hint = "" if len(given) == _ID_LENGTH else f": ids have {_ID_LENGTH} characters"
            return f"No {kind} has the id {given!r}{hint}."
    if isinstance(error, models.InvalidArgument):
        option = _OPTIONS.get(error.argument, f"--{error.argument.replace('_', '-')}")
        return error.problem.replace(error.argument, option, 1)
    if isinstance(error, models.ConnectError):
        return f"No connection to {error.url}: {error.problem}. Is the server running?"
    if isinstance(error, models.DecodeError):
        return f"What answers at {error.url} is no flux0 server: {error.problem}"
    return error.problem


def _is_unknown(kind: str, given: str, error: models.Flux0Error) -> bool:
    """Whether an error says that there is nothing with this id."""
    match error:
        case models.InvalidArgument():
            return error.argument == f"{kind}_id"
        case models.HTTPValidationError():
            return any(f"{kind}_id" in problem.loc for problem in error.data.detail)
        case models.APIError():
            return given in error.message  # The 404 of a wrong URL does not name it.
        case _:
            return False


def items_of(data: models.EventData | None) -> Sequence[Item]:
    """Return the parts of a message, or the tool calls whose results an event holds."""
    if isinstance(data, MessageData):
        return data.parts
    return data.tool_calls if isinstance(data, ToolData) else ()


def _item_in_words(item: Item) -> str:
    match item:
        case ContentPart(content):
            return in_words(content)
        case ReasoningPart(reasoning):
            return f"(reasoning) {in_words(reasoning)}"
        case ToolCallPart():
            return call_in_words(item)
        case ToolCall():
            return f"{item.tool_name}: {result_in_words(item)}"
        case _:
            return in_words(item)


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… ({len(text) - longest:,} more characters)"
