"""Injected faults: calls that fail and streams that are interrupted, as a client sees them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given, settings, strategies as st

from flux0 import Flux0, RetryConfig, StreamIdleTimeout, StreamInterrupted
from flux0.domain.api_errors import RateLimitError, ServerError
from flux0.domain.errors import (
    ConnectError,
    ConnectionInterrupted,
    ConnectTimeout,
    InvalidArgument,
    PoolTimeout,
    ReadTimeout,
    TLSError,
)
from flux0.models import ChunkEvent, StatusEvent
from flux0.ports import Timeout
from flux0.testing import (
    AgentStep,
    Delay,
    Drop,
    FakeTransport,
    Fault,
    Pause,
    Refuse,
    Report,
    Respond,
    Say,
    Split,
    Stall,
    Truncate,
)
from support.fakes import ask, begin, kinds, new_session, post, request

ONCE = RetryConfig(strategy="none")


def client(fake: FakeTransport) -> Flux0:
    """Return a client without retries."""
    return Flux0(transport=fake, retry_config=ONCE)


# --- failed calls


def test_injected_status_applies_to_the_next_calls() -> None:
    fake = FakeTransport()
    fake.inject(Respond(429, retry_after=3), times=2)
    with client(fake) as flux0:
        for _ in range(2):
            with pytest.raises(RateLimitError, match="Too Many Requests") as caught:
                flux0.agents.list()
            assert caught.value.headers["retry-after"] == "3"
            assert caught.value.headers["content-type"] == "application/json"
        assert len(flux0.agents.list()) == 1
    fake.assert_all_used()
    fake.assert_no_open_streams()


@pytest.mark.parametrize(
    ("fault", "body", "headers"),
    [
        (Respond(500), b"Internal Server Error", {"content-type": "text/plain; charset=utf-8"}),
        (Respond(500, "why"), b'{"detail": "why"}', {"content-type": "application/json"}),
        (Respond(503, {"why": 1}), b'{"detail": {"why": 1}}', {"content-type": "application/json"}),
        (
            Respond(502, body=b"<p>", headers={"Via": "proxy"}, retry_after="Fri"),
            b"<p>",
            {"content-type": "text/html", "via": "proxy", "retry-after": "Fri"},
        ),
        (Respond(502, body=b""), b"", {"content-type": "text/html"}),
        (
            Respond(500, body=b"Oh", headers={"Content-Type": "text/plain"}),
            b"Oh",
            {"content-type": "text/plain", "content-length": "2"},
        ),
        *(
            (Respond(status), f'{{"detail": "Status {status}"}}'.encode(), {})
            for status in (499, 520, 522, 524, 529, 599)
        ),
    ],
)
def test_injected_response_is_returned(
    fault: Respond, body: bytes, headers: dict[str, str]
) -> None:
    fake = FakeTransport()
    fake.inject(fault)
    response = ask(fake, "GET", "/api/agents")
    assert (response.status_code, response.body) == (fault.status_code, body)
    assert dict(response.headers).items() >= headers.items()
    assert ("retry-after" in response.headers) is (fault.retry_after is not None)


def test_faults_apply_to_matching_calls_only() -> None:
    fake = FakeTransport()
    fake.inject(Respond(500), after=1, times=2, operation="agents.list")
    fake.inject(Respond(503), operation="sessions.list")
    fake.inject(Respond(502), when=lambda call: call.user == "ann")
    fake.inject(Respond(504), when=lambda call: re.match("Bad", call.arguments.get("title", "")))
    with client(fake) as flux0:
        flux0.agents.list()
        with pytest.raises(ServerError, match="503"):
            flux0.sessions.list()
        flux0.sessions.list()
        for _ in range(2):
            with pytest.raises(ServerError, match="500"):
                flux0.agents.list()
        flux0.agents.list()
        for user in (None, "bob"):
            flux0.conversation(agent=fake.agent_id, user=user, title="Good")
        with pytest.raises(ServerError, match="502"):
            flux0.conversation(agent=fake.agent_id, user="ann")
        with pytest.raises(ServerError, match="504"):
            flux0.conversation(agent=fake.agent_id, user="ann", title="Bad")
    fake.assert_all_used()


WRONG: list[tuple[Callable[[FakeTransport], object], str]] = [
    (lambda fake: fake.inject(Refuse(), operation="agents.lst"), "did you mean agents.list?"),
    (lambda fake: fake.expect("talk"), "the operations are agents.create, agents.retrieve"),
    (lambda fake: fake.assert_called("session.create"), "did you mean sessions.create"),
]


@pytest.mark.parametrize(("act", "hint"), WRONG)
def test_unknown_operations_raise_with_a_hint(
    act: Callable[[FakeTransport], object], hint: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        act(FakeTransport())
    assert hint in str(caught.value)


def test_delay_moves_the_clock_but_not_the_agent() -> None:
    fake = FakeTransport([Pause(1), Say("Hello")])
    began = fake.clock.now()
    fake.inject(Delay(3), times=2)
    with client(fake) as flux0:
        session = flux0.sessions.create(agent_id=fake.agent_id)
        with flux0.sessions.create_event(session_id=session.id, content="Hi") as stream:
            assert fake.clock.now() - began == 6
            # The agent acted immediately, because only the response is delayed.
            assert len(flux0.sessions.list_events(session_id=session.id)) == 2
            assert list(stream)
        fake.inject(Delay(70), operation="agents.create")
        with pytest.raises(ReadTimeout, match="60 s"):
            flux0.agents.create(name="N", type_="fake")
        assert len(flux0.agents.list()) == 2
    assert fake.clock.now() - began == 66
    fake.assert_no_open_streams()


def test_retry_after_date_uses_the_clock_of_the_fake() -> None:
    fake = FakeTransport()
    fake.inject(Respond(503, retry_after="Thu, 01 Jan 2026 00:00:30 GMT"))
    with Flux0(transport=fake) as flux0:
        flux0.agents.list()
    assert [call.time - 1767225600.0 for call in fake.calls] == [0, 30]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ConnectError, "connection refused"),
        (ConnectTimeout, "could not connect within 10 s (connect timeout)"),
        (PoolTimeout, "no connection of the pool became free within 10 s (pool timeout)"),
        (TLSError, "the server's certificate is not trusted: self-signed certificate"),
    ],
)
def test_refuse_raises_a_connect_error(kind: type[ConnectError], message: str) -> None:
    fake = FakeTransport()
    fake.inject(Refuse(kind))
    with client(fake) as flux0:
        with pytest.raises(kind, match=re.escape(message)):
            flux0.agents.create(name="N", type_="fake")
        assert len(flux0.agents.list()) == 1


@pytest.mark.parametrize(("after_acting", "agents"), [(False, 1), (True, 2)])
def test_drop_interrupts_the_connection(after_acting: bool, agents: int) -> None:
    fake = FakeTransport([Pause(1), Say("Hello")])
    session_id = new_session(fake)
    fake.inject(Drop(after_acting=after_acting), times=2)
    with client(fake) as flux0:
        with pytest.raises(ConnectionInterrupted, match="connection was closed before the resp"):
            flux0.agents.create(name="N", type_="fake")
        with pytest.raises(ConnectionInterrupted):
            flux0.sessions.create_event(session_id=session_id, content="Hi")
        assert len(flux0.agents.list()) == agents
        # The agent has stored nothing, because the turn was cancelled.
        stored = flux0.sessions.list_events(session_id=session_id)
        assert [event.source for event in stored] == ["user"] * after_acting
    fake.assert_no_open_streams()


def test_stall_without_position_expires_the_read_timeout() -> None:
    fake = FakeTransport()
    fake.inject(Stall(), times=2)
    began = fake.clock.now()
    with pytest.raises(ReadTimeout):
        fake.send(request("GET", "/api/agents", timeout=Timeout(read=2.5)))
    assert fake.clock.now() - began == 2.5
    with pytest.raises(AssertionError, match="it has no read timeout"):
        fake.send(request("GET", "/api/agents", timeout=Timeout(read=None)))


@pytest.mark.parametrize(("kind", "seconds"), [(ConnectTimeout, 5), (PoolTimeout, 7)])
def test_refused_call_names_the_timeout(kind: type[ConnectError], seconds: int) -> None:
    fake, name = FakeTransport(), kind.__name__.removesuffix("Timeout").lower()
    fake.inject(Refuse(kind))
    with pytest.raises(kind, match=rf"within {seconds} s \({name} timeout\)"):
        fake.send(request("GET", "/api/agents", timeout=Timeout(connect=5, pool=7)))


# --- interrupted bodies


STEPS: list[AgentStep] = [Report("processing"), Say("Hello there", pieces=4), Report("typing")]
SLOW: list[AgentStep] = [
    Report("processing"),
    Pause(1),
    Say("Hello there", pieces=4, pause=1),
    Pause(1),
    Report("typing"),
]


def read(
    *faults: Fault, steps: list[AgentStep] = STEPS
) -> tuple[list[Any], BaseException | None, FakeTransport]:
    """Run a turn with faults; return its events, the stream's error if any, and the fake."""
    fake = FakeTransport()
    fake.script(steps)
    session_id = new_session(fake)
    if faults:
        fake.inject(*faults)
    events: list[Any] = []
    failure = None
    with client(fake) as flux0:
        try:
            events.extend(flux0.sessions.create_event(session_id=session_id, content="Hi"))
        except (StreamInterrupted, StreamIdleTimeout) as error:
            failure = error
    fake.assert_no_open_streams()
    fake.assert_all_used()
    return events, failure, fake


