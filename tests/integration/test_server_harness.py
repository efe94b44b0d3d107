"""What the other integration tests build on: the server, its scripted agent, and their signals."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from support.server import Flux0Server, free_port

if TYPE_CHECKING:
    from pathlib import Path

# How long a stream has to say nothing to count as silent. Nothing has to be fast enough for it.
SILENCE_SECONDS = 0.3


class Turn:
    """A message to the agent, and its answer as it comes, on a connection of its own."""

    def __init__(self, server: Flux0Server, session_id: str, message: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        body = {"type": "message", "source": "user", "content": message}
        self._connection.request(
            "POST",
            f"/api/sessions/{session_id}/events/stream",
            json.dumps(body),
            {"content-type": "application/json"},
        )
        self._socket = self._connection.sock
        self._response = self._connection.getresponse()
        assert self._response.status == 200

    def next_event(self) -> dict[str, Any]:
        """The data of one event, which ends with an empty line."""
        lines: list[bytes] = []
        while (line := self._response.readline()) != b"\n":
            if not line:
                raise EOFError
            lines.append(line)
        (data,) = (line for line in lines if line.startswith(b"data: "))
        event: dict[str, Any] = json.loads(data.removeprefix(b"data: "))
        return event

    def rest(self) -> list[dict[str, Any]]:
        """The events up to a proper end."""
        events: list[dict[str, Any]] = []
        with contextlib.suppress(EOFError):
            while True:
                events.append(self.next_event())
        return events

    def raw_rest(self) -> bytes:
        """The bytes up to the end, which raises where the end is not a proper one."""
        return self._response.read()

    def set_timeout(self, seconds: float) -> None:
        """Fail a read that has to wait for so long."""
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """Leave, whether or not there is more to come."""
        self._response.close()
        self._connection.close()


class Talk:
    """A session with the scripted agent."""

    def __init__(self, server: Flux0Server, turns: contextlib.ExitStack) -> None:
        self._server = server
        self._turns = turns
        self._id = self._call("POST", "/api/sessions", {"agent_id": server.agent_id})["id"]

    def say(self, message: str) -> Turn:
        """Begin a turn, which is closed with the test at the latest."""
        turn = Turn(self._server, self._id, message)
        self._turns.callback(turn.close)
        return turn

    def perform(self, *script: dict[str, Any]) -> Turn:
        """Begin a turn with a script for a message."""
        return self.say(json.dumps(script))

    def stored(self) -> list[dict[str, Any]]:
        """The `data` of the events that the server has stored, without the user's."""
        events = self._call("GET", f"/api/sessions/{self._id}/events")["data"]
        return [event["data"] for event in events if event["source"] != "user"]

    def stored_parts(self) -> list[dict[str, Any]]:
        """The parts of the stored messages, in order."""
        return [part for data in self.stored() for part in data.get("parts", ())]

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=20)
        ) as connection:
            headers = {"content-type": "application/json"}
            connection.request(method, path, json.dumps(body), headers)
            response = connection.getresponse()
            assert response.status in {200, 201}
            return json.load(response)


Talks = Callable[[Flux0Server], Talk]


@pytest.fixture
def talk_to() -> Iterator[Talks]:
    """Opens a session on a server."""
    with contextlib.ExitStack() as turns:
        yield lambda server: Talk(server, turns)


@pytest.fixture
def talk(server: Flux0Server, talk_to: Talks) -> Talk:
    """A session on the shared server."""
    return talk_to(server)


def content(text: str) -> dict[str, Any]:
    return {"type": "content", "content": text}


def appended(event: dict[str, Any]) -> Any:
    (patch,) = event["patches"]
    assert (patch["op"], patch["path"]) == ("add", "/-")
    return patch["value"]


def test_low_level_steps_reach_the_wire_and_the_store_as_they_are(
    server: Flux0Server, talk: Talk
) -> None:
    patches = [{"op": "add", "path": "/-", "value": "Hi é😀"}]
    turn = talk.perform(
        {"status": "processing", "data": {"detail": "x"}},
        {"status": "typing", "event_id": "e1"},
        {"chunk": {"event_id": "e1", "seq": 0, "patches": patches, "metadata": {"mood": "good"}}},
        {"status": "ready", "event_id": "e1"},
        {"status": "completed"},
    )
    processing, typing, chunk = turn.rest()
    assert processing["data"] == {"type": "status", "status": "processing", "data": {"detail": "x"}}
    assert (typing["id"], typing["data"]) == ("e1", {"type": "status", "status": "typing"})
    assert (chunk["event_id"], chunk["seq"], chunk["patches"]) == ("e1", 0, patches)
    assert chunk["metadata"] == {
        "agent_id": server.agent_id,
        "agent_name": "Scripted",
        "mood": "good",
    }
    assert [data.get("status") for data in talk.stored()] == ["processing", "typing", None]
    assert talk.stored_parts() == [content("Hi é😀")]


def test_a_null_in_a_chunks_metadata_takes_the_key_out(server: Flux0Server, talk: Talk) -> None:
    patches = [{"op": "add", "path": "/-", "value": "Hi"}]
    chunk = {"event_id": "e1", "seq": 0, "patches": patches, "metadata": {"agent_name": None}}
    (event,) = talk.perform({"chunk": chunk}, {"status": "ready", "event_id": "e1"}).rest()
    assert event["metadata"] == {"agent_id": server.agent_id}
    assert talk.stored() == []


