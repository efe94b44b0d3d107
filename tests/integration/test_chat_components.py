"""The libraries of chat components read recorded turns: the AI SDK, and AG-UI's own client."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from attrs import frozen
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.responses import Response

from flux0 import Flux0
from flux0.adapters.ui import AgUiFormat, AiSdkFormat, NewMessage, new_message
from flux0.domain.errors import StreamInterrupted
from flux0.relay_format import RelayFormat
from flux0.testing import (
    AgentStep,
    CallTool,
    Fail,
    FakeTransport,
    Gate,
    GiveResult,
    Reason,
    Refuse,
    Say,
)
from support.back_ends import serve
from support.in_memory import events_of
from support.npm import npm_install, run_in
from support.programs import needs
from support.samples import (
    USECHAT,
    WRITE_A_RELAY_FORMAT,
    TurnsOfTwoProcesses,
    chat_back_end,
    code_of,
    load,
)
from support.ui import pieces_of
from unit.domain.messages.test_accumulator import CASES

pytestmark = needs("npm")

SUPPORT = Path(__file__).parents[1] / "support"
SCRIPT, USE_CHAT = SUPPORT / "read_ui.mjs", SUPPORT / "use_chat.mjs"
AG_UI = "@ag-ui/client@1.0.0"
OPENAI = "openai@7.59.0"
JOIN = """
import { HttpAgent } from "@ag-ui/client";
const agent = new HttpAgent({ url: `${SERVER}/agent/history`, threadId: SESSION });
let outcome = null;
await agent.runAgent({}, {
  onTextMessageContentEvent: () => { fetch(`${SERVER}/agent/${SESSION}`, { method: "DELETE" }); },
  onRunFinishedEvent: (run) => { outcome = run.outcome; },
});
console.log(JSON.stringify([agent.messages, outcome]));
"""
READ_COMPLETION = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: SERVER, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Hi" }];
const stream = client.chat.completions.stream({ model: "flux0", messages });
const message = await stream.finalMessage().catch((error) => ({ error: error.message }));
console.log(JSON.stringify(message));
"""
# The current major version of the AI SDK and the version before, and AG-UI's own client.
PACKAGES = {
    "ai@7.0.173": "ai-sdk",
    "ai@6.0.326": "ai-sdk",
    AG_UI: "ag-ui",
}
FORMATS: dict[str, RelayFormat] = {"ai-sdk": AiSdkFormat(), "ag-ui": AgUiFormat("thread", "run")}
GENERAL = "The exchange with the flux0 server failed"
ERRORS = {"ai-sdk": "error", "ag-ui": "RUN_ERROR"}

# The recorded turns that differ, by their row in the table of docs/how-to/chat-components.md.
LOSSES = {
    "replaced text": {"root_replace_string_twice", "root_list_replaced_by_dict"},
    "messages at the same time": {"interleaved_events_ready_reversed"},
    "a tool result without a call": {
        "tool_result_structured_and_two",
        "tool_result_error_field_ignored",
    },
    "a message that is not stored": {
        "no_ready_not_persisted",
        "two_tool_calls_streamed_seq_zero_lost",
        "tool_call_invalid_json_args_not_persisted",
    },
}

# The text, reasoning, JSON content, tool calls and results of a turn, each in its order.
Content = dict[str, list[Any]]


def new_content() -> Content:
    return {"text": [], "reasoning": [], "content": [], "calls": [], "results": []}


def stored(case: dict[str, Any]) -> Content:
    """Return the stored events' content."""
    content = new_content()
    for event in case["persisted"]:
        if event["source"] != "ai_agent" or event["type"] == "status":
            continue
        for part in event["data"].get("parts", []):
            if part["type"] == "tool_call":
                content["calls"].append((part["tool_call_id"], part["tool_name"], part["args"]))
            else:
                kind = "reasoning" if part["type"] == "reasoning" else "text"
                value = part[part["type"]]
                content[kind if isinstance(value, str) else "content"].append(value)
        for call in event["data"].get("tool_calls", []):
            content["results"].append((call["tool_call_id"], call["result"]["data"]))
    return content


def of_ai_sdk(parts: list[dict[str, Any]]) -> Content:
    """Return the content of each part of a `UIMessage`."""
    content = new_content()
    for part in parts:
        if part["type"] == "dynamic-tool":
            content["calls"].append((part["toolCallId"], part["toolName"], part["input"]))
            if part["state"] == "output-available":
                content["results"].append((part["toolCallId"], part["output"]))
        elif part["type"] == "data-content":
            content["content"].append(part["data"])
        else:
            content[part["type"]].append(part["text"])
    return content


