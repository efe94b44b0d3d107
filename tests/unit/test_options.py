"""The options of a client and its calls, and those of retries."""

from __future__ import annotations

import math
from base64 import b64encode

import pytest

from flux0 import BackoffStrategy, RetryConfig
from flux0.domain import arguments
from flux0.domain.errors import InvalidArgument
from flux0.domain.headers import Headers


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("https://example.org/flux0/v1//", "https://example.org/flux0/v1"),
        ("HTTP://example.org", "HTTP://example.org"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://bücher.example", "http://bücher.example"),
        ("http://example.org/%C3%A9", "http://example.org/%C3%A9"),
    ],
)
def test_a_server_url_is_what_routes_are_appended_to(url: str, base: str) -> None:
    assert arguments.server_url(url) == (base, Headers())


@pytest.mark.parametrize(
    ("login", "credentials"),
    [("me:p%40%C3%A9", "me:p@é"), ("me", "me:"), ("me:a@b", "me:a@b"), ("m%3Ae:", "m:e:")],
)
def test_the_login_in_a_server_url_is_a_header_field(login: str, credentials: str) -> None:
    url, header = arguments.server_url(f"http://{login}@example.org:80/a@b/")

    assert url == "http://example.org:80/a@b"
    assert dict(header) == {"authorization": f"Basic {b64encode(credentials.encode()).decode()}"}


def test_what_is_no_server_url_is_told_without_credentials() -> None:
    for url in ("ftp://me:secret@example.org", "me:se@cret@example.org", "http://a:secret@h:x"):
        with pytest.raises(InvalidArgument) as caught:
            arguments.server_url(url)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "localhost",
            "localhost:8080",
            "//example.org",
            "/api",
            "http:",
            "http://",
            "http:///",
        ),
        *("ftp://example.org", "file:///etc/passwd", "javascript:1", "http://:8080"),
        *("http://example.org?a=1", "http://example.org/#top", "http://example.org?", "http://a#"),
        *("http://exa mple.org", "http://example.org/\n", " http://example.org", "http://a\\b"),
        *("http://example.org:port", "http://example.org:99999", "http://example.org:0"),
        *("http://[::1", "http://\ud800.org", "http://a\u2028b", "http://a\x7f"),
        *(None, 8080, b"http://example.org", ["http://example.org"]),
    ],
)
def test_what_is_no_server_url_is_refused(url: object) -> None:
    with pytest.raises(InvalidArgument) as caught:
        arguments.server_url(url)

    assert caught.value.argument == "server_url"


@pytest.mark.parametrize(
    ("milliseconds", "seconds"), [(1, 0.001), (1500, 1.5), (0.5, 0.0005), (2**31 - 1, 2147483.647)]
)
def test_a_duration_is_turned_into_seconds(milliseconds: float, seconds: float) -> None:
    assert arguments.seconds("timeout_ms", milliseconds) == seconds


@pytest.mark.parametrize(
    "milliseconds",
    [0, -1, 0.0, math.nan, math.inf, -math.inf, 2**31, 1e300, 10**400, True, "1", None, [1]],
)
def test_what_is_no_duration_is_refused(milliseconds: object) -> None:
    with pytest.raises(InvalidArgument, match="milliseconds") as caught:
        arguments.seconds("timeout_ms", milliseconds)

    assert caught.value.argument == "timeout_ms"


def test_a_limit_is_a_positive_integer() -> None:
    assert arguments.size("max_event_bytes", 1) == 1
    for number in (0, -1, 1.0, True, "1", None):
        with pytest.raises(InvalidArgument, match="bytes") as caught:
            arguments.size("max_event_bytes", number)
        assert caught.value.argument == "max_event_bytes"


def test_retries_are_a_policy() -> None:
    policy = RetryConfig("none")

    assert arguments.instance("retries", RetryConfig, policy) is policy
    for other in ("none", None, 3, {"strategy": "none"}, RetryConfig):
        with pytest.raises(InvalidArgument, match="RetryConfig") as caught:
            arguments.instance("retries", RetryConfig, other)
        assert caught.value.argument == "retries"


def test_a_backoff_of_the_generated_client_s_shape_is_taken() -> None:
    policy = RetryConfig("backoff", BackoffStrategy(500, 60_000, 1.5, 3_600_000), False)  # noqa: FBT003 - as written there

    assert policy.backoff == BackoffStrategy()
    assert policy.retry_connection_errors is False
