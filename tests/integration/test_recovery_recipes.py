"""The recipes for failures, from the pages, with the real server and real faults."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest

from flux0 import Conversation, Flux0, StoredTurn
from flux0.models import ConnectError, StreamIdleTimeout, StreamInterrupted
from support.ports import reserved_port
from support.relay import Relay
from support.server import Flux0Server

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / page for page in ("when-the-connection-breaks.md", "how-to/programs.md")]
SAMPLES = [
    text.partition("```")[0]
    for page in PAGES
    for text in page.read_text("utf-8").split("```python\n")[1:]
]


def recipe(name: str) -> str:
    """Return the sample that defines this function, without the code that calls it."""
    (sample,) = (sample for sample in SAMPLES if f"def {name}(" in sample)
    return sample.partition("\nwith Flux0()")[0]


def load(name: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(recipe(name), namespace)  # noqa: S102 - the sample of our own page
    return namespace[name]


def content_of(*script: dict[str, Any]) -> str:
    return json.dumps(script)


def messages_of_user(conversation: Conversation) -> list[str]:
    return [message.text for message in conversation.history() if message.source == "user"]


def until_stored(conversation: Conversation, content: str, text: str) -> None:
    """Wait until the text of a turn is stored."""
    while True:
        turn = conversation.find_turn(content, since=0)
        if turn is not None and turn.text == text:
            return


@pytest.fixture
def client(server: Flux0Server) -> Iterator[Flux0]:
    with Flux0(server.url) as client:
        yield client


# --- a web request

NOT_STORED = "Your message has not been stored by now. Do you want to send it again?"
NO_ANSWER = "Your message was sent, but no answer is stored by now."
INCOMPLETE = "The answer may be incomplete: One"
CUTS = {
    "before the request": (b"POST /api/sessions/", {NOT_STORED}),
    "before the response head": (b"content-type: text/event-stream", {NO_ANSWER, INCOMPLETE}),
    "before the first event": (b"event: chunk", {NO_ANSWER, INCOMPLETE}),
    "within the turn": (b'"value": "Two"', {INCOMPLETE}),
}


@pytest.mark.parametrize(("marker", "results"), CUTS.values(), ids=CUTS)
def test_web_request_never_sends_a_message_twice(
    relay: Relay, client: Flux0, session_id: str, fresh_name: str, marker: bytes, results: set[str]
) -> None:
    ask_once: Callable[[Conversation, str], str] = load("ask_once")
    content = content_of({"text": "One"}, {"text": "Two"}, {"wait": fresh_name})
    with Flux0(relay.url) as flux0:
        relay.cut_before(marker)
        result = ask_once(flux0.conversation(session=session_id), content)
    assert result.removesuffix("\nTwo") in results
    assert messages_of_user(client.conversation(session=session_id)) == (
        [] if result == NOT_STORED else [content]
    )


def test_web_request_reports_an_error_and_an_empty_answer_of_the_agent(
    relay: Relay, client: Flux0, session_id: str, fresh_name: str
) -> None:
    ask_once: Callable[[Conversation, str], str] = load("ask_once")
    failed = "The agent reported an error. Please ask again later."
    conversation = client.conversation(session=session_id)
    assert ask_once(conversation, content_of({"text": "Hm"}, {"error": "why"})) == failed
    assert ask_once(conversation, content_of({"status": "typing"})) == "The agent gave no answer."
    with Flux0(relay.url) as flux0:
        relay.cut_before(b'"value": "Two"')
        script = ({"status": "error"}, {"text": "One"}, {"text": "Two"}, {"wait": fresh_name})
        assert ask_once(flux0.conversation(session=session_id), content_of(*script)) == failed


def test_answer_is_complete_if_its_last_status_is_stored(client: Flux0, session_id: str) -> None:
    is_complete: Callable[[StoredTurn | None], bool] = load("is_complete")
    conversation = client.conversation(session=session_id)
    last = {"status": "processing", "data": {"last": True}}
    for script, complete in (([{"text": "Hi"}, last], True), ([{"text": "Hi"}], False)):
        conversation.ask(content_of(*script))
        assert is_complete(conversation.find_turn(content_of(*script), since=0)) is complete


def test_web_request_that_fails_before_sending_stores_nothing(
    client: Flux0, session_id: str
) -> None:
    ask_once: Callable[[Conversation, str], str] = load("ask_once")
    conversation = client.conversation(session=session_id)
    with Flux0(f"http://127.0.0.1:{reserved_port()}") as offline, pytest.raises(ConnectError):
        ask_once(offline.conversation(session=session_id), content_of({"text": "Hi"}))
    assert ask_once(conversation, "") == "Your message was not sent. Please try again."
    assert conversation.history() == ()


def test_web_request_returns_the_reply(client: Flux0, session_id: str) -> None:
    ask_once: Callable[[Conversation, str], str] = load("ask_once")
    assert ask_once(client.conversation(session=session_id), content_of({"text": "Hi"})) == "Hi"


# --- a batch

RUN_BATCH = """

