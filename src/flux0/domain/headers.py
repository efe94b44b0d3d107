"""HTTP header fields as a frozen, case-insensitive mapping."""

from __future__ import annotations

from collections.abc import Container, ItemsView, Iterator, Mapping

from attrs import field, frozen

# Logs and reprs show the values of the header fields in `_SHOWN`. All other values are hidden,
# because they may be credentials.
_SHOWN = frozenset(
    {
        *("accept", "accept-encoding", "allow", "cache-control", "connection"),
        *("content-encoding", "content-length", "content-type", "date", "retry-after"),
        *("server", "transfer-encoding", "user-agent", "vary", "x-request-id"),
    }
)


@frozen(repr=False)
class Headers(Mapping[str, str]):
    """Header fields in their original order; names are case-insensitive.

    `headers[name]` returns the values of repeated fields, joined with commas (RFC 9110, section
    5.3). `pairs` contains each field separately. The repr hides values that may be credentials.

    Attributes:
        pairs: the fields, as pairs of a name and a value.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    _by_name: dict[str, str] | None = field(default=None, init=False, eq=False, hash=False)

    @property
    def _joined(self) -> dict[str, str]:
        joined = self._by_name
        if joined is None:
            joined = {}
            for name, value in self.pairs:
                key = name.lower()
                joined[key] = f"{joined[key]}, {value}" if key in joined else value
            object.__setattr__(self, "_by_name", joined)
        return joined

    def merge(self, other: Headers) -> Headers:
        """Return a copy in which the fields of `other` replace fields with the same names.

        Cookies are merged one by one: a cookie of `other` replaces only the cookie with its name.
        """
        if not other.pairs:
            return self
        names = other._joined
        added = other.pairs
        if "cookie" in names and (own := self._joined.get("cookie")) is not None:
            rest = (pair for pair in added if pair[0].lower() != "cookie")
            added = (*rest, ("cookie", merge_cookies(own, names["cookie"])))
        return Headers((*self.without(names).pairs, *added))

    def without(self, names: Container[str]) -> Headers:
        """Return a copy without the fields whose lower-case name is in `names`."""
        return Headers(tuple(pair for pair in self.pairs if pair[0].lower() not in names))

    def get_all(self, name: str) -> tuple[str, ...]:
        """Return the values of all fields with this name, in order."""
        key = name.lower()
        return tuple(value for field_name, value in self.pairs if field_name.lower() == key)

    def redacted(self) -> dict[str, str]:
        """Return the fields by lower-case name, with `***` for values that may hold credentials."""
        return {key: value if key in _SHOWN else "***" for key, value in self._joined.items()}

    def items(self) -> ItemsView[str, str]:
        """Return pairs of a lower-case name and a value. Values of repeated fields are joined."""
        return self._joined.items()

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


def merge_cookies(value: str, other: str) -> str:
    """Return the cookies of both header values. `other` replaces cookies with the same names."""
    return "; ".join({**_cookies(value), **_cookies(other)}.values())


def _cookies(value: str) -> dict[str, str]:
    cookies = (cookie.strip() for cookie in value.split(";"))
    return {cookie.partition("=")[0]: cookie for cookie in cookies if cookie}
