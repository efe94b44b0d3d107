"""The Django and Flask samples of docs/how-to/web.md, in real web servers."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import uvicorn
from asgiref.sync import markcoroutinefunction
from flask import session
from werkzeug.serving import make_server

from flux0 import Flux0
from flux0.testing import FakeTransport, Gate, Say
from support.fake_over_http import FakeOverHTTP

PAGE = (Path(__file__).parents[2] / "docs/how-to/web.md").read_text("utf-8")
USER = "7"


def run_sample(framework: str) -> dict[str, Any]:
    """Run the first sample of a framework; return its names."""
    section = PAGE.partition(f"## {framework}\n")[2]
    (code, *_) = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": "sample"}
    exec(compile(code, framework, "exec"), names)  # noqa: S102
    return names


def log_in(view: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A middleware of Django that logs the user in."""

    async def user() -> Any:
        return SimpleNamespace(pk=USER, is_authenticated=True)

    async def call(request: Any) -> Any:
        request.auser = user
        return await view(request)

    return markcoroutinefunction(call)


log_in.async_capable = True  # type: ignore[attr-defined]
log_in.sync_capable = False  # type: ignore[attr-defined]


@contextmanager
def django_server() -> Generator[str, None, None]:
    # Django has no types.
    conf, urls, asgi = (
        cast("Any", import_module(f"django.{name}")) for name in ("conf", "urls", "core.asgi")
    )
    route = urls.path("sessions/<session_id>/messages", run_sample("Django")["send"])
    conf.settings.configure(
        ALLOWED_HOSTS=["*"],
        MIDDLEWARE=[f"{__name__}.log_in"],
        ROOT_URLCONF=(route,),
        SECRET_KEY=USER,
    )
    # By default, old versions of uvicorn install uvloop for all event loops of the process.
    options: dict[str, Any] = {"log_level": "critical", "lifespan": "off", "loop": "asyncio"}
    server = uvicorn.Server(uvicorn.Config(asgi.get_asgi_application(), **options))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@contextmanager
def flask_server() -> Generator[str, None, None]:
    app = run_sample("Flask")["create_app"]()
    app.secret_key = USER

    def log_in_first() -> None:
        session["user_id"] = USER

    app.before_request(log_in_first)
    with make_server("127.0.0.1", 0, app, threaded=True) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("serve", [django_server, flask_server])
def test_turn_is_streamed_and_cancelled_when_the_browser_disconnects(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTransport([Say("Hello"), Gate(timeout=60)])
    with FakeOverHTTP(fake) as flux0_server, Flux0(flux0_server.url) as client:
        monkeypatch.setenv("FLUX0_SERVER_URL", flux0_server.url)
        own, other = (
            client.conversation(agent=fake.agent_id, user=user).session_id for user in (USER, "eve")
        )
        with serve() as url, httpx.Client(base_url=url, timeout=20) as browser:
            for session_id in (other, "unknown-00"):
                refused = browser.post(f"/sessions/{session_id}/messages", json={"text": "Hi"})
                assert refused.status_code == 404
            path = f"/sessions/{own}/messages"
            with browser.stream("POST", path, json={"text": "Hi"}) as response:
                assert response.headers["content-type"].startswith("text/event-stream")
                assert any('"Hello"' in line for line in response.iter_lines())
            assert flux0_server.no_open_streams.wait(20)