def test_words_are_streamed_in_pieces_and_stored_as_messages(talk: Talk) -> None:
    call = {"id": "c1", "name": "search", "args": {"query": "fog"}}
    turn = talk.perform(
        {"reason": "Let me see."},
        {"tool_call": call},
        {"tool_result": {**call, "result": [1, 2]}},
        {"pause_ms": 1},
        {"text": "Hello there", "pieces": 3},
    )
    events = turn.rest()
    assert appended(events[0]) == "Let me see."
    assert [appended(event) for event in events[-3:]] == ["Hel", "lo t", "here"]
    tools = {"type": "tool_call", "tool_call_id": "c1", "tool_name": "search"}
    assert talk.stored_parts() == [
        {"type": "reasoning", "reasoning": "Let me see."},
        {**tools, "args": {"query": "fog"}},
        content("Hello there"),
    ]
    (tool,) = (data for data in talk.stored() if data["type"] == "tool_call_result")
    (result,) = tool["tool_calls"]
    assert (result["tool_call_id"], result["args"]) == ("c1", {"query": "fog"})
    assert result["result"]["data"] == [1, 2]


@pytest.mark.parametrize("why", [{"exception": "bad"}, "bad", None])
def test_an_error_is_a_status_with_or_without_data(talk: Talk, why: Any) -> None:
    (event,) = talk.perform({"error": why}).rest()
    data = {"type": "status", "status": "error"}
    assert event["data"] == (data if why is None else {**data, "data": why})


def test_plain_text_gets_a_friendly_answer_with_a_tool_call(talk: Talk) -> None:
    talk.say("Hello, agent!").rest()
    reasoning, call, answer = talk.stored_parts()
    assert reasoning["type"] == "reasoning"
    assert (call["tool_name"], call["args"]) == ("get_weather", {"location": "San Francisco"})
    assert "Hello, agent!" in answer["content"]
    assert [data["type"] for data in talk.stored()] == [
        "status",
        "message",
        "message",
        "tool_call_result",
        "status",
        "message",
    ]


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ('{"text": "Hi"}', "JSON array"),
        ('["Hi"]', "step 0"),
        ('[{"text": "Hi"}, {"say": "Hi"}]', "step 1"),
        ('[{"text": "Hi", "wait": "x"}]', "step 0"),
        ('[{"text": "Hi", "parts": 2}]', "'parts'"),
        ('[{"text": "Hi", "pieces": 3}]', "3 pieces"),
        ('[{"chunk": {"event_id": "e1", "seq": 0}}]', "'patches'"),
        ('[{"status": "ready"}]', "event_id"),
        ('[{"status": "typing", "text": "Hi"}]', "step 0"),
        ('[{"status": "typing", "detail": "Hi"}]', "'detail'"),
        ('[{"wait": "../x"}]', "name of a wait"),
    ],
)
def test_an_invalid_script_does_nothing_but_say_what_is_wrong(
    talk: Talk, message: str, complaint: str
) -> None:
    (event,) = talk.say(message).rest()
    assert event["data"]["status"] == "error"
    assert complaint in event["data"]["data"]["exception"]


@pytest.mark.parametrize("step", [{"crash": "boom"}, {"hang": True}, {"end": False}])
def test_a_turn_without_an_end_leaves_its_stream_open_and_silent(
    talk: Talk, step: dict[str, Any]
) -> None:
    turn = talk.perform({"text": "Hi"}, step)
    assert appended(turn.next_event()) == "Hi"
    turn.set_timeout(SILENCE_SECONDS)
    with pytest.raises(TimeoutError):
        turn.next_event()


def test_a_waiting_turn_goes_on_when_released(server: Flux0Server, talk: Talk) -> None:
    turn = talk.perform({"text": "Before"}, {"wait": "go-on"}, {"text": "After"})
    assert appended(turn.next_event()) == "Before"
    assert content("After") not in talk.stored_parts()
    server.release("go-on")
    assert [appended(event) for event in turn.rest()] == ["After"]
    assert talk.stored_parts() == [content("Before"), content("After")]


def test_leaving_a_stream_cancels_its_turn(server: Flux0Server, talk: Talk) -> None:
    turn = talk.perform({"text": "Hi"}, {"wait": "left-early"})
    turn.next_event()
    turn.close()
    server.wait_cancelled("left-early")


def test_a_killed_server_ends_the_body_without_its_last_chunk(
    own_server: Callable[[], Flux0Server], talk_to: Talks
) -> None:
    server = own_server()
    turn = talk_to(server).perform({"text": "Hi"}, {"wait": "death"})
    turn.next_event()
    server.kill()
    with pytest.raises(http.client.IncompleteRead):
        turn.raw_rest()


def test_a_server_that_cannot_start_says_why(server_python: str, tmp_path: Path) -> None:
    (tmp_path / "flux0.toml").write_text('[flux0]\nmodules = ["no_such_module"]\n')
    with (
        pytest.raises(RuntimeError, match="No module named 'no_such_module'"),
        Flux0Server(server_python, tmp_path),
    ):
        pass


def test_a_port_that_another_server_took_is_not_mistaken_for_ones_own(
    server: Flux0Server, server_python: str, tmp_path: Path
) -> None:
    ports = iter([server.port, free_port()])
    with Flux0Server(server_python, tmp_path, ports.__next__) as second:
        assert second.port != server.port
        assert second.agent_id != server.agent_id
