"""Text for logs, error messages and terminals.

The text contains no control characters, which could forge a line of a log or send commands to a
terminal. It contains no values that may be credentials.
"""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"  # Logs and errors show this text instead of a value that may be a credential.

# Logs and errors show the values of the query parameters and JSON members in `_SHOWN`. Other values
# are hidden: they may be credentials, which the user has passed in `extra_query` or `extra_body`.
_SHOWN = frozenset(
    {
        *("agent_id", "allow_greeting", "correlation_id", "min_offset", "source", "types"),
        *("created_at", "description", "id", "name", "title", "type"),
        *("client", "consumption_offsets", "user_id"),
        *("content", "data", "deleted", "detail", "loc", "msg", "offset"),
        *("participant", "parts", "reasoning", "status"),
        *("acknowledged_offset", "tool_call_id", "tool_calls", "tool_name"),
    }
)

# These characters can imitate other output in logs and terminals: control characters, line
# separators, and characters that change the direction of text. The last range contains surrogates,
# which UTF-8 cannot encode.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str, keep: str = "") -> str:
    """Escape control characters, line separators and surrogates that are not in `keep`.

    Characters that change the direction of text, such as U+202E, are control characters, too.
    """
    if text.isprintable():
        return text
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def shown_url(url: str) -> str:
    """Return a URL without the values of query parameters that may be credentials."""
    base, mark, query = url.partition("?")
    return f"{base}{mark}{'&'.join(map(_shown_parameter, query.split('&')))}" if mark else url


def _shown_parameter(parameter: str) -> str:
    name, equals, _ = parameter.partition("=")
    return parameter if name in _SHOWN else f"{name if equals else ''}{equals}{HIDDEN}"


def shown_json(text: str) -> str:
    """Return JSON text without values that may be credentials; other text unchanged."""
    import json  # noqa: PLC0415 - slow to import; the codec imports it, too

    try:
        return json.dumps(json.loads(text, object_hook=_shown_members), ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def _shown_members(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value if name in _SHOWN else HIDDEN for name, value in members.items()}
