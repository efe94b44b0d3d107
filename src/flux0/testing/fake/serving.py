"""An HTTP server on 127.0.0.1 for a fake, for programs that need a URL."""

from __future__ import annotations

import asyncio
import atexit
from asyncio import AbstractEventLoop, StreamReader, StreamWriter
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from functools import partial
from http import HTTPStatus
from logging import getLogger
from math import inf
from socket import create_server, socket
from threading import Thread
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import h11
from attrs import define, field

from flux0.domain.errors import TransportError
from flux0.domain.headers import Headers
from flux0.ports import Request, Timeout
from flux0.runtime.event_loop import call_soon
from flux0.runtime.weak_values import WeakObjects
from flux0.testing.fake.body import Run, SharedTransport, Starter
from flux0.testing.fake.clock import perform_async

_logger = getLogger("flux0.testing")

_PLAIN_TEXT = "text/plain; charset=utf-8"
_BACKLOG = 1024  # The largest number of new connections that wait until the fake accepts them.
# At the end of the `with` block, the server waits for an agent that blocks the event loop, but at
# most `_MAX_JOIN_SECONDS`.
_MAX_JOIN_SECONDS = 5.0
_BLOCK_BYTES = 65536  # The fake reads at most this number of bytes at once.
# The parser h11 needs a limit for the size of a request head. The real server has no fixed limit.
_MAX_HEAD_BYTES = 2**20
# The real server runs on Python 3.13. Older versions of Python have another phrase for the status
# 422.
_REASONS = {**{each.value: each.phrase for each in HTTPStatus}, 422: "Unprocessable Content"}


class FakeHTTPServer(AbstractContextManager[str]):
    """An HTTP server on 127.0.0.1, which serves a fake until the end of its `with` block.

    One event loop, in a thread, serves all connections and runs async agents. Sync agents run in
    other threads, because they may block.
    """

    def __init__(self, fake: SharedTransport, port: int, allow_origins: Collection[str]) -> None:
        self.fake = fake
        self.allow_origins = allow_origins
        self.address: str = f"127.0.0.1:{port}"
        self.starter: Starter = Starter(self._start_task, self._call_in_thread)
        self._threads: WeakObjects[Thread] = WeakObjects()

    def __enter__(self) -> str:
        host, _, port = self.address.partition(":")
        listener = create_server((host, int(port)), backlog=_BACKLOG)
        self.address = f"{host}:{listener.getsockname()[1]}"
        self._agent_loop: Future[AbstractEventLoop] = Future()
        self._ended = asyncio.Event()
        self._call_in_thread(lambda: asyncio.run(self._run(listener)))
        # Close the server at exit, before the interpreter finalizes. During the finalization,
        # daemon threads no longer run, so waiting for the end of a daemon thread never ends.
        atexit.register(self._close)
        return f"http://{self.address}"

    def __exit__(self, *_: object) -> None:
        atexit.unregister(self._close)
        self._close()

    def _close(self) -> None:
        call_soon(self._agent_loop.result(), self._ended.set)
        ends = monotonic() + _MAX_JOIN_SECONDS
        while (
            alive := [each for each in self._threads.values() if each.is_alive()]
        ) and monotonic() < ends:
            alive[0].join(max(ends - monotonic(), 0))

    def _call_in_thread(self, act: Callable[[], None]) -> None:
        thread = Thread(target=act, daemon=True)
        self._threads.add(thread)
        thread.start()

    def _start_task(self, run: Run) -> Callable[[], object]:
        return asyncio.run_coroutine_threadsafe(run(), self._agent_loop.result()).cancel

    async def _run(self, listener: socket) -> None:
        self._agent_loop.set_result(asyncio.get_running_loop())
        server = await asyncio.start_server(self._serve, sock=listener, backlog=_BACKLOG)
        await self._ended.wait()
        server.close()
        # The tasks of open connections and of agents are still running here. When this coroutine
        # ends, `asyncio.run` cancels these tasks and waits for them.

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        # Suppress the cancellation of this connection's task, because Python 3.11 and 3.12 log the
        # cancellation as an error.
        with suppress(asyncio.CancelledError):
            await _Connection(self, reader, writer).serve()


