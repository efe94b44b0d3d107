"""Two back ends between a browser and the flux0 server, over ASGI and over WSGI.

Both have the same route for a turn as the server, so a flux0 client can act as the browser.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from flux0 import Flux0

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_HEARTBEAT_MS = 20

OnPiece = Callable[[bytes], object]


@contextmanager
def asgi(client: Flux0, on_piece: OnPiece | None = None) -> Generator[str, None, None]:
    """Serve turns of `client` with Starlette and uvicorn; yield the URL.

    `on_piece` is called after each piece of a relay.
    """

    async def observe(pieces: AsyncIterator[bytes], on_piece: OnPiece) -> AsyncIterator[bytes]:
        async for piece in pieces:
            yield piece
            on_piece(piece)

    async def turn(request: Request) -> StreamingResponse:
        message = await request.json()
        stream = await client.sessions.create_event_async(
            session_id=request.path_params["session_id"], content=message["content"]
        )
        pieces = stream.relay(heartbeat_ms=_HEARTBEAT_MS)
        if on_piece is not None:
            pieces = observe(pieces, on_piece)
        return StreamingResponse(pieces, media_type="text/event-stream")

    route = Route("/api/sessions/{session_id}/events/stream", turn, methods=["POST"])
    with serve(Starlette(routes=[route])) as url:
        yield url


@contextmanager
def serve(app: Any) -> Generator[str, None, None]:
    """Serve an ASGI application with uvicorn in a thread; yield the URL."""
    # By default, old versions of uvicorn install uvloop for all event loops of the process.
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", loop="asyncio"))
    started = threading.Event()
    startup = server.startup

    async def start(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = start  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(20)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def wsgi(client: Flux0, on_piece: OnPiece | None = None) -> Generator[str, None, None]:
    """Serve turns of `client` with a WSGI application in threads; yield the URL.

    `on_piece` is called after each piece of a relay.
    """

    def observe(pieces: Iterator[bytes], on_piece: OnPiece) -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            on_piece(piece)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        message = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        session_id = environ["PATH_INFO"].split("/")[3]
        stream = client.sessions.create_event(session_id=session_id, content=message["content"])
        start_response("200 OK", [("content-type", "text/event-stream")])
        pieces = stream.relay(heartbeat_ms=_HEARTBEAT_MS)
        return pieces if on_piece is None else observe(pieces, on_piece)

    with make_server(
        "127.0.0.1", 0, application, server_class=_ThreadingServer, handler_class=_Quiet
    ) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
