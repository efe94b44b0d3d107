"""Many threads use the same objects of flux0. Run it with a free-threaded build of Python, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from time import sleep
from typing import Any

import pytest

from flux0 import BackgroundTurns, Flux0, StatusEvent
from flux0.domain.errors import ClientClosed, Flux0Error, StreamInUse
from flux0.observers import Call, Observer, TurnEnd
from flux0.testing import FakeTransport, Respond, Say
from support.in_memory import chunk, tape
from support.many_threads import THREADS, frequent_switches, in_each_thread, in_threads
from support.streams import open_sync, value_of

__all__ = ["frequent_switches"]

ROUNDS = 20
WORDS = [f"{number} " for number in range(60)]
TEXT = "".join(WORDS)


def values_from(step: Callable[[], Any]) -> list[Any]:
    """Return all values of an iterator that other threads read, too."""
    values: list[Any] = []
    while True:
        try:
            values.append(step())
        except StreamInUse:
            sleep(0.0001)  # The other threads can run.
        except StopIteration:
            return values


def is_subsequence(values: list[Any], whole: list[Any]) -> bool:
    rest = iter(whole)
    return all(value in rest for value in values)


# --- the queue of a session


class TurnEnds(Observer):
    def __init__(self) -> None:
        self.turns: list[str | None] = []

    def on_turn_end(self, call: Call, turn: TurnEnd) -> None:
        self.turns.append(call.operation)


def test_each_message_on_one_session_is_sent_once_and_reported_once() -> None:
    observer, fake = TurnEnds(), FakeTransport("Hi")
    with Flux0(transport=fake, observers=[observer]) as client:
        session = client.sessions.create(agent_id=fake.agent_id)

        def send() -> None:
            # The message of another thread may close the stream.
            with (
                suppress(ClientClosed),
                client.conversation(session=session.id).send("Hi") as stream,
            ):
                assert len(list(stream)) > 0

        def send_all() -> None:
            for _ in range(ROUNDS):
                send()

        in_each_thread(send_all)

    messages = [call for call in fake.calls if call.operation == "sessions.create_event"]
    assert len(messages) == len(observer.turns) == THREADS * ROUNDS


# --- one stream


def check(seen: list[list[Any]], whole: list[Any]) -> None:
    assert Counter(value for values in seen for value in values) == Counter(whole)
    assert all(is_subsequence(values, whole) for values in seen)


@pytest.mark.parametrize("events_per_read", [1, len(WORDS)])
def test_threads_that_call_next_get_each_event_once(events_per_read: int) -> None:
    for _ in range(ROUNDS):
        with in_pieces(events_per_read) as stream:
            seen = in_each_thread(lambda: values_from(lambda: value_of(next(stream))))
            check(seen, WORDS)
            assert stream.answer == TEXT


@pytest.mark.parametrize("events_per_read", [1, len(WORDS)])
def test_threads_that_share_an_iterator_get_each_event_once(events_per_read: int) -> None:
    for _ in range(ROUNDS):
        with in_pieces(events_per_read) as stream:
            events = iter(stream)
            first = value_of(next(events))
            seen = in_each_thread(lambda: values_from(lambda: value_of(next(events))))  # noqa: B023 - called in this round
            check([[first], *seen], WORDS)
            assert stream.answer == TEXT


@pytest.mark.parametrize("events_per_read", [1, len(WORDS)])
def test_threads_that_share_text_get_each_piece_once(events_per_read: int) -> None:
    for _ in range(ROUNDS):
        with in_pieces(events_per_read) as stream:
            texts = stream.text()
            first = next(texts)
            seen = in_each_thread(lambda: values_from(lambda: next(texts)))  # noqa: B023 - called in this round
            check([[first], *seen], WORDS)
            assert stream.answer == TEXT


def test_threads_that_share_a_relay_get_each_piece_once() -> None:
    for _ in range(ROUNDS):
        relay: Any = in_pieces(1).relay(heartbeat_ms=None)
        seen = in_each_thread(lambda: values_from(lambda: next(relay)))  # noqa: B023 - called in this round
        every: list[bytes] = [each for pieces in seen for each in pieces]
        pieces = b"".join(sorted(every, key=lambda piece: number_in(bytes(piece))))
        assert pieces == b"".join(map(chunk, WORDS))


def test_attributes_show_a_prefix_of_the_answer_while_another_thread_reads() -> None:
    for _ in range(ROUNDS):
        with in_pieces(1) as stream:

            def look() -> list[str]:
                answers = list[str]()
                while stream.is_open:
                    answers.append(stream.answer)
                    sleep(0.0001)  # The reader can run.
                return answers

            def read() -> list[str]:
                return list(stream.text())

            texts, *answers = in_threads(read, look, look, look)
            assert texts == WORDS
            assert all(TEXT.startswith(answer) for each in answers for answer in each)
            assert all(each == sorted(each, key=len) for each in answers)


def test_closing_a_relay_while_another_thread_reads_it_ends_both() -> None:
    for _ in range(ROUNDS * 5):
        stream = in_pieces(1)
        relay: Any = stream.relay(heartbeat_ms=None)
        pieces, _ = in_threads(lambda: list(relay), lambda: relay.close() or [])  # noqa: B023 - called in this round
        assert b"".join(map(chunk, WORDS)).startswith(b"".join(pieces))
        assert not stream.is_open


def in_pieces(events_per_read: int) -> Any:
    events = [chunk(word) for word in WORDS]
    starts = range(0, len(events), events_per_read)
    return open_sync(tape(*[b"".join(events[at : at + events_per_read]) for at in starts]))


def number_in(piece: bytes) -> int:
    return int(piece.partition(b'"value":')[2].strip(b' "').partition(b" ")[0])


# --- background turns


def test_each_reader_of_a_background_turn_gets_all_events() -> None:
    fake = FakeTransport([Say(word) for word in WORDS])
    turns = BackgroundTurns()
    with Flux0(transport=fake) as client:
        for _ in range(ROUNDS):
            conversation = client.conversation(agent=fake.agent_id)
            turn = turns.start(conversation, "Hi")
            relays = in_each_thread(lambda: b"".join(turn.relay(heartbeat_ms=None)))  # noqa: B023 - called in this round
            assert len(set(relays)) == 1
            assert turn.wait().text == "\n".join(WORDS)


# --- the fake


def test_fake_can_be_used_and_reset_in_all_threads() -> None:
    fake = FakeTransport("Hi")

    def use() -> None:
        with Flux0(transport=fake, retry_config=None) as client:
            for _ in range(ROUNDS):
                try:
                    session = client.sessions.create(agent_id=fake.agent_id)
                    for event in client.conversation(session=session.id).send("Hello"):
                        assert not isinstance(event, StatusEvent) or event.status
                except Flux0Error:
                    pass  # Another thread has called `reset`.

    def look() -> None:
        for _ in range(ROUNDS * 10):
            try:
                fake.assert_no_open_streams()
            except AssertionError as error:
                assert "responses left open" in str(error)  # noqa: PT017 - other errors are raised
            fake.assert_nothing_unexpected()
            fake.script(Say("scripted"))
            fake.inject(Respond(503))
            assert isinstance(fake.calls, tuple)

    def reset() -> None:
        for _ in range(ROUNDS * 10):
            fake.reset()

    in_threads(use, use, use, use, look, look, reset, reset)
    fake.reset()
    fake.assert_no_open_streams()
