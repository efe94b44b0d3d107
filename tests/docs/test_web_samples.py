"""The web samples accept only sessions of the logged-in user."""

from __future__ import annotations

import asyncio
import json
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from flask import Flask

from flux0 import Flux0, to_dict
from flux0.testing import FakeTransport, Fault, Refuse, Respond
from support.samples import code_of, load

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
WEB = "docs/how-to/web.md"
OWN_CONVERSATION = "OwnConversation = Annotated[AsyncConversation, Depends(own_conversation)]"

Result: TypeAlias = "tuple[int, bytes, Mapping[str, str]]"
Post: TypeAlias = "Callable[[str, str | None], Result]"


def started(stack: ExitStack, page: Any) -> Any:
    return stack.enter_context(page)


def browser(stack: ExitStack, app: Any) -> Any:
    """Start the application, and stop it at the end of `stack`. Return a `TestClient`."""
    with TestClient(app):  # Tests start an application several times.
        pass
    return started(stack, TestClient(app))


def joined(responses: Sequence[httpx.Response]) -> Result:
    statuses = {response.status_code for response in responses}
    assert statuses in ({200, 204}, {200}, {401}, {404})
    body = b"".join(response.content for response in responses)
    return min(statuses), body, responses[0].headers


# Each function returns a function that posts a message to a session as a user; None means that
# no user is logged in. It returns the response's status, body and headers.


def example(stack: ExitStack) -> Post:
    folder = ROOT / "examples/web"
    sys.path.insert(0, str(folder))
    try:
        page = browser(stack, runpy.run_path(str(folder / "app.py"))["app"])
    finally:
        sys.path.remove(str(folder))

    def post(session_id: str, user: str | None) -> Result:
        page.cookies = {} if user is None else {"guest": user}
        response = page.post(f"/sessions/{session_id}/messages", json={"text": "Hi"})
        if response.status_code in {401, 404}:  # The other routes have the same check.
            path = f"/sessions/{session_id}/turn"
            others = {page.request(method, path).status_code for method in ("GET", "DELETE")}
            assert others == {response.status_code}
        return response.status_code, response.content, response.headers

    return post


def background(stack: ExitStack) -> Post:
    names = load(WEB, OWN_CONVERSATION)
    page = browser(stack, names["app"])

    def post(session_id: str, user: str | None) -> Result:
        users = {} if user is None else {names["current_user"]: lambda: user}
        names["app"].dependency_overrides = users
        # The routes that join and stop a turn have the same check.
        responses = [
            page.request(
                method,
                f"/sessions/{session_id}/{path}",
                json={"text": "Hi"} if method == "POST" else None,
            )
            for method, path in (("POST", "messages"), ("GET", "turn"), ("DELETE", "turn"))
        ]
        return joined(responses)

    return post


def flask(stack: ExitStack) -> Post:
    line = "from flask import Flask, Response, abort, request, session"
    app: Flask = load(WEB, line)["create_app"]()
    app.secret_key = "of the test"

    def post(session_id: str, user: str | None) -> Result:
        with app.test_client() as page:
            with page.session_transaction() as session:
                session["user_id"] = user
            response = page.post(f"/sessions/{session_id}/messages", json={"text": "Hi"})
            return response.status_code, response.data, dict(response.headers)

    return post


def django(stack: ExitStack) -> Post:
    line = "from django.core.exceptions import PermissionDenied"
    view = load(WEB, line)["send"]

    async def post_async(session_id: str, user: str | None) -> Result:
        async def logged_in() -> Any:
            return SimpleNamespace(pk=user, is_authenticated=user is not None)

        try:
            request = SimpleNamespace(auser=logged_in, body=b'{"text": "Hi"}')
            response = await view(request, session_id)
        except Exception as error:  # noqa: BLE001 - Django turns them into responses
            return {"Http404": 404, "PermissionDenied": 403}[type(error).__name__], b"", {}
        return 200, b"".join([piece async for piece in response]), response.headers

    return lambda session_id, user: asyncio.run(post_async(session_id, user))


