"""HTTP header fields as a frozen, case-insensitive mapping."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from attrs import field, frozen

from flux0.domain.errors import InvalidArgument

# What may be shown in logs and reprs. Anything else may carry a credential.
_SHOWN = frozenset(
    {
        "accept",
        "accept-encoding",
        "allow",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "retry-after",
        "server",
        "transfer-encoding",
        "user-agent",
        "vary",
        "x-request-id",
    }
)


# A wrong one would break the request off, or smuggle in another.
_FRAMING = frozenset({"content-length", "transfer-encoding"})


@frozen(repr=False)
class Headers(Mapping[str, str]):
    """Header fields in the order they were given; names compare without case.

    Looking a name up joins its values by commas (RFC 9110, section 5.3); `pairs` keeps them
    apart. Its repr shows only values that are known to carry no credential.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    _joined: dict[str, str] = field(init=False, eq=False, hash=False)

    def __attrs_post_init__(self) -> None:
        joined: dict[str, str] = {}
        for name, value in self.pairs:
            key = name.lower()
            joined[key] = f"{joined[key]}, {value}" if key in joined else value
        object.__setattr__(self, "_joined", joined)

    @classmethod
    def checked(cls, headers: Mapping[str, str], argument: str) -> Headers:
        """Return `headers` from a user as header fields.

        Raises:
            InvalidArgument: they are no mapping, a name is not a token, a value is not text or
                holds what HTTP does not allow there (RFC 9110, section 5.5); names `argument`.
        """
        if not isinstance(headers, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass what they like
            raise InvalidArgument(
                argument, f"must be a mapping of texts, and is of type {type(headers).__name__}"
            )
        for name, value in headers.items():
            if not isinstance(name, str) or not _is_token(name):  # pyright: ignore[reportUnnecessaryIsInstance] - as above
                raise InvalidArgument(argument, f"has {name!r}, which is not a header name")
            if name.lower() in _FRAMING:
                raise InvalidArgument(argument, f"has {name!r}, which the transport sets")
            if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance] - as above
                raise InvalidArgument(
                    argument, f"has a value of type {type(value).__name__} for {name!r}, not a text"
                )
            if not _FIELD_VALUE.fullmatch(value):
                raise InvalidArgument(
                    argument,
                    f"has a line break, a control character, white space at an end, or what "
                    f"Latin-1 lacks in the value of {name!r}",
                )
        return cls(tuple(headers.items()))

    def merge(self, other: Headers) -> Headers:
        """Return these fields with those of `other` in place of fields of the same names."""
        if not other.pairs:
            return self
        kept = (pair for pair in self.pairs if pair[0].lower() not in other._joined)
        return Headers((*kept, *other.pairs))

    def get_all(self, name: str) -> tuple[str, ...]:
        """Return each value of `name`, in order."""
        key = name.lower()
        return tuple(value for given, value in self.pairs if given.lower() == key)

    def redacted(self) -> dict[str, str]:
        """Return the fields by lower-case name, hiding values that may be a credential."""
        return {key: value if key in _SHOWN else "***" for key, value in self._joined.items()}

    def __getitem__(self, name: str) -> str:
        return self._joined[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._joined

    def __iter__(self) -> Iterator[str]:
        return iter(self._joined)

    def __len__(self) -> int:
        return len(self._joined)

    def __repr__(self) -> str:
        return f"Headers({self.redacted()!r})"


_TCHAR = "!#$%&'*+-.^_`|~"  # RFC 9110, section 5.6.2, besides letters and digits
_FIELD_VALUE = re.compile(r"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?")


def _is_token(name: str) -> bool:
    return bool(name) and all(
        character.isascii() and (character.isalnum() or character in _TCHAR) for character in name
    )
