"""Rules of HTTP that do not depend on the HTTP library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

# The idempotent methods: repeating a request has no further effect (RFC 9110, section 9.2.2).
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
# The number of bytes at the start of a response that `version_problem` needs.
START_BYTES: Final = 40
# The header content-length is valid if it is a number, or a list that repeats the same number (RFC
# 9110, section 8.6).
_LENGTH: Final = re.compile(r"[ \t]*(\d{1,18})[ \t]*(?:,[ \t]*\1[ \t]*)*", re.ASCII)


def is_success(status_code: int) -> bool:
    return 200 <= status_code < 300  # noqa: PLR2004 - RFC 9110, section 15.3


def is_rejected(status_code: int) -> bool:
    """Return whether the status proves that the server did not accept the request.

    Each client error (RFC 9110, section 15.5) is such a proof, except 408: a proxy may return a 408
    response after the server has received the request.
    """
    return 400 <= status_code < 500 and status_code != 408  # noqa: PLR2004


def is_event_stream(headers: Mapping[str, str]) -> bool:
    media_type = headers.get("content-type", "").partition(";")[0]
    return media_type.strip().lower() == "text/event-stream"


def is_framed(headers: Mapping[str, str]) -> bool:
    """Return whether the framing of an HTTP/1 response proves that its body is complete.

    The proof is a content-length or the chunked coding (RFC 9112, section 6), but not a content
    coding such as gzip: gzip cannot detect that all bytes, or whole gzip members, are missing.

    The names in `headers` must be case-insensitive.
    """
    coding = headers.get("transfer-encoding")
    # transfer-encoding overrides content-length (RFC 9112, section 6.3), so ignore content-length.
    if coding is not None:
        return coding.lower().rpartition(",")[2].strip() == "chunked"
    return "content-length" in headers


def version_problem(start: bytes) -> str | None:
    """Return the reason why a response is not HTTP/1.0 or HTTP/1.1, or None.

    `start` has the first bytes of the response, possibly only a part of the version.
    """
    if any(version.startswith(start[:9]) for version in (b"HTTP/1.1 ", b"HTTP/1.0 ")):
        return None
    return f"it starts with {start[:START_BYTES].decode('latin-1')!r}"


def framing_problem(length: str | None, coding: str | None) -> str | None:
    """Return the reason why the end of an HTTP/1 response body is ambiguous, or None.

    If a proxy and its client find different ends, one of them may read a part of the body as a
    separate response. Attackers can cause this (RFC 9112, sections 6.3 and 11.1).

    Args:
        length: The value of `content-length`; None if the field is missing. The values of repeated
            fields are joined by commas.
        coding: The value of `transfer-encoding`; None if the field is missing.
    """
    if coding is not None:
        if length is not None:
            return "it has both a content-length and a transfer-encoding"
        if coding.strip(" \t").lower() != "chunked":
            return f"the transfer-encoding must be chunked, not {coding!r}"
    elif length is not None and not _LENGTH.fullmatch(length):
        return f"the content-length must be one number of bytes, not {length[:50]!r}"
    return None


def is_behind_proxy(headers: Mapping[str, str]) -> bool:
    """Return whether the `via` or `server` header names a proxy.

    The `server` header of a flux0 server is "uvicorn".
    """
    return "via" in headers or not headers.get("server", "uvicorn").lower().startswith("uvicorn")