def of_ag_ui(messages: list[dict[str, Any]]) -> Content:
    """Return the content of an agent's messages. Results that are JSON are decoded."""
    content = new_content()
    for message in messages:
        value: Any = message.get("content")
        for call in message.get("toolCalls", []):
            tool = call["function"]
            call_id = agents_id(call["id"])
            content["calls"].append((call_id, tool["name"], decoded(tool["arguments"])))
        if message["role"] == "tool":
            content["results"].append((agents_id(message["toolCallId"]), decoded(value)))
        elif message["role"] == "activity":
            content["content"].append(value["content"])
        elif value:
            content["reasoning" if message["role"] == "reasoning" else "text"].append(value)
    return content


def agents_id(call_id: str) -> str:
    """Return the id that the agent has given to the call: `AgUiFormat` adds the id of the turn."""
    turn_id, _, own = call_id.partition("/")
    assert turn_id
    return own


def decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


CONTENT: dict[str, Callable[[list[dict[str, Any]]], Content]] = {
    "ai-sdk": of_ai_sdk,
    "ag-ui": of_ag_ui,
}


Results = dict[str, dict[str, Any]]


@frozen
class Reader:
    """The results of an npm package that has read the relays of all recorded turns.

    Attributes:
        kind: The name of its format.
        complete: The items, the error and the last event's type, for each turn's name.
        interrupted: The same for relays that end with an error.
    """

    kind: str
    complete: Results
    interrupted: Results


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Installs npm packages, unless they are installed, and returns their folder."""

    @cache
    def installed(*packages: str) -> Path:
        folder = tmp_path_factory.mktemp("package")
        npm_install(*packages, folder=folder)
        return folder

    return installed


@pytest.fixture(scope="module", params=PACKAGES)
def reader(request: pytest.FixtureRequest, install: Callable[..., Path]) -> Reader:
    kind = PACKAGES[request.param]
    relays = [
        b"".join(pieces_of(FORMATS[kind], events, error)).decode()
        for error in (None, StreamInterrupted("gone"))
        for events in (events_of(case["wire"].encode()) for case in CASES)
    ]
    command = ("node", str(SCRIPT), kind)
    read = iter(json.loads(run_in(install(request.param), *command, input=json.dumps(relays))))
    complete, interrupted = ({case["name"]: next(read) for case in CASES} for _ in range(2))
    return Reader(kind, complete, interrupted)


def test_content_of_recorded_turns_equals_the_stored_events(reader: Reader) -> None:
    different = {
        case["name"]
        for case in CASES
        if CONTENT[reader.kind](reader.complete[case["name"]]["items"]) != stored(case)
    }
    assert different == set().union(*LOSSES.values())
    assert (len(CASES) - len(different), len(CASES)) == (36, 44)


def test_only_turns_in_which_the_agent_failed_end_with_an_error(reader: Reader) -> None:
    failed = {
        name: (result["error"], result["last"])
        for name, result in reader.complete.items()
        if result["error"] is not None
    }
    last = ERRORS[reader.kind]
    assert failed == {
        "error_after_ready": ("The agent reported an error", last),
        "weather_8080_error": ("The agent reported an error", last),
    }


def test_interrupted_turns_end_with_an_error_and_keep_their_content(reader: Reader) -> None:
    for name, result in reader.interrupted.items():
        if "error" not in name:
            assert result["items"] == reader.complete[name]["items"]
            assert (result["error"], result["last"]) == (GENERAL, ERRORS[reader.kind])


def run_sample(folder: Path, url: str, session_id: str, more: str = "") -> Any:
    """Load a chat and send a message, as `ag-ui.js` of the example, and run `more`.

    Returns the messages as JSON.
    """
    code = (USECHAT / "src/ag-ui.js").read_text("utf-8")
    agent = code[code.index("const agent") : code.index("function shown")]
    run = code[code.index("/** Run the agent.") : code.index("/** Work while")]
    sample = "".join(
        line for line in f"{agent}{run}".splitlines(keepends=True) if "shown" not in line
    )
    sample = sample.replace('"/agent', f'"{url}/agent').replace("`/agent", f"`{url}/agent")
    script = folder / "run.mjs"
    script.write_text(
        f"""import {{ HttpAgent }} from "@ag-ui/client";