@pytest.mark.parametrize(
    ("events", "stored"), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 3)]
)
@pytest.mark.parametrize("more", [(), (Split(7),)])
def test_stream_is_truncated_after_events(
    events: int, stored: int, more: tuple[Fault, ...]
) -> None:
    received, failure, fake = read(*more, Truncate(after_events=events), steps=SLOW)
    assert len(received) == events
    assert isinstance(failure, StreamInterrupted)
    assert failure.event_count == events
    assert len(kinds(fake, "s000000001")) == 1 + stored


def complete_body() -> bytes:
    """Return the bytes of a turn without faults."""
    return b"".join(begin(STEPS)[2])


def test_truncate_without_arguments_sends_only_the_response_head() -> None:
    received, failure, _ = read(Truncate())
    assert received == []
    assert isinstance(failure, StreamInterrupted)


@settings(max_examples=50)
@given(st.data())
def test_stream_is_truncated_at_any_byte(data: st.DataObject) -> None:
    body = complete_body()
    size = data.draw(st.integers(0, len(body)))
    clean = data.draw(st.booleans())
    received, failure, _ = read(Truncate(after_bytes=size, clean=clean))
    assert len(received) == body[:size].count(b"\n\n")
    ends_well = clean and (not size or body[:size].endswith(b"\n\n"))
    assert (failure is None) is ends_well


