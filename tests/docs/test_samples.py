"""Every Python sample of the README and of the documentation runs, over real sockets.

The samples talk to a server at `FLUX0_SERVER_URL`. Here that is the in-memory server with its demo
agent, served on a port.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sybil import Document, Example
from sybil.parsers.markdown import PythonCodeBlockParser

from flux0.domain.headers import Headers
from flux0.ports import Request
from flux0.testing import FakeTransport
from flux0.testing.demo_agent import weather_agent

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Handler(BaseHTTPRequestHandler):
    """Hands each request to the in-memory server and writes its answer, chunked."""

    protocol_version = "HTTP/1.1"
    fake: FakeTransport

    def answer(self) -> None:
        length = int(self.headers.get("content-length", "0"))
        request = Request(
            self.command,
            f"http://127.0.0.1{self.path}",
            Headers(tuple(self.headers.items())),
            self.rfile.read(length) if length else None,
            stream=self.path.endswith("/stream"),
        )
        response = self.fake.send(request)
        self.send_response(response.status_code)
        for name, value in response.headers.pairs:
            if name.lower() not in ("content-length", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in response.body:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = answer  # noqa: N815 - http.server's names

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server_url() -> Generator[str, None, None]:
    """Serve the in-memory server while this module runs."""
    handler = type("DemoHandler", (Handler,), {"fake": FakeTransport(weather_agent)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def samples() -> list[Any]:
    """Return every sample, named by its page and line."""
    documents = [Document.parse(str(page), PythonCodeBlockParser()) for page in PAGES]
    return [
        pytest.param(example, id=f"{Path(example.path).name}:{example.line}")
        for document in documents
        for example in document.examples()
    ]


@pytest.mark.parametrize("example", samples())
def test_a_sample_runs(example: Example, server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX0_SERVER_URL", server_url)
    example.namespace.clear()  # Each stands alone, as a reader would copy it.
    example.namespace["__name__"] = "sample"
    example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
