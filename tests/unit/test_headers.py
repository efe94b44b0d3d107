"""Header fields: a mapping without case, checked where it comes from users, shown with care."""

from __future__ import annotations

from typing import Any

import pytest

from flux0.domain import arguments
from flux0.domain.errors import InvalidArgument
from flux0.domain.headers import Headers

FIELDS = Headers((("Content-Type", "text/plain"), ("Set-Cookie", "a=1"), ("set-cookie", "b=2")))


def test_names_compare_without_case() -> None:
    assert FIELDS["content-type"] == FIELDS["CONTENT-TYPE"] == "text/plain"
    assert "CONTENT-type" in FIELDS
    assert "content" not in FIELDS
    assert list(filter(FIELDS.__contains__, [1, None, "set-cookie"])) == ["set-cookie"]
    assert FIELDS.get("accept", "none") == "none"
    with pytest.raises(KeyError):
        FIELDS["accept"]


def test_fields_of_one_name_are_joined_and_can_be_had_apart() -> None:
    assert dict(FIELDS) == {"content-type": "text/plain", "set-cookie": "a=1, b=2"}
    assert list(FIELDS) == ["content-type", "set-cookie"]
    assert len(FIELDS) == 2
    assert not Headers()
    assert FIELDS.get_all("SET-COOKIE") == ("a=1", "b=2")
    assert FIELDS.get_all("accept") == ()


def test_fields_are_equal_when_they_are_written_alike() -> None:
    assert Headers((("A", "1"),)) == Headers((("A", "1"),))
    assert Headers((("A", "1"),)) != Headers((("A", "2"),))
    assert len({Headers((("A", "1"),)), Headers((("A", "1"),))}) == 1


def test_merging_replaces_all_fields_of_a_name_and_keeps_the_rest() -> None:
    fields = (("SET-COOKIE", "c=3"), ("accept", "*/*"))

    assert FIELDS.merge(Headers(fields)).pairs == (("Content-Type", "text/plain"), *fields)
    assert FIELDS.merge(Headers()) == FIELDS
    assert Headers().merge(FIELDS) == FIELDS


@pytest.mark.parametrize(
    "value",
    [
        *("", "x", "Bearer abc.def", "a\tb", "é ÿ", "\x80", "flux0_user_sub=1; b=2", "~", "!"),
        "x" * 100_000,
    ],
)
def test_a_value_that_http_allows_is_taken_as_it_is(value: str) -> None:
    assert arguments.headers("headers", {"X-Name": value}).pairs == (("X-Name", value),)


@pytest.mark.parametrize(
    "value",
    [
        *("a\r\nX-Evil: 1", "a\n", "\na", "a\rb", "a\0b", "\x7f", "\x1b[0m", "a\x0bb"),
        *(" a", "a ", "\ta", "a\t", " ", "€", "\ud800", "a\u2028b", "x" * 100_000 + "\n"),
        *(1, None, b"bytes", ["a"], "Bearer secret\n"),
    ],
)
def test_a_value_that_http_does_not_allow_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^http_headers has .*'X-Name'") as caught:
        arguments.headers("http_headers", {"Accept": "*/*", "X-Name": value})

    assert caught.value.argument == "http_headers"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        *(
            ({name: "x"}, "not a header name")
            for name in ("", "a b", "a:", "a\n", "ä", "(x)", "a\0", 1, None, b"accept")
        ),
        ({"Content-Length": "1"}, "has 'Content-Length', which the transport"),
        ({"transfer-encoding": "1"}, "has 'transfer-encoding', which the transport"),
        *((odd, "must be a mapping") for odd in ([("a", "b")], "a: b", 1, {"a"})),
    ],
)
def test_what_are_no_fields_of_the_users_to_set_is_refused(fields: Any, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem) as caught:
        arguments.headers("headers", fields)

    assert caught.value.argument == "headers"


@pytest.mark.parametrize(
    "name",
    [
        *("Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "X-Api-Key", "Location"),
        *("X-Auth-Token", "WWW-Authenticate", "X-Whatever"),
    ],
)
def test_what_may_be_a_credential_is_never_shown(name: str) -> None:
    headers = Headers((("Content-Type", "text/plain"), (name, "secret")))

    assert headers.redacted() == {"content-type": "text/plain", name.lower(): "***"}
    assert "secret" not in repr(headers)
    assert "secret" not in str(headers)
    assert "text/plain" in repr(headers)
    assert headers[name] == "secret"