import json, os, signal, sys

def prompts(killed_after):
    for number, prompt in enumerate(json.loads(sys.argv[3])):
        if number == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)
        yield prompt

with Flux0(sys.argv[1]) as client:
    conversation = client.conversation(session=sys.argv[2])
    for _ in answer_all(conversation, prompts(int(sys.argv[4]))):
        pass
"""


def start_batch(
    server: Flux0Server, session_id: str, prompts: list[str], killed_after: int = -1
) -> subprocess.Popen[bytes]:
    """Run the batch in a process that is killed before it sends prompt number `killed_after`."""
    arguments = [server.url, session_id, json.dumps(prompts), str(killed_after)]
    code = recipe("answer_all") + RUN_BATCH
    return subprocess.Popen([sys.executable, "-c", code, *arguments])


@pytest.fixture
def answer_all() -> Callable[[Conversation, list[str]], Iterator[StoredTurn]]:
    function: Callable[[Conversation, list[str]], Iterator[StoredTurn]] = load("answer_all")
    return function


AnswerAll = Callable[[Conversation, list[str]], Iterator[StoredTurn]]


def test_batch_that_is_killed_between_prompts_continues(
    answer_all: AnswerAll, server: Flux0Server, client: Flux0, session_id: str
) -> None:
    texts = ["A", "B", "B", "C", "A"]
    prompts = [content_of({"text": text}) for text in texts]
    for killed_after in (2, 4):
        assert start_batch(server, session_id, prompts, killed_after).wait(60) == -9
        conversation = client.conversation(session=session_id)
        assert messages_of_user(conversation) == prompts[:killed_after]

    for _ in range(2):
        assert [turn.text for turn in answer_all(conversation, prompts)] == texts
        assert messages_of_user(conversation) == prompts


def test_batch_that_is_killed_within_a_turn_continues_after_it(
    answer_all: AnswerAll,
    server: Flux0Server,
    client: Flux0,
    session_id: str,
    fresh_name: str,
) -> None:
    slow = content_of({"text": "B1"}, {"wait": fresh_name}, {"text": "B2"})
    prompts = [content_of({"text": "A"}), slow, content_of({"text": "C"})]
    conversation = client.conversation(session=session_id)
    with start_batch(server, session_id, prompts) as process:
        until_stored(conversation, slow, "B1")
        process.kill()
    server.wait_cancelled(fresh_name)

    assert [turn.text for turn in answer_all(conversation, prompts)] == ["A", "B1", "C"]
    assert messages_of_user(conversation) == prompts


def test_prompt_whose_agent_was_stopped_before_it_answered_is_sent_once_more(
    answer_all: AnswerAll,
    server: Flux0Server,
    client: Flux0,
    session_id: str,
    fresh_name: str,
) -> None:
    slow = content_of({"status": "typing"}, {"wait": fresh_name}, {"text": "B"})
    prompts = [content_of({"text": "A"}), slow, content_of({"text": "C"})]
    conversation = client.conversation(session=session_id)
    with start_batch(server, session_id, prompts) as process:
        until_stored(conversation, slow, "")
        process.kill()
    server.wait_cancelled(fresh_name)
    server.release(fresh_name)

    for _ in range(2):
        assert [turn.text for turn in answer_all(conversation, prompts)] == ["A", "B", "C"]
        assert messages_of_user(conversation) == [prompts[0], slow, *prompts[1:]]


# --- a queue

RUN_JOB = """
import sys
client = Flux0(sys.argv[1])
answer(sqlite3.connect(sys.argv[2]), "job", sys.argv[3], redelivered=False)
"""


@pytest.mark.parametrize("before_sending", [True, False])
def test_queue_delivers_a_task_again_after_its_worker_was_killed(
    server: Flux0Server, tmp_path: Path, fresh_name: str, *, before_sending: bool
) -> None:
    code = recipe("answer").partition("\nwith closing(")[0]
    database = tmp_path / "jobs"
    script: list[dict[str, Any]] = [{"text": "One"}]
    script += [] if before_sending else [{"wait": fresh_name}]
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - the sample of our own page
    with Flux0(server.url) as client, closing(sqlite3.connect(database)) as jobs:
        jobs.execute(names["TABLE"])
        names["client"] = client
        content = content_of(*script)
        session_id, _ = names["saved_session"](jobs, "job")
        conversation = client.conversation(session=session_id)
        if not before_sending:
            arguments = [server.url, str(database), content]
            with subprocess.Popen([sys.executable, "-c", code + RUN_JOB, *arguments]) as worker:
                until_stored(conversation, content, "One")
                worker.kill()
            server.wait_cancelled(fresh_name)

        for _ in range(2):
            assert names["answer"](jobs, "job", content, redelivered=True).text == "One"
        assert messages_of_user(conversation) == [content]


# --- a restarted server


@pytest.mark.parametrize("keeps", [True, False], ids=["file store", "store in memory"])
def test_turn_is_found_after_the_server_was_killed_if_its_store_is_a_file(
    server_python: str, tmp_path: Path, fresh_name: str, *, keeps: bool
) -> None:
    find_after_restart: Callable[..., StoredTurn | None] = load("find_after_restart")
    store = f"nanodb://json?dir={tmp_path}/store" if keeps else "nanodb://memory"
    content = content_of({"text": "One"}, {"wait": fresh_name}, {"text": "Two"})
    with (
        Flux0Server(server_python, tmp_path, store=store) as server,
        Flux0(server.url) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        conversation = client.conversation(agent=server.agent_id)
        stream = conversation.send(content)
        until_stored(conversation, content, "One")
        server.kill()
        with pytest.raises(StreamInterrupted):
            list(stream)
        finding = threads.submit(find_after_restart, conversation, content, 0)
        server.restart()
        turn = finding.result(60)

        assert (turn and turn.text) == ("One" if keeps else None)
        if keeps:
            assert conversation.ask(content_of({"text": "Three"})).text == "Three"
            assert len(messages_of_user(conversation)) == 2


# --- two clients in one session


def test_two_clients_in_one_session_lose_both_replies(
    server: Flux0Server, session_id: str, fresh_name: str
) -> None:
    waits = [f"{fresh_name}-{number}" for number in range(2)]
    contents = [content_of({"text": "Hi"}, {"wait": name}, {"text": "Bye"}) for name in waits]
    clients = [Flux0(server.url, stream_idle_timeout_ms=1_000) for _ in waits]
    with clients[0], clients[1]:
        streams = [
            client.conversation(session=session_id).send(content)
            for client, content in zip(clients, contents, strict=True)
        ]
        server.wait_cancelled(waits[0])
        for stream in streams:
            with pytest.raises(StreamIdleTimeout, match="another client may use the session"):
                list(stream)
        server.wait_cancelled(waits[1])


def test_with_a_lock_two_clients_get_both_replies(
    server: Flux0Server, session_id: str, fresh_name: str, tmp_path: Path
) -> None:
    session_lock: Callable[[Path, Conversation], AbstractContextManager[None]]
    session_lock = load("session_lock")

    def ask(*script: dict[str, Any]) -> str:
        with Flux0(server.url, stream_idle_timeout_ms=20_000) as client:
            conversation = client.conversation(session=session_id)
            with session_lock(tmp_path, conversation):
                return conversation.ask(content_of(*script)).text

    slow = ({"text": "First"}, {"wait": fresh_name}, {"text": "is complete"})
    with ThreadPoolExecutor(2) as threads, Flux0(server.url) as client:
        conversation = client.conversation(session=session_id)
        first = threads.submit(ask, *slow)
        until_stored(conversation, content_of(*slow), "First")
        second = threads.submit(ask, {"text": "Second"})
        content = content_of({"text": "Second"})
        # The second client waits for the lock, so its message is not stored.
        assert conversation.find_turn(content, since=0, wait_ms=500) is None
        server.release(fresh_name)
        assert (first.result(60), second.result(60)) == ("First\nis complete", "Second")
