"""Rules of HTTP that hold for every library."""

from __future__ import annotations

from flux0.domain.headers import Headers


def is_success(status_code: int) -> bool:
    """Return whether a status code is 2xx (RFC 9110, section 15.3)."""
    return 200 <= status_code < 300  # noqa: PLR2004 - RFC 9110, section 15.3


def is_framed(headers: Headers) -> bool:
    """Return whether the headers of an HTTP/1 response prove the end of its body.

    A content-length and chunks do (RFC 9112, section 6). A content coding does not: a body that
    ends before its first compressed byte, or between two gzip members, looks complete.
    """
    if "content-length" in headers:
        return True
    return headers.get("transfer-encoding", "").lower().endswith("chunked")
