"""An HTTP server on 127.0.0.1 for a fake, for programs that need a URL."""

from __future__ import annotations

import asyncio
import atexit
import re
from asyncio import AbstractEventLoop
from collections.abc import Callable, Collection, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, suppress
from functools import partial
from http import HTTPStatus
from logging import getLogger
from math import inf
from socket import (
    IPPROTO_TCP,
    MSG_PEEK,
    SHUT_RDWR,
    TCP_NODELAY,
    create_connection,
    create_server,
    socket,
)
from threading import Thread, current_thread
from time import monotonic
from typing import Any

import h11

from flux0.domain.errors import ConnectionInterrupted, TransportError
from flux0.domain.headers import Headers
from flux0.ports import Request, Response, Timeout
from flux0.testing.fake.body import FakeBody, SharedTransport
from flux0.testing.fake.clock import Wait, Waits

_logger = getLogger("flux0.testing")

_PLAIN_TEXT = "text/plain; charset=utf-8"
_BACKLOG = 1024  # Many clients may connect at once.
# The longest wait, at the end of the block, until agents notice that their clients are gone.
_MAX_JOIN_SECONDS = 5.0
_BLOCK_BYTES = 65536  # Most requests arrive in one block.
# h11 needs a limit for the size of a request head. The real server has no fixed limit.
_MAX_HEAD_BYTES = 2**20
_HOST = re.compile(r"([\w.~%!$&'()*+,;=-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?", re.ASCII)
# The real server runs on Python 3.13. Older versions of Python have another phrase for 422.
_REASONS = {**{each.value: each.phrase for each in HTTPStatus}, 422: "Unprocessable Content"}


class FakeHTTPServer(AbstractContextManager[str]):
    """Serves a fake in a `with` block; see `FakeTransport.serve`. Each connection has a thread."""

    def __init__(self, fake: SharedTransport, port: int, allow_origins: Collection[str]) -> None:
        self.fake = fake
        self.allow_origins = allow_origins
        self.address: str = f"127.0.0.1:{port}"
        # The threads that serve the connections, with their sockets.
        self._threads: dict[Thread, socket] = {}

    def __enter__(self) -> str:
        host, _, port = self.address.partition(":")
        self._listener = create_server((host, int(port)), backlog=_BACKLOG)
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        self._closing = False
        self._agent_loop: Future[AbstractEventLoop] = Future()
        self._loop_thread = Thread(target=lambda: asyncio.run(self._run_loop()), daemon=True)
        self._accepting = Thread(target=self._accept, daemon=True)
        self._loop_thread.start()
        self._accepting.start()
        # While the interpreter finalizes, daemon threads do not run, so joining them would hang.
        atexit.register(self._close)
        return f"http://{self.address}"

    def __exit__(self, *_: object) -> None:
        atexit.unregister(self._close)
        self._close()

    def _close(self) -> None:
        if self._closing:
            return
        self._closing = True
        # This connection wakes the thread that waits in `_accept`.
        create_connection(self._listener.getsockname()).close()
        self._accepting.join()
        self._listener.close()
        threads = tuple(self._threads.items())
        for _, connection in threads:
            with suppress(OSError):
                connection.shutdown(SHUT_RDWR)
        ends = monotonic() + _MAX_JOIN_SECONDS
        for thread, _ in threads:
            thread.join(max(ends - monotonic(), 0))
        self._agent_loop.result().call_soon_threadsafe(self._ended.set)
        self._loop_thread.join(max(ends - monotonic(), 0))

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._closing:
                connection.close()
                return
            thread = Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads[thread] = connection
            thread.start()

    def _serve(self, connection: socket) -> None:
        with connection, suppress(OSError):
            # TCP_NODELAY sends each event at once.
            connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            _Connection(self, connection).handle()
        del self._threads[current_thread()]

    async def _run_loop(self) -> None:
        self._ended = asyncio.Event()
        self._agent_loop.set_result(asyncio.get_running_loop())
        await self._ended.wait()

    def start_task(self, run: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], object]:
        return asyncio.run_coroutine_threadsafe(run(), self._agent_loop.result()).cancel


