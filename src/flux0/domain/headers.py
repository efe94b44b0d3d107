"""HTTP header fields as a frozen, case-insensitive mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import field, frozen

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
