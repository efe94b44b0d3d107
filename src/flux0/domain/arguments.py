"""Checks of the arguments that users pass, before a request is sent.

Each function returns the value in the form that the library uses. If the value is invalid, it
raises `InvalidArgument` with the argument's name and the values that are allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard, TypeVar, cast

from flux0.domain.errors import InvalidArgument
from flux0.domain.headers import Headers

T = TypeVar("T")

_LONGEST_WAIT_MS = 2**31 - 1  # On some systems, the longest timeout of a socket.
# Intervals are limited to about 31 years, because time.sleep raises OverflowError for several
# centuries.
_LONGEST_INTERVAL_MS = 10**12

# The server decodes a percent-encoded path before it selects the route. Therefore, an id with a
# character such as `/` selects a different route, even if the client encodes the character.
_NOT_IN_IDS = frozenset("/\\?#%")
# Patterns of valid names and values of header fields (RFC 9110, sections 5.6.2 and 5.5). A value
# with a line break is not valid, because the line break starts another header field.
_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE = re.compile(r"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?")
# The characters, other than letters, digits and `-._~`, that RFC 6265, section 4.1.1, allows in
# cookie values. `%` is missing here: a `%` in a value must be encoded, because `%` introduces
# encoded characters.
_IN_COOKIES = "!#$&'()*+/:<=>?@[]^`{|}"
_ANONYMOUS = "anonymous"
_IS_ANONYMOUS = (
    'must not be "anonymous", the server\'s user of all sessions that are created without user:'
    " use another id, such as a primary key or user-anonymous"
)
# The user must not set the header fields in `_FRAMING`: with a wrong value, the request is
# truncated, or the server reads a part of the body as a second request.
_FRAMING = frozenset({"content-length", "transfer-encoding"})


def text(argument: str, value: object) -> str:
    checked = instance(argument, str, value)
    if not checked:
        raise InvalidArgument(argument, "must not be empty")
    check_utf8(argument, checked)
    return checked


def check_utf8(argument: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(argument, "has lone surrogates, which UTF-8 cannot encode") from None


def optional_text(argument: str, value: object) -> str | None:
    return None if value is None else "" if value == "" else text(argument, value)


def identifier(argument: str, value: object) -> str:
    checked = text(argument, value)
    if not checked.strip(".") or not checked.isprintable() or _NOT_IN_IDS & set(checked):
        problem = "must be printable, must not consist of dots, and must not contain / \\ ? # %"
        raise InvalidArgument(argument, f"{problem}: {checked!r}")
    return checked


def names(argument: str, values: object) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidArgument(argument, f"must be a list of names, not {values!r}")
    items = cast("Iterable[object]", values)
    checked = tuple(dict.fromkeys(text(argument, item) for item in items))
    if not checked:
        raise InvalidArgument(argument, "must not be empty: omit the argument for no filter")
    return checked


def members(argument: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidArgument(argument, f"must be a mapping, not {_kind(value)}")
    items = dict(cast("Mapping[object, Any]", value))
    for key in items:
        if not isinstance(key, str):
            raise InvalidArgument(argument, f"must have keys of type str, not {_kind(key)}")
    return cast("dict[str, Any]", items)


def parameters(argument: str, value: object) -> dict[str, str]:
    items = members(argument, value)
    for key, item in items.items():
        if not isinstance(item, str):
            raise InvalidArgument(argument, f"must have a str for {key!r}, not {_kind(item)}")
        optional_text(argument, key + item)
    return items


def instance(argument: str, kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise InvalidArgument(argument, f"must be a {kind.__name__}, not {_kind(value)}")
    return value


def integer(argument: str, value: object, *, smallest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise InvalidArgument(argument, f"must be an int of at least {smallest}, not {value!r}")
    return value


def interval(argument: str, value: object) -> float:
    if not _is_number(value) or not 0 <= value <= _LONGEST_INTERVAL_MS:
        problem = f"must be a number from 0 to {_LONGEST_INTERVAL_MS:,}, not {value!r}"
        raise InvalidArgument(argument, problem)
    return value


def seconds(argument: str, milliseconds: object) -> float:
    """Convert a timeout, which must be above 0 and below 25 days, from milliseconds to seconds."""
    if not _is_number(milliseconds) or not 0 < milliseconds <= _LONGEST_WAIT_MS:
        allowed = f"above 0 and up to {_LONGEST_WAIT_MS:,}"
        problem = f"must be a number of milliseconds {allowed}, not {milliseconds!r}"
        raise InvalidArgument(argument, problem)
    return milliseconds / 1000


def optional_seconds(argument: str, milliseconds: object) -> float | None:
    return None if milliseconds is None else seconds(argument, milliseconds)


def server_url(url: object) -> tuple[str, Headers]:
    """Return the API's base URL, and the credentials in the URL as an authorization header.

    The base URL has no trailing slash and no credentials, so logs and errors may show it. The path
    in the base URL is percent-encoded.
    """
    checked = instance("server_url", str, url)
    if not _is_base_url(checked):
        shown = re.sub("(?s)([?#]).*", r"\1***", re.sub("(?s)^.*@", "***@", checked))
        raise InvalidArgument("server_url", f"must be like http://127.0.0.1:8080, not {shown!r}")
    scheme, _, rest = checked.rstrip("/").partition("//")
    authority, slash, path = rest.partition("/")
    login, at, host = authority.rpartition("@")
    return f"{scheme}//{host}{slash}{_encode(path)}", _basic(login) if at else Headers()


def headers(argument: str, fields: object) -> Headers:
    names: dict[str, str] = {}
    pairs = tuple(_field(argument, *item) for item in members(argument, fields).items())
    for name, _ in pairs:
        other = names.setdefault(name.lower(), name)
        if other != name:
            problem = f"must have only one of {other!r} and {name!r}: case does not matter"
            raise InvalidArgument(argument, problem)
    return Headers(pairs)


def split_headers(argument: str, fields: object) -> tuple[Headers, dict[str, Callable[[], Any]]]:
    """Return the fields with fixed values, and the functions that compute the other values.

    The keys of the second mapping are names of header fields in lower case.
    """
    values = members(argument, fields)
    functions = {name.lower(): value for name, value in values.items() if callable(value)}
    texts = {name: "" if callable(value) else value for name, value in values.items()}
    return headers(argument, texts).without(functions), functions


def user(argument: str, name: object) -> Headers:
    """Return the header field with the cookie that identifies a user to the server."""
    from urllib.parse import quote  # noqa: PLC0415 - not needed to import this package

    value = quote(text(argument, name), safe=_IN_COOKIES)
    # The server uses this name if a request has no cookie. The name is case-sensitive, and the
    # server does not decode percent-encoded characters, so no other value maps to this user.
    if value == _ANONYMOUS:
        raise InvalidArgument(argument, _IS_ANONYMOUS)
    return Headers((("cookie", f"flux0_user_sub={value}"),))


def _field(argument: str, name: str, value: object) -> tuple[str, str]:
    if not _FIELD_NAME.fullmatch(name):
        raise InvalidArgument(argument, f"has the key {name!r}, which is not a valid header name")
    if name.lower() in _FRAMING:
        raise InvalidArgument(argument, f"must not have {name!r}: the transport sets it")
    if not isinstance(value, str):
        raise InvalidArgument(argument, f"has a {_kind(value)} for {name!r}: it must be a str")
    if not _FIELD_VALUE.fullmatch(value):
        valid = "Latin-1 without line breaks, control characters, or spaces at the start or end"
        raise InvalidArgument(argument, f"has an invalid value for {name!r}: it must be {valid}")
    return name, value


def _encode(path: str) -> str:
    """Return the normal form of a path (RFC 3986, section 6.2.2), which HTTP libraries keep."""
    from urllib.parse import quote, unquote_to_bytes  # noqa: PLC0415 - not needed for the import

    def normalize(encoded: re.Match[str]) -> str:
        return quote(unquote_to_bytes(f"%{encoded[1]}"), safe="")

    # Encode each `%`, and then restore the percent-encodings that `path` had, such as %2F.
    return re.sub("%25([0-9A-Fa-f]{2})", normalize, quote(path, safe="/:@!$&'()*+,;="))


def _basic(login: str) -> Headers:
    from base64 import b64encode  # noqa: PLC0415 - not needed to import this package
    from urllib.parse import unquote  # noqa: PLC0415 - not needed to import this package

    name, _, password = login.partition(":")
    credentials = b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
    return Headers((("authorization", f"Basic {credentials}"),))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_base_url(url: str) -> bool:
    from urllib.parse import urlsplit  # noqa: PLC0415 - not needed to import this package

    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    # `urlsplit` raises ValueError if the bracket of an IPv6 host is missing, and `parts.port`
    # raises ValueError if the port is not a number.
    except ValueError:
        return False
    plain = url.isprintable() and not any(character in url for character in " ?#\\")
    return has_host and plain and parts.scheme in ("http", "https")


def _kind(value: object) -> str:
    return type(value).__name__