@define(eq=False)
class _Connection:
    """Responds to the requests of one connection with the responses of a fake.

    Events are sent as soon as the agent produces them. If the client disconnects, the agent is
    cancelled at once. A turn whose agent sends no more events stays open until the client
    disconnects.
    """

    _server: FakeHTTPServer
    _reader: StreamReader
    _writer: StreamWriter
    _http: h11.Connection = field(factory=partial(h11.Connection, h11.SERVER, _MAX_HEAD_BYTES))
    _received: asyncio.Event = field(factory=asyncio.Event)

    async def serve(self) -> None:
        # If the limit of the write buffer is 0, `drain` waits until all data is sent.
        self._writer.transport.set_write_buffer_limits(0)
        responding = asyncio.create_task(self._respond_to_all())
        try:
            with suppress(OSError):
                while data := await self._reader.read(_BLOCK_BYTES):
                    self._http.receive_data(data)
                    self._received.set()
        finally:
            responding.cancel()

    async def _respond_to_all(self) -> None:
        try:
            while await self._respond(await self._read_request()):
                self._http.start_next_cycle()
        except h11.RemoteProtocolError:
            fields = ("content-type", _PLAIN_TEXT), ("Connection", "close")
            await self._send(_head(400, fields), _data(b"Invalid HTTP request received."), _END)
        finally:
            self._writer.transport.abort()

    async def _read_request(self) -> Request:
        head, body = await self._receive(), bytearray()
        if self._http.they_are_waiting_for_100_continue:
            continued = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            await self._send(continued)
        while isinstance(event := await self._receive(), h11.Data):
            body += event.data
        # If the client has already closed the connection, `serve` cancels this task during the
        # `sleep`. Like the real server, the fake ignores the request of such a client.
        await asyncio.sleep(0)
        pairs = ((key.decode(), value.decode("latin-1")) for key, value in head.headers)
        headers = Headers(tuple(pairs))
        target = head.target.decode().replace("#", "%23")
        # A target without a leading slash, such as an absolute URL, matches no route of the real
        # server. Add slashes, so that the target matches no route of the fake, either.
        if not target.startswith("/"):
            target = f"//{target}"
        host, content = headers.get("host", self._server.address), bytes(body) or None
        limits = Timeout(read=None)
        url, method = f"http://{host}{target}", head.method.decode()
        try:
            urlsplit(url)
        except ValueError as error:
            raise h11.RemoteProtocolError(f"invalid host {host}") from error
        return Request(method, url, headers, content, stream=True, timeout=limits)

    async def _receive(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._received.clear()
            await self._received.wait()
        return event

    async def _respond(self, request: Request) -> bool:
        fake, name = self._server.fake, f"{request.method} {request.url}"
        cors = _cors_fields(request.headers, self._server.allow_origins)
        if cors and request.method == "OPTIONS":
            await self._send(_head(204, cors), _END)
            return self._http.our_state is h11.DONE
        waits = fake.respond(request, self._server.starter)
        try:
            response = await perform_async(waits, fake.clock, in_real_time=True)
        except TransportError as error:  # A fault prevents the response, so close the connection.
            _logger.debug("%s: %s", name, error)
            return False
        # The fake expected another call, for example, or a function of the test raised the error.
        except Exception as error:
            _logger.exception("%s: no response", name)
            text = str(error).encode(errors="replace")
            fields = ("content-length", str(len(text))), ("content-type", _PLAIN_TEXT), *cors
            await self._send(_head(500, fields), _data(text), _END)
            return self._http.our_state is h11.DONE
        _logger.debug("%s: %d", name, response.status_code)
        body = response.body
        try:
            await self._send(_head(response.status_code, (*response.headers.pairs, *cors)))
            while (piece := await body.read_async(inf)) is not None:
                await self._send(_data(piece))
            await self._send(_END)
        except (TransportError, OSError, h11.LocalProtocolError):
            # h11 raises LocalProtocolError if an injected fault has made the response invalid.
            return False
        except Exception:
            # The agent raised an exception. Like the real server, the fake sends no more data, but
            # keeps the connection open.
            _logger.exception("%s: the agent failed", name)
            await asyncio.Event().wait()
        finally:
            body.close()
        return self._http.our_state is h11.DONE and not body.closes_connection

    async def _send(self, *events: h11.Event) -> None:
        for event in events:
            self._writer.write(self._http.send(event) or b"")
            await self._writer.drain()


_END = h11.EndOfMessage()


def _head(status: int, fields: Iterable[tuple[str, str]]) -> h11.Response:
    headers = [(name.encode(), value.encode("latin-1")) for name, value in fields]
    return h11.Response(status_code=status, headers=headers, reason=_REASONS.get(status, ""))


def _data(data: bytes) -> h11.Data:
    return h11.Data(data=data)


def _cors_fields(headers: Headers, origins: Collection[str]) -> tuple[tuple[str, str], ...]:
    origin = headers.get("origin")
    if origin is None or not {origin, "*"} & set(origins):
        return ()
    requested = (
        (f"access-control-allow-{plural}", headers.get(f"access-control-request-{name}"))
        for plural, name in (("methods", "method"), ("headers", "headers"))
    )
    return (
        ("access-control-allow-origin", origin),
        ("access-control-allow-credentials", "true"),
        ("vary", "origin"),
        *((name, value) for name, value in requested if value is not None),
    )
