"""Clients that were created without a transport, in and out of `FakeTransport.installed`."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from flux0 import Flux0, HttpxTransport, StreamIdleTimeout
from flux0.client.default_transport import DefaultTransport, default_transport, real_transports
from flux0.domain.headers import Headers
from flux0.models import ClientClosed, ReadTimeout, ServerError
from flux0.ports import Request
from flux0.testing import (
    Delay,
    FakeClock,
    FakeTransport,
    FallSilent,
    Gate,
    Pause,
    Report,
    Respond,
    Say,
)
from support.driving import Time
from support.in_memory import in_both_loops, in_every_mode
from support.modes import in_mode
from support.named_transports import Both
from support.transports import Mode


@contextmanager
def served() -> Generator[tuple[FakeTransport, str], None, None]:
    """Yield a fake and its URL, in place of a production server."""
    fake = FakeTransport("Real")
    with fake.serve() as url:
        yield fake, url


@in_every_mode
async def test_installed_fake_serves_existing_clients_until_its_block_ends(mode: Mode) -> None:
    with served() as (real, url):
        async with in_mode(mode, Flux0(url)) as flux0:
            agent = await flux0.agents.first_async()  # Opens a real connection.
            conversation = await flux0.with_options(timeout_ms=60_000).conversation_async(
                agent=agent
            )
            calls = len(real.calls)
            with FakeTransport("Fake", agent_id=agent.id).installed() as fake:
                session = await flux0.sessions.create_async(agent_id=agent.id, title="Hi")
                stream = await flux0.sessions.create_event_async(
                    session_id=session.id, content="Hi"
                )
                assert [text async for text in stream.text()] == ["Fake"]
                assert (await flux0.agents.first_async()).name == "Fake"
                assert (await conversation.ask("Hi")).text == "Fake"
            assert (len(fake.calls), len(real.calls)) == (4, calls)
            assert (await conversation.ask("Hi")).text == "Real"
    assert len(fake.calls) == 4


def test_installed_fake_is_removed_if_its_block_raises() -> None:
    with served() as (_, url), Flux0(url) as client:
        with pytest.raises(ZeroDivisionError), FakeTransport("Fake").installed():
            raise ZeroDivisionError
        assert client.conversation(agent=client.agents.first()).ask("Hi").text == "Real"


def test_existing_clients_take_no_real_time_over_an_installed_fake() -> None:
    with served() as (_, url), Flux0(url) as flux0, FakeTransport().installed() as fake:
        before = fake.clock.now()
        fake.inject(Respond(503, retry_after=20), operation="agents.list")
        assert len(flux0.agents.list()) == 1
        assert fake.clock.now() - before == 20
        fake.script([Report("typing"), FallSilent()])
        with pytest.raises(StreamIdleTimeout):
            list(flux0.conversation(agent=fake.agent_id).send("Hi"))
        assert fake.clock.now() - before == 620
        fake.inject(Delay(5))
        with pytest.raises(ReadTimeout, match="1 s"):
            flux0.agents.create(name="New", type_="fake", timeout_ms=1000)
        assert fake.clock.now() - before == 621


@in_both_loops
async def test_existing_clients_wait_on_the_clock_of_an_installed_fake(mode: Mode) -> None:
    with served() as (_, url):
        async with Flux0(url) as flux0:
            with FakeTransport(clock=FakeClock(0)).installed() as fake:
                fake.inject(Respond(503, retry_after="Thu, 01 Jan 1970 00:00:09 GMT"))
                await flux0.agents.list_async()
            assert fake.clock.now() == 9


def test_existing_clients_of_other_threads_use_an_installed_fake() -> None:
    with served() as (real, url), Flux0(url) as flux0, ThreadPoolExecutor(4) as threads:
        with FakeTransport("Fake").installed() as fake:

            def ask(number: int) -> str | None:
                return flux0.conversation(agent=fake.agent_id).ask(str(number)).text

            assert set(threads.map(ask, range(40))) == {"Fake"}
        assert len(threads.submit(flux0.agents.list).result()) == 1
    assert [len(each.calls) for each in (fake, real)] == [80, 1]


@in_every_mode
async def test_client_of_a_block_uses_a_later_fake_and_never_a_real_server(mode: Mode) -> None:
    with served() as (real, url), FakeTransport().installed() as fake:
        flux0 = in_mode(mode, Flux0(url))
        await flux0.agents.list_async()
        with FakeTransport().installed() as inner:
            await flux0.agents.list_async()
    await flux0.agents.list_async()
    with FakeTransport().installed() as later:
        await flux0.agents.list_async()
    assert [len(each.calls) for each in (fake, inner, later, real)] == [2, 1, 1, 0]


@in_every_mode
async def test_client_of_a_block_waits_on_the_clock_of_its_fake_after_the_block(mode: Mode) -> None:
    with FakeTransport().installed() as fake:
        flux0 = in_mode(mode, Flux0())
    before = fake.clock.now()
    fake.inject(Respond(503, retry_after=20), times=2)
    with pytest.raises(ServerError):  # The second wait would end after the deadline.
        await flux0.agents.list_async(timeout_ms=30_000)
    assert fake.clock.now() - before == 20


def test_an_installed_fake_leaves_other_transports_alone() -> None:
    other = FakeTransport()
    with (
        served() as (real, url),
        FakeTransport().installed() as fake,
        httpx.Client() as client,
    ):
        for flux0 in (
            Flux0(url, transport=HttpxTransport()),
            Flux0(url, client=client),
            Flux0(url, transport=other),
        ):
            with flux0:
                flux0.agents.list()
    assert [len(each.calls) for each in (fake, other, real)] == [0, 1, 2]


@in_every_mode
async def test_closing_a_client_interrupts_its_streams_of_an_installed_fake(mode: Mode) -> None:
    with served() as (_, url):
        async with in_mode(mode, Flux0(url)) as flux0:
            with FakeTransport([Say("One"), Gate(), Say("Two")]).installed() as fake:
                session = await flux0.sessions.create_async(agent_id=fake.agent_id)
                stream = await flux0.sessions.create_event_async(
                    session_id=session.id, content="Hi"
                )
                await anext(stream)
    with pytest.raises(ClientClosed):
        await anext(stream)
    with pytest.raises(AssertionError, match="left open"):
        fake.assert_no_open_streams()


def test_stream_of_an_installed_fake_is_read_after_its_block() -> None:
    with served() as (_, url), Flux0(url) as flux0:
        with FakeTransport([Say("One"), Pause(5), Say("Two")]).installed() as fake:
            stream = flux0.conversation(agent=fake.agent_id).send("Hi")
            next(stream)
        assert "".join(stream.text()) == "Two"


@in_every_mode
async def test_closing_a_client_without_an_installed_transport_closes_its_own_once(
    mode: Mode,
) -> None:
    own = Both("own", [])
    transport = DefaultTransport(lambda: own)
    await transport.close_async() if mode != "sync" else transport.close()
    assert own.closes == 1


@in_every_mode
async def test_closing_a_client_closes_its_own_and_the_installed_transport_once(mode: Mode) -> None:
    class Installable:
        time = Time()

        def for_client(self) -> Both:
            return installed

    own, installed = Both("own", []), Both("installed", [])
    transport = DefaultTransport(lambda: own)
    with default_transport(Installable()):
        transport.send(Request("GET", "http://h", Headers()))
    for closes in (1, 2):
        await transport.close_async() if mode != "sync" else transport.close()
        assert (own.closes, installed.closes) == (closes, closes)


def test_repr_of_a_default_transport_shows_the_transport_in_use() -> None:
    default: Any = DefaultTransport(HttpxTransport)
    with FakeTransport().installed():
        assert repr(default) == "<FakeTransport, 0 calls>"
    assert repr(default) == "HttpxTransport()"


def test_real_transports_send_only_if_the_innermost_block_allows_it() -> None:
    class OwnTransport(HttpxTransport):
        pass

    with served() as (real, url):
        with real_transports(allowed=False):
            default = Flux0(url)
            for client in (default, Flux0(url, transport=OwnTransport())):
                problem = rf"^agents\.list must not be sent to a server \(GET {url}/api/agents\)"
                with pytest.raises(AssertionError, match=problem):
                    client.agents.list()
                with real_transports(allowed=True):
                    client.agents.list()
            Flux0(url, transport=FakeTransport()).agents.list()
            with FakeTransport().installed():
                default.agents.list()
        assert len(real.calls) == 2
        default.agents.list()
        assert len(real.calls) == 3
