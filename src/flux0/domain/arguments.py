"""Checks of what users pass, made before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar, cast

from flux0.domain.enums import OpenEnum
from flux0.domain.errors import InvalidArgument

E = TypeVar("E", bound=OpenEnum)

_LARGEST_OFFSET = 2**63 - 1


def text(argument: str, value: object, *, longest: int | None = None) -> str:
    """Return `value` if it is a text that is not empty, of at most `longest` characters."""
    if not isinstance(value, str):
        raise InvalidArgument(argument, f"must be a text, and is of type {type(value).__name__}")
    if not value:
        raise InvalidArgument(argument, "must not be empty")
    if longest is not None and len(value) > longest:
        raise InvalidArgument(
            argument, f"must have at most {longest} characters, and has {len(value)}"
        )
    if not _is_unicode(value):
        raise InvalidArgument(argument, "has lone surrogates, which UTF-8 cannot carry")
    return value


def optional_text(argument: str, value: object, *, longest: int | None = None) -> str | None:
    """Return `value` if it is None or a text of at most `longest` characters."""
    return None if value is None else "" if value == "" else text(argument, value, longest=longest)


def path_segment(argument: str, value: object) -> str:
    """Return an id as one percent-encoded segment of a path."""
    checked = text(argument, value)
    if checked in (".", ".."):
        # Percent-encoding does not help: RFC 3986 has clients remove dot segments in either form.
        raise InvalidArgument(argument, f"must be an id, and is {checked!r}")
    from urllib.parse import quote  # noqa: PLC0415 - not needed to import this package

    return quote(checked, safe="")


def choice(argument: str, kind: type[E], value: object) -> str:
    """Return the text of an open enum's member, or of a name that it does not know yet."""
    return str(kind.of(text(argument, value)))


def choices(argument: str, kind: type[E], values: object) -> tuple[str, ...]:
    """Return the texts of several members of an open enum."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidArgument(argument, f"must be a list of names, and is {values!r}")
    names = cast("Iterable[object]", values)
    checked = tuple(dict.fromkeys(choice(argument, kind, name) for name in names))
    if not checked:
        raise InvalidArgument(argument, "must not be empty; leave it out for no filter")
    return checked


def offset(argument: str, value: object) -> int:
    """Return `value` if it is an integer of 0 or more."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(
            argument, f"must be an integer, and is of type {type(value).__name__}"
        )
    if value < 0:
        raise InvalidArgument(argument, "must not be negative")
    if value > _LARGEST_OFFSET:
        raise InvalidArgument(argument, f"must be at most {_LARGEST_OFFSET}")
    return value


def flag(argument: str, value: object) -> bool:
    """Return `value` if it is True or False."""
    if not isinstance(value, bool):
        raise InvalidArgument(argument, f"must be True or False, and is {value!r}")
    return value


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
