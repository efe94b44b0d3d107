"""Checks of arguments: valid values are returned, and errors name the argument."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any

import pytest

from flux0 import BackoffStrategy, RetryConfig
from flux0.domain import arguments
from flux0.domain.enums import EventSource, EventType
from flux0.domain.errors import InvalidArgument
from flux0.domain.headers import Headers

EMOJI = "\N{GRINNING FACE}"


def rejection(check: Callable[..., object], value: Any, **options: Any) -> str:
    """Return the error message that `check` raises for an argument called `thing`."""
    with pytest.raises(InvalidArgument) as caught:
        check("thing", value, **options)
    assert caught.value.argument == "thing"
    return str(caught.value)


@pytest.mark.parametrize(
    ("check", "value", "expected"),
    [
        *((arguments.text, text, text) for text in ("a", " ", "é", EMOJI, "\0", "a" * 100_000)),
        (arguments.split_headers, {"A": "1", "B": abs}, (Headers((("A", "1"),)), {"b": abs})),
        (arguments.optional_text, None, None),
        (arguments.optional_text, "", ""),
        (arguments.optional_text, "abc", "abc"),
        *((arguments.identifier, id_, id_) for id_ in ("zv3h4j5Fjv", "a-b_c~d.e", "a;b=c", "a +é")),
        (arguments.text, EventSource.USER, EventSource.USER),
        (arguments.names, ["message", EventType.TOOL], ("message", "tool")),
        (arguments.names, {"message": 1, "tool": 2}, ("message", "tool")),
        (arguments.names, iter(["message", "tool", EventType.MESSAGE]), ("message", "tool")),
        *((partial(arguments.integer, smallest=0), number, number) for number in (0, 1, 2**63)),
        (arguments.members, {"a": [None]}, {"a": [None]}),
        (arguments.parameters, MappingProxyType({"a": "", "": "b"}), {"a": "", "": "b"}),
        (arguments.seconds, 1, 0.001),
        (arguments.seconds, 0.5, 0.0005),
        (arguments.seconds, 2**31 - 1, 2147483.647),
    ],
)
def test_valid_arguments_are_returned(check: Callable[..., Any], value: Any, expected: Any) -> None:
    returned = check("thing", value)

    assert returned == expected
    assert type(returned) is type(expected)


def test_mappings_with_wrong_keys_or_values_are_rejected() -> None:
    assert rejection(arguments.members, [("a", 1)]) == "thing must be a mapping, not list"
    assert rejection(arguments.members, {1: "a"}) == "thing must have keys of type str, not int"
    expected = "thing must have a str for 'a', not int"
    assert rejection(arguments.parameters, {"a": 1}) == expected
    for values in ({"a": "\ud800"}, {"\ud800": "a"}):
        assert "lone surrogates" in rejection(arguments.parameters, values)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "thing must not be empty"),
        (1, "thing must be a str, not int"),
        (None, "thing must be a str, not NoneType"),
        (b"a", "thing must be a str, not bytes"),
        ("\ud800", "thing has lone surrogates, which UTF-8 cannot encode"),
        ("\udc80 from a file name", "thing has lone surrogates, which UTF-8 cannot encode"),
    ],
)
@pytest.mark.parametrize("check", [arguments.text, arguments.identifier])
def test_invalid_text_is_rejected(
    check: Callable[..., object], value: object, problem: str
) -> None:
    assert rejection(check, value) == problem


def test_optional_text_must_be_a_str() -> None:
    assert "must be a str" in rejection(arguments.optional_text, 0)


@pytest.mark.parametrize(
    "value",
    [
        *(".", "..", "...", "../agents", "a/b", "a?b", "a#b", "a\\b", "%2F", "%2e%2e", "a%b"),
        *("a\r\nb", "a\0", "\x7f", "a\u2028b"),
    ],
)
def test_id_that_could_reach_another_route_is_rejected(value: str) -> None:
    problem = "thing must be printable, must not consist of dots, and must not contain / \\ ? # %: "
    assert rejection(arguments.identifier, value) == f"{problem}{value!r}"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ("message", "must be a list of names, not 'message'"),
        (EventType.MESSAGE, "must be a list of names"),
        (1, "must be a list of names, not 1"),
        (None, "must be a list of names, not None"),
        ([], "must not be empty: omit the argument for no filter"),
        (iter(()), "must not be empty"),
        ([1], "must be a str, not int"),
        (b"ab", "must be a str, not int"),
        (["message", ""], "must not be empty"),
        (["message", "\ud800"], "has lone surrogates"),
    ],
)
def test_invalid_list_of_names_is_rejected(values: object, problem: str) -> None:
    assert rejection(arguments.names, values).startswith(f"thing {problem}")


@pytest.mark.parametrize(
    ("check", "problem", "values"),
    [
        (
            partial(arguments.integer, smallest=1),
            "must be an int of at least 1, not ",
            [0, -1, -(10**400), True, 1.0, "1", None],
        ),
        (
            arguments.seconds,
            "must be a number of milliseconds above 0 and up to 2,147,483,647, not ",
            [
                0,
                -1,
                0.0,
                math.nan,
                math.inf,
                -math.inf,
                2**31,
                1e300,
                10**400,
                True,
                "1",
                None,
                [1],
            ],
        ),
    ],
)
def test_invalid_numbers_and_flags_are_rejected(
    check: Callable[..., object], problem: str, values: list[Any]
) -> None:
    for value in values:
        assert rejection(check, value).startswith(f"thing {problem}")


def test_retries_must_be_a_retry_config() -> None:
    check = partial(arguments.instance, "retries", RetryConfig)
    # Programs that use the generated client pass such positional arguments.
    policy = RetryConfig("backoff", BackoffStrategy(500, 60_000, 1.5, 3_600_000), False)  # noqa: FBT003

    assert check(policy) is policy
    assert policy == RetryConfig(retry_connection_errors=False)
    for other in ("none", None, 3, {"strategy": "none"}, RetryConfig):
        with pytest.raises(InvalidArgument, match=r"^retries .*RetryConfig"):
            check(other)


# --- server_url


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("https://example.org/flux0/v1//", "https://example.org/flux0/v1"),
        ("HTTP://example.org", "HTTP://example.org"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://bücher.example/%C3%A9", "http://bücher.example/%C3%A9"),
        ("http://a/é/日本", "http://a/%C3%A9/%E6%97%A5%E6%9C%AC"),
        ("http://a/%c3%a9/b%20c", "http://a/%C3%A9/b%20c"),
        ("http://a/b%2fc/%2F", "http://a/b%2Fc/%2F"),
        ("http://a/%41%7eb", "http://a/A~b"),
        ("http://a/%/%2/%zz/%2541/%E9", "http://a/%25/%252/%25zz/%2541/%E9"),
        ('http://a/[b]|^`{}<>"', "http://a/%5Bb%5D%7C%5E%60%7B%7D%3C%3E%22"),
        ("http://a/b:c@d/!$&'()*+,;=-._~", "http://a/b:c@d/!$&'()*+,;=-._~"),
    ],
)
def test_server_url_is_normalized(url: str, base: str) -> None:
    assert arguments.server_url(url) == (base, Headers())


@pytest.mark.parametrize(
    ("login", "credentials"),
    [("me:p%40%C3%A9", "me:p@é"), ("me", "me:"), ("me:a@b", "me:a@b"), ("m%3Ae:", "m:e:")],
)
def test_login_in_the_server_url_becomes_an_authorization_header(
    login: str, credentials: str
) -> None:
    url, header = arguments.server_url(f"http://{login}@example.org:80/a@b/")

    assert url == "http://example.org:80/a@b"
    assert dict(header) == {"authorization": f"Basic {b64encode(credentials.encode()).decode()}"}


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://me:secret@example.org", "me:se@cret@example.org", "http://a:secret@h:x"),
        *("", "localhost", "localhost:8080", "//example.org", "/api", "http:", "http://"),
        *("http:///", "ftp://example.org", "file:///etc/passwd", "javascript:1", "http://:8080"),
        *("http://example.org?a=secret", "http://example.org/#secret", "http://h?a=@#secret"),
        *("http://example.org?a=1", "http://example.org/#top", "http://example.org?", "http://a#"),
        *("http://exa mple.org", "http://example.org/\n", " http://example.org", "http://a\\b"),
        *("http://example.org:port", "http://example.org:99999", "http://example.org:0"),
        *("http://[::1", "http://\ud800.org", "http://a\u2028b", "http://a\x7f"),
        *(None, 8080, b"http://example.org", ["http://example.org"]),
    ],
)
def test_invalid_server_url_is_rejected_without_showing_credentials(url: object) -> None:
    with pytest.raises(InvalidArgument) as caught:
        arguments.server_url(url)

    assert caught.value.argument == "server_url"
    assert "secret" not in str(caught.value)
    assert "cret@" not in str(caught.value)


# --- header fields


@pytest.mark.parametrize(
    "value",
    [
        *("", "x", "Bearer abc.def", "a\tb", "é ÿ", "\x80", "flux0_user_sub=1; b=2", "~", "!"),
        "x" * 100_000,
    ],
)
def test_valid_header_value_is_unchanged(value: str) -> None:
    assert arguments.headers("headers", {"X-Name": value}).pairs == (("X-Name", value),)


@pytest.mark.parametrize(
    "value",
    [
        *("a\r\nX-Evil: 1", "a\n", "\na", "a\rb", "a\0b", "\x7f", "\x1b[0m", "a\x0bb"),
        *(" a", "a ", "\ta", "a\t", " ", "€", "\ud800", "a\u2028b", "x" * 100_000 + "\n"),
        *(1, None, b"bytes", ["a"], "Bearer secret\n"),
    ],
)
def test_invalid_header_value_is_rejected(value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^http_headers has .*'X-Name'") as caught:
        arguments.headers("http_headers", {"Accept": "*/*", "X-Name": value})

    assert caught.value.argument == "http_headers"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        *(
            ({name: "x"}, "not a valid header name")
            for name in ("", "a b", "a:", "a\n", "ä", "(x)", "a\0")
        ),
        *(({name: "x"}, "must have keys of type str") for name in (1, None, b"accept")),
        ({"Content-Length": "1"}, "must not have 'Content-Length': the transport sets it"),
        ({"transfer-encoding": "1"}, "must not have 'transfer-encoding': the transport sets it"),
        ({"Cookie": "a=1", "cookie": "b=2"}, "must have only one of 'Cookie' and 'cookie'"),
        *((odd, "must be a mapping") for odd in ([("a", "b")], "a: b", 1, {"a"})),
    ],
)
def test_invalid_and_reserved_header_names_are_rejected(fields: Any, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem) as caught:
        arguments.headers("headers", fields)

    assert caught.value.argument == "headers"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"a b": str}, "not a valid header name"),
        ({"Content-Length": str}, "must not have 'Content-Length': the transport sets it"),
        ({"Cookie": "a=1", "cookie": str}, "must have only one of 'Cookie' and 'cookie'"),
    ],
)
def test_invalid_name_of_a_computed_header_is_rejected(fields: Any, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        arguments.split_headers("headers", fields)


@pytest.mark.parametrize(
    ("user", "value"),
    [
        ("ann@example.org", "ann@example.org"),
        ("ann; admin=1", "ann%3B%20admin=1"),
        ("Anonymous", "Anonymous"),
        ("anonymous ", "anonymous%20"),
        ('"Zo\u00eb", 100%\\\r\n', "%22Zo%C3%AB%22%2C%20100%25%5C%0D%0A"),
    ],
)
def test_name_of_a_user_is_the_value_of_one_cookie(user: str, value: str) -> None:
    assert arguments.user("user", user) == Headers((("cookie", f"flux0_user_sub={value}"),))


def test_name_of_the_servers_anonymous_user_is_rejected() -> None:
    with pytest.raises(InvalidArgument, match='must not be "anonymous", the'):
        arguments.user("user", "anonymous")
