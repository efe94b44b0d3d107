"""The queues that order the messages of each session."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

from flux0 import Flux0, RetryConfig
from flux0.domain.errors import ConnectError
from flux0.flows import CallRequest, Flow, SendFlow
from flux0.ports import Response
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import WaitForRelease, http_response
from flux0.turns.session_queue import SessionQueue, SessionQueues, ThreadSender
from support.forking import in_child
from support.in_memory import (
    SSE,
    chunk,
    in_both_loops,
    in_every_mode,
    script,
    scripted_response,
)
from support.modes import in_mode
from support.transports import Mode

SERVER, OTHER_SERVER = "http://127.0.0.1:8080", "http://127.0.0.1:9090"
TURN = http_response(chunk("a"), headers=SSE.items(), framing="chunked")


class Hooked(tuple[str, str]):
    """The key of a session, which calls `on_hash` when it is used as a key of a dictionary.

    Python 3.14 and newer versions remember the hash of a tuple, but call this method each time.
    """

    on_hash: Callable[[], object]

    def __hash__(self) -> int:
        self.on_hash()
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other)


def active_sender() -> ThreadSender:
    sender = ThreadSender()
    sender.active.acquire()
    return sender


def test_sender_whose_leaving_was_interrupted_does_not_delay_later_senders() -> None:
    queue, (first, second) = SessionQueue(), [active_sender() for _ in range(2)]
    queue.join(first)
    assert queue.join(second) == (first,)
    assert not queue.is_first(second)

    first.active.release()

    assert queue.is_first(second)
    assert queue.join(third := active_sender()) == (second,)
    queue.leave(second)
    assert third.wait(0)


def test_senders_are_first_in_the_order_in_which_they_joined() -> None:
    queue, senders = SessionQueue(), [active_sender() for _ in range(3)]
    assert [queue.join(sender) for sender in senders] == [(), (*senders[:1],), (*senders[:2],)]

    for position, sender in enumerate(senders):
        assert [queue.is_first(other) for other in senders[position:]].count(True) == 1
        assert queue.is_first(sender)
        queue.leave(sender)
        # A sender that leaves wakes only the next sender.
        assert [other.wait(0) for other in senders[position + 1 :]] == [
            other is senders[position + 1] for other in senders[position + 1 :]
        ]


def test_sender_that_gives_up_does_not_let_later_senders_overtake() -> None:
    queue, (first, second, third) = SessionQueue(), [active_sender() for _ in range(3)]
    for sender in (first, second, third):
        queue.join(sender)

    queue.leave(second)

    assert queue.is_first(first)
    assert not third.wait(0)
    queue.leave(first)
    assert third.wait(0)


def test_threads_that_create_a_queue_at_the_same_time_share_it() -> None:
    queues, second = SessionQueues(), ThreadPoolExecutor(1)
    session = Hooked((SERVER, "s"))
    found: list[SessionQueue] = []
    searched = threading.Event()

    def search() -> None:
        found.append(queues.of((SERVER, "s")))
        searched.set()

    def let_the_second_thread_search() -> None:
        second.submit(search)
        searched.wait(0.05)  # Without a lock, the second thread would finish in this time.

    # The first hash is for the search, and the second hash for storing the new queue.
    hooks = iter((lambda: None, let_the_second_thread_search))

    def call_next_hook() -> None:
        next(hooks)()

    session.on_hash = call_next_hook
    with second:
        queue = queues.of(session)

    assert found == [queue]


def test_signal_handler_that_interrupts_the_creation_of_a_queue_gets_a_queue() -> None:
    """The handler runs in the thread that holds the lock."""
    queues, session = SessionQueues(), Hooked((SERVER, "s"))
    found: list[SessionQueue] = []
    session.on_hash = lambda: found.append(queues.of((SERVER, "another")))

    queues.of(session)

    assert found


@in_every_mode
async def test_equal_session_ids_of_different_servers_do_not_wait_for_each_other(
    mode: Mode,
) -> None:
    transport = script(*[scripted_response(chunk("a"), headers=SSE) for _ in range(2)])

    def send_to_another_server(request: CallRequest, send: SendFlow) -> Flow[Response[Any]]:
        if request.url.startswith(SERVER):
            # Sending to the same server would raise an error, because this message is being sent.
            flux0.sessions.create_event(session_id="s", content="Hi", server_url=OTHER_SERVER)
        return (yield from send(request))

    flux0 = Flux0(SERVER, transport=transport, middleware=[send_to_another_server])
    async with in_mode(mode, flux0) as client:
        await client.sessions.create_event_async(session_id="s", content="Hi")

    assert len(transport.requests) == 2


def queues_in_memory() -> list[weakref.ref[SessionQueue]]:
    gc.collect()
    return [weakref.ref(each) for each in gc.get_objects() if type(each) is SessionQueue]


@pytest.mark.usefixtures("little_garbage")
@in_every_mode
async def test_queue_is_freed_after_the_last_message_of_its_session(mode: Mode) -> None:
    """A client that talks on millions of sessions needs memory only for its current calls."""
    transport = script(scripted_response(headers=SSE), ConnectError("refused"))

    async with in_mode(mode, Flux0(transport=transport)) as flux0:
        stream = await flux0.sessions.create_event_async(session_id="sent", content="Hi")
        with pytest.raises(ConnectError):
            await flux0.sessions.create_event_async(
                session_id="not sent", content="Hi", retries=RetryConfig("none")
            )
        assert stream.is_open
        assert queues_in_memory() == []


@pytest.mark.usefixtures("little_garbage")
@in_both_loops
async def test_queue_is_freed_after_a_cancelled_message(mode: Mode) -> None:
    async with Flux0(transport=script(scripted_response(headers=SSE))) as flux0:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await flux0.sessions.create_event_async(session_id="s", content=mode)
        assert scope.cancelled_caught
        assert queues_in_memory() == []


# --- forks


def test_message_in_a_forked_child_does_not_wait_for_a_message_of_its_parent() -> None:
    with ByteServer((WaitForRelease(), *TURN), TURN) as server, ThreadPoolExecutor(1) as threads:
        flux0 = Flux0(server.url)

        def send() -> None:
            assert len(list(flux0.sessions.create_event(session_id="s", content="Hi"))) == 1

        sending = threads.submit(send)
        server.wait_for_requests(1)
        in_child(send)
        assert len(server.requests) == 2
        server.release()
        sending.result(20)


def test_child_of_a_fork_during_the_creation_of_a_queue_can_create_queues() -> None:
    queues, session = SessionQueues(), Hooked((SERVER, "s"))
    creating, created = threading.Event(), threading.Event()

    def block() -> None:
        creating.set()
        created.wait(20)

    session.on_hash = block
    with ThreadPoolExecutor(1) as threads:
        threads.submit(queues.of, session)
        assert creating.wait(20)
        in_child(lambda: queues.of((SERVER, "s")))
        created.set()