def test_application_of_the_page_creates_a_session_of_the_user(fake: FakeTransport) -> None:
    with ExitStack() as stack:
        names = load(WEB, OWN_CONVERSATION)
        page = browser(stack, names["app"])
        assert page.post("/sessions", json={"text": "Hi"}).status_code == 401
        names["app"].dependency_overrides = {names["current_user"]: lambda: "ada"}
        created = page.post("/sessions", json={"text": "How is the weather?"})
    with Flux0() as client:
        (session,) = client.sessions.list(user="ada")
    assert (created.status_code, created.json()) == (201, {"session_id": session.id})
    assert session.title == "How is the weather?"


def test_tests_of_the_page_pass_and_fail_without_the_check_of_the_user(
    pytester: pytest.Pytester,
) -> None:
    application = next(code for code in code_of(WEB, "python") if "app = FastAPI(" in code)
    (tests,) = (code for code in code_of(WEB, "py") if "# test_app.py" in code)
    check = "if not await conversation.belongs_to_user():"
    pytester.makepyfile(
        app=application,
        test_app=tests,
        unchecked=application.replace(check, "if False:"),
        test_unchecked=tests.replace("from app import", "from unchecked import"),
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["FAILED test_unchecked.py::test_chat_of_another_user*"])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTransport]:
    # The URL is not used, but without it, the example would use its own fake.
    monkeypatch.setenv("FLUX0_SERVER_URL", "http://127.0.0.1:8080")
    with FakeTransport("Secret.").installed() as fake:
        yield fake


@pytest.mark.parametrize("sample", [example, background, flask, django])
def test_web_sample_rejects_the_sessions_of_other_users(
    fake: FakeTransport, sample: Callable[[ExitStack], Post]
) -> None:
    with ExitStack() as stack:
        check_sessions(fake, sample(stack))


def check_sessions(fake: FakeTransport, post: Post) -> None:
    with Flux0() as client:
        own = client.conversation(agent=fake.agent_id, user="ada").session_id
        of_nobody = client.conversation(agent=fake.agent_id).session_id
    calls = len(fake.calls)

    for session_id, user in ((own, "eve"), (own, None), (of_nobody, "ada"), (of_nobody, None)):
        status, body, _ = post(session_id, user)
        assert status == 404 if user else status in (401, 403)
        assert b"Secret." not in body
    assert {call.operation for call in fake.calls[calls:]} == {"sessions.list"}

    status, body, headers = post(own, "ada")
    assert status == 200
    assert b"Secret." in body
    # Otherwise, nginx sends the events together, when the turn has ended.
    assert headers["x-accel-buffering"] == "no"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("fault", "operation", "status", "problem"),
    [
        (Refuse(), None, 503, "The agent cannot be reached."),
        (Respond(500), "sessions.create_event", 502, "Your message may have been sent."),
        (None, None, 404, "You have no such chat."),
    ],
)
def test_web_example_returns_errors_as_json(
    fake: FakeTransport, fault: Fault | None, operation: str | None, status: int, problem: str
) -> None:
    with Flux0() as client:
        session_id = client.conversation(agent=fake.agent_id, user="ada").session_id
    if fault is None:
        session_id = "%23"
    else:
        fake.inject(fault, operation=operation, times=3)
    with ExitStack() as stack:
        received, body, _ = example(stack)(session_id, "ada")
    assert received == status
    assert problem in json.loads(body)["detail"]


def test_models_are_returned_and_accepted_by_web_frameworks(fake: FakeTransport) -> None:
    with Flux0() as client:
        agents = to_dict(client.agents.list())
        session = to_dict(client.sessions.create(agent_id=fake.agent_id))
    app = FastAPI()
    app.get("/agents")(lambda: agents)
    assert TestClient(app).get("/agents").json() == agents

    chat: Any = load(WEB, "class Chat(BaseModel):")["Chat"]

    def echoed(body: Any) -> Any:
        return body

    echoed.__annotations__.update({"body": chat, "return": chat})
    app.post("/")(echoed)
    data = {"title": "t", "session": {**session, "new": 1}}
    echo = TestClient(app)
    assert echo.post("/", json=data).json() == data
    wrong = echo.post("/", json={"title": "t", "session": {"id": 1}})
    assert wrong.status_code == 422
    assert "id: expected a str, got int" in wrong.json()["detail"][0]["msg"]
    assert echo.get("/openapi.json").status_code == 200