const threadId = {session_id!r};
{sample}
await load();
agent.addMessage({{ id: crypto.randomUUID(), role: "user", content: "What's the weather in SF?" }});
await run({url + "/agent"!r});
{more}console.log(JSON.stringify(agent.messages));""",
        "utf-8",
    )
    return json.loads(run_in(folder, "node", str(script)))


def test_http_agent_runs_a_turn_with_a_tool_call_and_gets_it_again(
    install: Callable[..., Path],
) -> None:
    """`HttpAgent` is AG-UI's own client, with the page's sample on both sides."""
    folder = install(AG_UI)
    tool = CallTool("weather", {"city": "SF"}, id="call-1")
    fake = FakeTransport()
    turn: list[AgentStep] = [Reason("Hm"), tool, GiveResult(tool, {"sky": "clear"}), Say("Sunny.")]
    fake.script(turn)
    expected = {
        "text": ["Sunny."],
        "reasoning": ["Hm"],
        "content": [],
        "calls": [("call-1", "weather", {"city": "SF"})],
        "results": [("call-1", {"sky": "clear"})],
    }
    with chat_back_end(fake) as (url, session_id):
        (user, *messages) = run_sample(folder, url, session_id)
        assert (user["role"], user["content"]) == ("user", "What's the weather in SF?")
        assert of_ag_ui(messages) == expected

        fake.script(turn)  # The agent uses the id of the call again.
        messages = run_sample(folder, url, session_id)
        number = [each["role"] for each in messages].index("user", 1)
        assert [messages[0]["content"], messages[number]["content"]] == 2 * [user["content"]]
        assert of_ag_ui(messages[1:number]) == expected
        assert of_ag_ui(messages[number + 1 :]) == expected
        history = run_sample(folder, url, session_id)
        assert of_ag_ui(history[1:number]) == of_ag_ui(history[number + 1 : 2 * number]) == expected


def test_http_agent_joins_a_running_turn_and_stops_it(install: Callable[..., Path]) -> None:
    folder = install(AG_UI)
    fake = FakeTransport()
    fake.script([Say("Half"), Gate(timeout=60), Say("never sent")])
    with chat_back_end(fake) as (url, session_id):
        message = {"id": "1", "role": "user", "content": "Hi"}
        body = {"threadId": session_id, "runId": "run", "messages": [message]}
        with httpx.stream("POST", f"{url}/agent", json=body) as running:
            next(each for each in running.iter_lines() if "Half" in each)
            script = folder / "join.mjs"
            script.write_text(
                JOIN.replace("SERVER", repr(url)).replace("SESSION", repr(session_id)), "utf-8"
            )
            messages, outcome = json.loads(run_in(folder, "node", str(script)))
    assert [(each["role"], each["content"]) for each in messages] == [
        ("user", "Hi"),
        ("assistant", "Half"),
    ]
    assert outcome == "cancelled"
    fake.assert_no_open_streams()


def test_http_agent_continues_a_turn_whose_relay_the_application_has_ended(
    install: Callable[..., Path],
) -> None:
    folder, turns, gate = install(AG_UI), TurnsOfTwoProcesses(), Gate(timeout=60)
    fake, tool = FakeTransport(), CallTool("weather", {"city": "SF"}, id="call-1")
    begin: list[AgentStep] = [Reason("Hm"), tool, GiveResult(tool, 16)]
    fake.script([*begin, Say("Sunny."), gate, Say("Bye.")])

    def restart() -> None:
        while not gate.reached:
            Event().wait(0.001)
        turns.restart()
        gate.open()

    with chat_back_end(fake, turns) as (url, session_id):
        restarting = Thread(target=restart)
        restarting.start()
        (user, *messages) = run_sample(folder, url, session_id)
        restarting.join()
    assert user["content"] == "What's the weather in SF?"
    assert of_ag_ui(messages) == {
        "text": ["Sunny.", "Bye."],
        "reasoning": ["Hm"],
        "content": [],
        "calls": [("call-1", "weather", {"city": "SF"})],
        "results": [("call-1", 16)],
    }
    assert [call.operation for call in fake.calls].count("sessions.create_event") == 1


def test_ag_ui_requests_that_cannot_be_sent_are_errors() -> None:
    fake = FakeTransport()
    with chat_back_end(fake) as (url, session_id):
        thread = {"threadId": session_id}
        empty = {"id": "1", "role": "user", "content": ""}
        picture = {"id": "1", "role": "user", "content": [{"type": "binary", "data": ""}]}
        for messages in ([], [empty], [picture]):
            response = httpx.post(f"{url}/agent", json={**thread, "messages": messages})
            assert response.status_code == 422
            assert response.json()["detail"]
        assert httpx.post(f"{url}/agent", json={"threadId": "unknown000"}).status_code == 404
        fake.inject(Refuse(), times=3)
        response = httpx.post(f"{url}/agent", json=thread)
        assert (response.status_code, response.json()["detail"]) == (
            502,
            "The connection to the agent failed.",
        )
    assert "sessions.create_event" not in {call.operation for call in fake.calls}


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (
            Say("Sunny.", pieces=3),
            {"role": "assistant", "content": "Sunny.", "tool_calls": ["weather", '{"city": "SF"}']},
        ),
        (Fail("no model"), {"error": "The agent reported an error"}),
    ],
)
def test_openai_reads_the_relay_format_of_the_page(
    install: Callable[..., Path], last: AgentStep, expected: dict[str, Any]
) -> None:
    folder = install(OPENAI)
    tool = CallTool("weather", {"city": "SF"}, id="call-1")
    fake = FakeTransport([Reason("Hm"), tool, GiveResult(tool, {"sky": "clear"}), last])
    names = load(WRITE_A_RELAY_FORMAT, "class ChatCompletions(RelayFormat):")
    (route,) = code_of(WRITE_A_RELAY_FORMAT, "py")
    names |= {"app": FastAPI(), "Response": Response, "StreamingResponse": StreamingResponse}
    with Flux0(transport=fake) as names["client"]:
        exec(route, names)  # noqa: S102 - a sample of the documentation
        with serve(names["app"]) as url:
            script = folder / "read.mjs"
            script.write_text(READ_COMPLETION.replace("SERVER", json.dumps(f"{url}/v1")), "utf-8")
            message = json.loads(run_in(folder, "node", str(script)))
            body = {"messages": [{"role": "user", "content": "Hi"}]}
            relayed = httpx.post(f"{url}/v1/chat/completions", json=body).text

    # The Python package `openai` joins the strings of all deltas.
    assert [relayed.count(name) for name in ('"role"', '"name"')] == [1, 1]
    if calls := message.get("tool_calls"):
        (function,) = (call["function"] for call in calls)
        message["tool_calls"] = [function["name"], function["arguments"]]
    assert {key: message[key] for key in expected} == expected


@pytest.mark.parametrize(
    "packages", [("ai@7.0.173",), ("ai@6.0.326",), ("ai@7.0.142", "@ai-sdk/vue@4.0.142", "vue@3")]
)
def test_use_chat_shows_tools_of_two_turns_and_a_stopped_turn_without_an_error(
    install: Callable[..., Path], packages: tuple[str, ...]
) -> None:
    """The component sends automatically when its own tools have ended, but not the agent's tools.

    A message of a regenerated reply, and an edited message, replace the turns that are not shown.
    """
    folder, fake = install(*packages), FakeTransport()
    tool = CallTool("weather", {"city": "SF"}, id="call-1")
    turn: list[AgentStep] = [Reason("Hm"), tool, GiveResult(tool, {"sky": "clear"})]
    fake.script(turn, turn, [Say("Half"), Gate(timeout=60), Say("never sent")])
    vue = ["vue"] if len(packages) > 1 else []
    with chat_back_end(fake) as (url, session_id):
        printed = json.loads(run_in(folder, "node", str(USE_CHAT), url, session_id, *vue))
    assert printed["ends"] == [["ready", None]] * 4
    assert printed["finishReasons"][:3] == ["stop", "stop", None]
    assert [call.operation for call in fake.calls].count("sessions.create_event") == 6
    _, first, _, second = printed["messages"]
    assert of_ai_sdk(first["parts"]) == of_ai_sdk(second["parts"])
    assert of_ai_sdk(first["parts"])["results"] == [("call-1", {"sky": "clear"})]
    fake.assert_no_open_streams()

    with Flux0(transport=fake) as client:
        events = client.conversation(session=session_id).history()
    turns = list(dict.fromkeys(event.correlation_id for event in events))[:3]
    history = [event for event in events if event.correlation_id in turns]
    *_, again, earlier, edited = printed["bodies"]
    assert len(printed["bodies"]) == 6
    assert new_message(again, history) == NewMessage("Three", (turns[2],))
    assert new_message(earlier, history) == NewMessage("One", tuple(turns))
    assert new_message(edited, history) == NewMessage("One, edited", tuple(turns))
