"""The agent of docs/how-to/language-model.md, with the real server and a stub of a model's API."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from flux0 import AgentError, Flux0
from support.server import Flux0Server

PAGE = (Path(__file__).parents[2] / "docs/how-to/language-model.md").read_text("utf-8")
CALL = {"id": "call_1", "type": "function", "index": 0}
ANSWER = ["It is ", "sunny ", "in SF."]


def completion(*deltas: dict[str, Any], finish: str) -> bytes:
    """Return a streamed response of the chat completions API."""
    choices: Sequence[dict[str, Any]] = [
        *({"index": 0, "delta": delta, "finish_reason": None} for delta in deltas),
        {"index": 0, "delta": {}, "finish_reason": finish},
    ]
    about = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "stub"}
    chunks = [json.dumps({**about, "choices": [choice]}) for choice in choices]
    return "".join(f"data: {chunk}\n\n" for chunk in (*chunks, "[DONE]")).encode()


def reply(request: Request) -> Response:
    """Call the tool first, and then answer with its result; fail for the word "fail"."""
    messages = request.get_json()["messages"]
    asked = messages[-1]["content"]
    if asked == "fail":
        return Response("https://user:secret@model.example is broken", 400)
    if messages[-1]["role"] == "tool":
        body = completion(*({"content": piece} for piece in ANSWER), finish="stop")
    elif "weather" in asked:
        calls = (
            {"tool_calls": [{**CALL, "function": {"name": "weather", "arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '"SF"}'}}]},
        )
        body = completion(*calls, finish="tool_calls")
    else:
        told = "; ".join(str(each["content"]) for each in messages[1:])
        body = completion({"content": told}, finish="stop")
    return Response(body, content_type="text/event-stream")


@pytest.fixture(scope="module", params=["v0", "v1"])
def url(
    request: pytest.FixtureRequest,
    server_python: str,
    tmp_path_factory: pytest.TempPathFactory,
    make_httpserver: HTTPServer,
) -> Iterator[str]:
    """The URL of the server. With "v1", the content of the model's messages is a list of blocks."""
    make_httpserver.expect_request("/v1/chat/completions").respond_with_handler(reply)
    folder = tmp_path_factory.mktemp("model")
    (module,) = re.findall(r"(?ms)^```py\n(.*?)^```$", PAGE)
    (folder / "model_agent.py").write_text(module, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL", "openai:stub")
        patch.setenv("LC_OUTPUT_VERSION", request.param)
        patch.setenv("OPENAI_API_KEY", "of the test")
        patch.setenv("OPENAI_BASE_URL", make_httpserver.url_for("/v1"))
        with Flux0Server(server_python, folder, agent_module="model_agent") as server:
            yield server.url


def test_program_of_the_page_shows_text_tool_call_and_history(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLUX0_SERVER_URL", url)
    (program,) = re.findall(r"(?ms)^```python\n(.*?)^```$", PAGE)
    exec(program, {})  # noqa: S102 - readers run the program, too
    assert capsys.readouterr().out.splitlines() == [
        "It is sunny in SF.",
        "weather {'city': 'SF'} sunny in SF, 18 °C",
        "What's the weather in SF?; It is sunny in SF.; And what did I ask?",
    ]


def test_pieces_of_the_model_are_streamed(url: str) -> None:
    with Flux0(url) as client:
        stream = client.conversation(agent=client.agents.first()).send("How is the weather?")
        assert list(stream.text()) == ANSWER
        assert stream.finished


def test_error_of_the_model_ends_the_turn_and_stays_in_the_log(url: str) -> None:
    with Flux0(url) as client:
        conversation = client.conversation(agent=client.agents.first())
        with pytest.raises(AgentError, match=r"The model failed\.") as failure:
            conversation.ask("fail")
    assert "secret" not in str(failure.value)