@pytest.mark.parametrize("fault", [Stall(after_events=2), Stall(after_bytes=700)])
def test_stalled_stream_expires_the_idle_timeout(fault: Stall) -> None:
    received, failure, fake = read(fault)
    assert [type(event) for event in received] == [StatusEvent, ChunkEvent]
    assert isinstance(failure, StreamIdleTimeout)
    assert fake.clock.now() == 1767225600.0 + 600


def test_truncated_and_stalled_lists_raise() -> None:
    fake = FakeTransport()
    fake.inject(Truncate(after_bytes=5))
    fake.inject(Stall(after_bytes=5))
    fake.inject(Respond(503), Truncate(after_bytes=3))
    with client(fake) as flux0:
        with pytest.raises(ConnectionInterrupted, match="connection was closed within the body"):
            flux0.agents.list()
        with pytest.raises(ReadTimeout, match="60 s"):
            flux0.agents.list()
        with pytest.raises(ServerError, match="503"):  # The status takes precedence.
            flux0.agents.list()


def test_truncate_after_the_end_of_the_body_raises() -> None:
    fake = FakeTransport()
    session_id = new_session(fake)
    fake.inject(Truncate(after_events=3))
    applied = (
        r"was not applied: the response body of sessions\.create_event\(.*\) has only 1 events"
    )
    with pytest.raises(AssertionError, match=rf"Truncate\(.*\) {applied}"):
        list(post(fake, session_id))
    fake.inject(Stall(after_bytes=10_000))
    with pytest.raises(AssertionError, match=r"agents\.list\(\) has only \d{3} bytes"):
        ask(fake, "GET", "/api/agents")