class _Connection:
    """Serves the requests of one connection from a fake.

    Events are sent as soon as the agent produces them. If the client disconnects, the agent is
    cancelled at once. A turn whose agent sends no more events stays open until the client
    disconnects.
    """

    def __init__(self, server: FakeHTTPServer, connection: socket) -> None:
        self.server = server
        self.request = connection
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._watchers: list[Thread] = []
        self._body: FakeBody | None = None
        self._is_disconnected = False

    def handle(self) -> None:
        try:
            while (request := self._read_request()) and self._respond(request):
                self.http.start_next_cycle()
        except h11.RemoteProtocolError:
            fields = ("content-type", _PLAIN_TEXT), ("Connection", "close")
            self._send_response(400, fields, [b"Invalid HTTP request received."])
        finally:
            with suppress(OSError):
                self.request.shutdown(SHUT_RDWR)
            for watcher in self._watchers:
                watcher.join()

    def _read_request(self) -> Request | None:
        head, body = self._receive(), bytearray()
        if self.http.they_are_waiting_for_100_continue:
            self._send(h11.InformationalResponse(status_code=100, headers=[], reason="Continue"))
        while isinstance(event := self._receive(), h11.Data):
            body += event.data
        if not isinstance(head, h11.Request) or event is None or self._is_closed_by_client():
            return None
        headers = Headers(
            tuple((key.decode(), value.decode("latin-1")) for key, value in head.headers)
        )
        scheme, host = headers.get("x-forwarded-proto"), headers.get("host", "")
        scheme = scheme if scheme in {"https", "ws", "wss"} else "http"
        host = host if _HOST.fullmatch(host) else self.server.address
        target = head.target.decode().replace("#", "%23")
        # Targets without a leading slash, such as absolute URLs, must match no route.
        if not target.startswith("/"):
            target = f"//{target}"
        return Request(
            head.method.decode(),
            f"{scheme}://{host}{target}",
            headers,
            bytes(body) or None,
            stream=True,
            timeout=Timeout(read=None),
        )

    def _receive(self) -> object:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            if not (data := self.request.recv(_BLOCK_BYTES)):
                return None
            self.http.receive_data(data)
        return event

    def _respond(self, request: Request) -> bool:
        cors = _cors_fields(request.headers, self.server.allow_origins)
        if cors and request.method == "OPTIONS":
            self._send_response(204, cors)
            return self.http.our_state is h11.DONE
        watcher = Thread(target=self._watch, daemon=True)
        watcher.start()
        # If the client sends requests in advance, several watchers run until the connection ends.
        self._watchers = [*(each for each in self._watchers if each.is_alive()), watcher]
        try:
            response = self._perform(self.server.fake.respond(request, self.server.start_task))
        # A fault has prevented the response, so close the connection.
        except TransportError as error:
            _logger.debug("%s %s: %s", request.method, request.url, error)
            return False
        # The fake raises AssertionError for unexpected calls, for example.
        except AssertionError as error:
            _logger.exception("%s %s: no response", request.method, request.url)
            text = str(error).encode(errors="replace")
            length = ("content-length", str(len(text)))
            self._send_response(500, (length, ("content-type", _PLAIN_TEXT), *cors), [text])
            return self.http.our_state is h11.DONE
        _logger.debug("%s %s: %d", request.method, request.url, response.status_code)
        self._body = body = response.body
        if self._is_disconnected:  # pragma: no cover - in the moment before `_watch` sees the body
            body.close()
        try:
            fields = (*response.headers.pairs, *cors)
            self._send_response(response.status_code, fields, iter(partial(body.read, inf), None))
        except (TransportError, OSError, h11.LocalProtocolError):
            # h11 raises LocalProtocolError if a fault has made the response invalid.
            return False
        except Exception:
            # The agent raised an exception. Like the real server, send no more data, but keep the
            # connection open.
            _logger.exception("%s %s: the agent failed", request.method, request.url)
            watcher.join()
            return False
        finally:
            body.close()
        return self.http.our_state is h11.DONE and not body.closes_connection

    def _perform(self, waits: Waits[Response[FakeBody]]) -> Response[FakeBody]:
        """Run `waits`. Endless waits, and waits for a clock that only a test moves, are real."""
        clock = self.server.fake.clock
        with closing(waits):
            try:
                while True:
                    moment = next(waits).moment or inf
                    while clock.now() < moment:
                        seen = clock.changes
                        if self._is_disconnected:
                            raise ConnectionInterrupted("the client has closed the connection")
                        by_itself = clock.moves_by_itself and moment < inf
                        clock.wait(Wait(moment) if by_itself else Wait(seen=seen))
            except StopIteration as stop:
                response: Response[FakeBody] = stop.value
                return response

    def _send_response(
        self, status: int, fields: Iterable[tuple[str, str]], body: Iterable[bytes] = ()
    ) -> None:
        headers = [(name.encode(), value.encode("latin-1")) for name, value in fields]
        reason = _REASONS.get(status, "")
        self._send(h11.Response(status_code=status, headers=headers, reason=reason))
        for piece in body:
            self._send(h11.Data(data=piece))
        self._send(h11.EndOfMessage())

    def _send(self, event: h11.Event) -> None:
        if data := self.http.send(event):
            self.request.sendall(data)

    def _is_closed_by_client(self) -> bool:
        # The real server ignores a request whose client has already closed the connection.
        self.request.settimeout(0)
        try:
            return not self.request.recv(1, MSG_PEEK)
        except BlockingIOError:
            return False
        finally:
            self.request.settimeout(None)

    def _watch(self) -> None:
        with suppress(OSError):
            if self.request.recv(1, MSG_PEEK):
                return  # The client sent its next request, so it is still connected.
        self._is_disconnected = True
        if self._body is not None:
            self._body.close()
        self.server.fake.clock.notify()


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
