"""Tokens: who is logged in, for a client, a conversation or a call, and tokens that expire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from flux0 import Flux0
from flux0.domain.api_errors import AuthenticationError
from flux0.domain.errors import InvalidArgument, ReadTimeout
from flux0.observers import AttemptEnd, Call, Observer
from flux0.testing import FakeTransport
from support.in_memory import in_both_loops, in_every_mode, in_simulated_time
from support.modes import in_mode, result_of
from support.transports import Mode

ANN, BOB = {"authorization": "Bearer ann-1"}, {"authorization": "Bearer bob-1"}


def server() -> FakeTransport:
    return FakeTransport("Sunny.", tokens={"ann-1": "ann", "ann-2": "ann", "bob-1": "bob"})


def sent_tokens(fake: FakeTransport) -> list[str | None]:
    return [call.headers.get("authorization") for call in fake.calls]


class Tokens:
    """A token source: its first token has expired."""

    def __init__(self, *tokens: str) -> None:
        self.left = list(tokens)

    def next(self) -> str:
        return f"Bearer {self.left.pop(0)}"

    async def next_async(self) -> str:
        return self.next()


class Attempts(Observer):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int | None]] = []

    def on_attempt_end(self, call: Call, attempt: AttemptEnd) -> None:
        self.seen.append((call.operation, attempt.number, attempt.status_code))


# --- one client, several users


@in_every_mode
async def test_each_conversation_has_its_own_token(mode: Mode) -> None:
    fake = server()

    async with in_mode(mode, Flux0(transport=fake, headers=BOB)) as flux0:
        chat = await flux0.conversation_async(agent=fake.agent_id, http_headers=ANN)
        stream = await chat.send("Hi")
        await result_of(stream.final_messages())
        await result_of(stream.stored_events())
        again = await flux0.conversation_async(session=chat.session_id, http_headers=ANN)
        assert await again.belongs_to_user()
        assert len(await again.history()) == 2

    assert sent_tokens(fake) == [ANN["authorization"]] * 5


@in_every_mode
async def test_user_cannot_use_the_session_of_another_user(mode: Mode) -> None:
    fake = server()

    async with in_mode(mode, Flux0(transport=fake)) as flux0:
        # The server ignores the cookie of `user`.
        chat = await flux0.conversation_async(agent=fake.agent_id, user="bob", http_headers=ANN)
        for http_headers, expected in ((ANN, [chat.session_id]), (BOB, [])):
            sessions = await flux0.sessions.list_async(http_headers=http_headers, user="ann")
            assert [session.id for session in sessions] == expected
            same = await flux0.conversation_async(
                session=chat.session_id, http_headers=http_headers
            )
            assert await same.belongs_to_user() is bool(expected)
        with pytest.raises(AuthenticationError, match="Invalid token"):
            await flux0.sessions.list_async(user="ann")


@in_every_mode
async def test_token_of_a_conversation_or_a_call_replaces_the_token_of_the_client(
    mode: Mode,
) -> None:
    url = "http://login:password@127.0.0.1:8080"
    clients: list[dict[str, Any]] = [
        {},
        {"server_url": url},
        {"headers": {"Authorization": "Bearer bob-1", "user-agent": lambda: "app/1"}},
        {"headers": {"AUTHORIZATION": Tokens().next}},
    ]
    for options in clients:
        fake = server()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FLUX0_TOKEN", "of-the-environment")
            client = Flux0(transport=fake, **options)
        async with in_mode(mode, client) as flux0:
            for http_headers in (ANN, {"Authorization": lambda: "Bearer ann-1"}):
                await flux0.agents.list_async(http_headers=http_headers)
                await flux0.agents.list_async(http_headers=http_headers, server_url=url)
                view = flux0.with_options(http_headers=http_headers)
                await view.agents.list_async(http_headers={"x-tenant": "blue"})
                chat = await flux0.conversation_async(
                    agent=fake.agent_id, http_headers=http_headers
                )
                await result_of(chat.ask("Hi"))

        assert sent_tokens(fake) == ["Bearer ann-1"] * 10


@in_every_mode
async def test_functions_and_fixed_cookies_are_joined(mode: Mode) -> None:
    fake = FakeTransport()
    computed = {"cookie": lambda: "a=1; b=1; flux0_user_sub=eve"}

    async with in_mode(mode, Flux0(transport=fake, headers=computed)) as flux0:
        await flux0.sessions.list_async(user="ada", http_headers={"cookie": "b=2"})
        await flux0.sessions.list_async(http_headers={"cookie": lambda: "c=3"})

    cookies = [call.headers["cookie"] for call in fake.calls]
    assert cookies == ["a=1; b=2; flux0_user_sub=ada", "c=3"]


@in_every_mode
async def test_invalid_header_of_a_conversation_is_rejected(mode: Mode) -> None:
    fake = server()
    wrong: list[Any] = [{"a b": lambda: "x"}, {"A": "1", "a": lambda: "2"}, {"a": 1}, [("a", "x")]]

    async with in_mode(mode, Flux0(transport=fake)) as flux0:
        for http_headers in wrong:
            targets: list[dict[str, Any]] = [{"agent": fake.agent_id}, {"session": "s" * 10}]
            for target in targets:
                with pytest.raises(InvalidArgument) as caught:
                    await flux0.conversation_async(**target, http_headers=http_headers)
                assert caught.value.argument == "http_headers"

    assert fake.calls == ()


# --- tokens that expire


def sources(mode: Mode, tokens: Tokens) -> list[Callable[[], str | Awaitable[str]]]:
    return [tokens.next] if mode == "sync" else [tokens.next, tokens.next_async]


@in_every_mode
async def test_expired_token_is_renewed_and_the_message_is_stored_once(mode: Mode) -> None:
    for number in range(1 if mode == "sync" else 2):
        fake, attempts = server(), Attempts()
        tokens = Tokens("ann-1", "old", "ann-2", "ann-2")
        source = sources(mode, tokens)[number]
        client = Flux0(transport=fake, headers={"authorization": source}, observers=[attempts])

        async with in_mode(mode, client) as flux0:
            chat = await flux0.conversation_async(agent=fake.agent_id)
            assert (await result_of(chat.ask("Hi"))).text == "Sunny."
            stored = await flux0.sessions.list_events_async(session_id=chat.session_id)

        assert [event.source for event in stored] == ["user", "ai_agent"]
        assert tokens.left == []
        assert attempts.seen == [
            ("sessions.create", 1, 201),
            ("sessions.create_event", 1, 401),
            ("sessions.create_event", 2, 200),
            ("sessions.list_events", 1, 200),
        ]


@in_simulated_time
async def test_error_of_a_hanging_renewal_counts_the_second_attempt(mode: Mode) -> None:
    fake, tokens = server(), iter(("old",))

    async def token() -> str:
        for each in tokens:
            return each
        await anyio.sleep_forever()
        raise AssertionError("not reached")

    async with Flux0(transport=fake, headers={"authorization": token}) as flux0:
        with pytest.raises(ReadTimeout, match="timeout_ms") as caught:
            await flux0.agents.list_async(timeout_ms=10_000)

    assert (caught.value.operation, caught.value.attempts) == ("agents.list", 2)


@in_every_mode
async def test_call_asks_for_a_new_token_only_once(mode: Mode) -> None:
    fake, tokens = server(), Tokens("old", "older", "not asked")

    async with in_mode(mode, Flux0(transport=fake)) as flux0:
        with pytest.raises(AuthenticationError) as caught:
            await flux0.conversation_async(
                agent=fake.agent_id, http_headers={"Authorization": tokens.next}
            )

    assert (caught.value.attempts, caught.value.sent) == (2, "no")
    assert tokens.left == ["not asked"]


@in_every_mode
async def test_call_with_a_fixed_token_is_not_sent_again(mode: Mode) -> None:
    fake, tokens = server(), Tokens("not asked")
    fixed = {"authorization": "Bearer old"}

    async with in_mode(mode, Flux0(transport=fake, headers={"authorization": tokens.next})) as one:
        with pytest.raises(AuthenticationError):
            await one.agents.list_async(http_headers=fixed)
    async with in_mode(mode, Flux0(transport=fake, headers=fixed)) as other:
        with pytest.raises(AuthenticationError):
            await other.agents.list_async()

    assert len(fake.calls) == 2
    assert tokens.left == ["not asked"]


@in_every_mode
async def test_error_of_the_token_function_after_a_401_is_raised(mode: Mode) -> None:
    fake, tokens = server(), Tokens("old")

    async with in_mode(mode, Flux0(transport=fake, headers={"authorization": tokens.next})) as one:
        with pytest.raises(IndexError):
            await one.agents.list_async()

    assert len(fake.calls) == 1


@in_both_loops
async def test_token_is_renewed_over_http(mode: Mode) -> None:
    fake, tokens = server(), Tokens("old", "ann-1", "ann-1")

    with fake.serve() as url:
        async with Flux0(url, headers={"authorization": tokens.next_async}) as flux0:
            chat = await flux0.conversation_async(agent=fake.agent_id)
            assert (await chat.ask("Hi")).text == "Sunny."

    assert [call.operation for call in fake.calls] == [
        *("sessions.create", "sessions.create", "sessions.create_event")
    ]