@settings(max_examples=25)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=5))
def test_split_changes_pieces_but_not_content(sizes: list[int]) -> None:
    fake = FakeTransport(STEPS)
    session_id = new_session(fake)
    fake.inject(Split(sizes))
    pieces = list(post(fake, session_id))
    assert b"".join(pieces) == complete_body()
    assert all(pieces)
    expected = (sizes * len(pieces))[: len(pieces)]
    assert [*map(len, pieces)][:-1] == expected[:-1]
    assert len(pieces[-1]) <= expected[-1]
    assert read(Split(sizes))[0] == read()[0]


def test_pause_flushes_a_partial_piece() -> None:
    fake = FakeTransport([Report("typing"), Pause(1), Pause(1), Report("typing")])
    session_id = new_session(fake)
    fake.inject(Split(10_000))
    first, second = post(fake, session_id)
    assert first == second


def inject(*faults: Any, **options: Any) -> None:
    FakeTransport().inject(*faults, **options)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Truncate(after_events=1, after_bytes=1), "after_bytes cannot be combined with"),
        (lambda: Stall(after_events=0, after_bytes=1), "after_bytes cannot be combined with"),
        (lambda: Truncate(after_bytes=-1), "after_bytes must be an int of at least 0, not -1"),
        (lambda: Stall(after_events=cast("int", "2")), "after_events must be an int of at least"),
        (lambda: Split(0), "sizes must be an int of at least 1, not 0"),
        (lambda: Split(()), "sizes must be an int of at least 1, not 0"),
        (lambda: Split((5, -1)), "sizes must be an int of at least 1, not -1"),
        (lambda: Split(cast("int", 1.5)), r"sizes must be an int of at least 1, not 1\.5"),
        (lambda: Delay(-1), "seconds must be a number from 0"),
        (lambda: Respond(99), "status_code must be an int of at least 200, not 99"),
        (
            lambda: Respond(cast("int", "503")),
            "status_code must be an int of at least 200, not '503'",
        ),
        (lambda: Respond(1000), "status_code must be from 200 to 999, not 1000"),
        (lambda: Respond(503, headers=cast("Any", 5)), "headers must be a mapping, not int"),
        (
            lambda: Respond(503, headers=cast("Any", {"a": 5})),
            "headers must have a str",
        ),
        (lambda: Drop(cast("bool", 5)), "after_acting must be a bool, not int"),
        (lambda: Refuse(cast("Any", 5)), "raises must be ConnectError or a subclass of it, not 5"),
        (lambda: Refuse(cast("Any", ValueError)), "raises must be ConnectError or a subc"),
        (lambda: inject(Refuse(), times=0), "times must be an int of at least 1, not 0"),
        (lambda: inject(Refuse(), after=-1), "after must be an int of at least 0, not -1"),
        (lambda: inject(503), r"faults must be faults of flux0\.testing, such as .*, not 503"),
        (lambda: inject([Respond(503)]), r"faults must be faults .*, not \[Respond\("),
        (lambda: inject(Respond), "faults must be faults .*, not <class"),
        (lambda: inject(Refuse(), None), "faults must be faults .*, not None"),
        (lambda: inject(Say("x")), "faults must be faults .*, not Say"),
        (inject, "faults must be faults .*, not None"),
    ],
)
def test_invalid_faults_raise(make: Callable[[], object], problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        make()
