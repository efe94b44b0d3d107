"""A soak test: random turns with random faults over one transport, and a check for leaks.

    python -m support.soak <transport> <sync|asyncio|trio> <seconds> <seed>

It prints one JSON object: the number of turns, and everything that leaked or was sent twice. If the
seed is odd, the requests go through a proxy.
"""

# ruff: noqa: S311 - the random numbers are not secrets

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import os
import random
import select
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from importlib.metadata import version
from typing import Any, cast

import anyio
import trio

from flux0 import Flux0, RetryConfig
from flux0.domain.errors import Flux0Error
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import (
    Disconnect,
    Reset,
    ServerSteps,
    Sleep,
    WaitForRelease,
    Write,
    byte_by_byte,
    head,
    http_response,
    size,
    truncated,
)
from support.in_memory import chunk
from support.modes import in_mode, run
from support.proxy import Proxy
from support.transports import Mode, make_transport

_WORKERS = 6
_TIMEOUT_SECONDS = 20.0
# If a task is cancelled while it connects, older versions of anyio leave the connection open.
ANYIO_CLOSES_CANCELLED = tuple(map(int, version("anyio").split(".")[:2])) >= (4, 16)


def random_response(rng: random.Random) -> ServerSteps:
    """Return the response of one turn: complete, interrupted at any byte, or never ending."""
    pieces: list[bytes | Sleep] = [chunk("Hi"), Sleep(0.005)]
    complete = http_response(
        *rng.choices(pieces, k=rng.randrange(1, 6)),
        framing=rng.choice(["chunked", "content-length", "close-delimited"]),
        gzip=rng.random() < 0.3,
        headers=[("Content-Type", "text/event-stream")],
    )
    variants: list[Callable[[], ServerSteps]] = [
        lambda: complete,
        lambda: complete,
        lambda: (head("103 Early Hints"), *complete),
        lambda: truncated(complete, rng.randrange(size(complete))),
        lambda: (*complete[: rng.randrange(len(complete))], Reset()),
        lambda: (*complete[: rng.randrange(len(complete))], WaitForRelease()),
        lambda: (Write(b"SSH-2.0\r\n\r\n"), Disconnect()),
        lambda: http_response(b"Later.", status="503 Busy"),
    ]
    if size(complete) < 1_000:
        variants.append(lambda: byte_by_byte(complete))
    return rng.choice(variants)()


class Soak:
    """Workers that share a client. Each of them sends one turn after another."""

    def __init__(self, seed: int, seconds: float, mode: Mode) -> None:
        self.seed = seed
        self.mode: Mode = mode
        self.end = time.monotonic() + seconds
        self.sent = 0
        self._lock = threading.Lock()

    def _turns(self) -> Iterator[str]:
        """Yield a new session for each turn until the test's end, and at least one session."""
        while True:
            with self._lock:
                self.sent += 1
                session = f"s{self.sent}"
            yield session
            if time.monotonic() > self.end:
                return

    async def work(self, flux0: Flux0, worker: int) -> None:
        rng = random.Random(f"{self.seed} {worker}")
        for turn in self._turns():
            seconds = rng.random() * 0.02 if rng.random() < 0.3 else _TIMEOUT_SECONDS
            sync = self.mode == "sync"
            with suppress(Flux0Error), nullcontext() if sync else anyio.move_on_after(seconds):
                await self._turn(in_mode(self.mode, flux0), turn, rng)

    async def _turn(self, flux0: Flux0, turn: str, rng: random.Random) -> None:
        stream = await flux0.sessions.create_event_async(session_id=turn, content="Hello")
        read = rng.choice(["all", "some", "none", "cycle", "closed in thread"])
        if read == "cycle":
            cycle: list[Any] = [stream]
            cycle.append(cycle)
        elif read == "closed in thread" and self.mode == "sync":
            threading.Timer(0.01, cast("Any", stream)._real.close).start()
        if read in ("none", "cycle"):
            return
        async with stream:
            async for _ in stream:
                if read == "some":
                    break

    def run(self, flux0: Flux0) -> None:
        threads = [
            threading.Thread(target=run, args=("sync", partial(self.work, flux0, worker)))
            for worker in range(_WORKERS)
        ]
        for thread in threads:
            thread.start()
        if hasattr(os, "fork"):
            self._fork(flux0)
        for thread in threads:
            thread.join(_TIMEOUT_SECONDS + self.end - time.monotonic())
        flux0.close()
        assert not any(thread.is_alive() for thread in threads), "a worker hangs"

    def _fork(self, flux0: Flux0) -> None:
        """Use and close the client in a forked child, while the workers continue."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            faulthandler.dump_traceback_later(_TIMEOUT_SECONDS / 2)
            with suppress(BaseException):
                with suppress(Flux0Error):
                    flux0.agents.list()
                flux0.close()
                gc.collect()
            os._exit(0)
        child_descriptor = os.pidfd_open(child)
        ended, _, _ = select.select([child_descriptor], [], [], _TIMEOUT_SECONDS)
        os.close(child_descriptor)
        if not ended:
            os.kill(child, 9)
        os.waitpid(child, 0)
        assert ended, "a forked child hangs"

    async def run_async(self, flux0: Flux0) -> None:
        before = self._tasks()
        async with anyio.create_task_group() as workers:
            for worker in range(_WORKERS):
                workers.start_soon(self.work, flux0, worker)
        await flux0.close_async()
        gc.collect()
        # Callbacks of closed connections run in the loop's next iterations.
        for _ in range(200):
            if self._tasks() == before:
                break
            await anyio.sleep(0.01)
        assert self._tasks() == before, "tasks are left"

    def _tasks(self) -> int:
        if self.mode == "trio":
            return trio.lowlevel.current_statistics().tasks_living
        return len(asyncio.all_tasks())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def settled(measure: Callable[[], int], expected: int) -> int:
    """Return the result of `measure` when it is at most `expected`, or after 5 s."""
    end = time.monotonic() + 5
    while (found := measure()) > expected and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)  # No event reports the end of a thread.
    return found


def find_leaks(transport: str, mode: Mode, seconds: float, seed: int) -> dict[str, Any]:
    """Run the turns; return their number and the leaks."""
    rng = random.Random(seed)
    caught_warnings: list[str] = []

    def record_warning(message: Warning | str, *_args: Any, **_options: Any) -> None:
        text = str(message)
        over_httpx = (transport[:5], mode) == ("httpx", "asyncio")
        if ANYIO_CLOSES_CANCELLED or not over_httpx or not text.startswith("unclosed "):
            caught_warnings.append(text)

    warnings.simplefilter("always")
    warnings.showwarning = record_warning
    sys.unraisablehook = lambda raised: caught_warnings.append(repr(raised.exc_value))
    with ExitStack() as running:
        responses = [random_response(rng) for _ in range(1000)]
        server = running.enter_context(ByteServer(*responses, timeout=_TIMEOUT_SECONDS))
        fds, threads = descriptors(), threading.active_count()
        flux0 = Flux0(
            server.url,
            transport=make_transport(transport),
            retry_config=RetryConfig("none"),
            timeout_ms=300,
            stream_idle_timeout_ms=300,
        )
        gc.freeze()
        gc.set_threshold(200)
        soak = Soak(seed, seconds, mode)
        with ExitStack() as proxied:
            if seed % 2:
                os.environ["http_proxy"] = proxied.enter_context(Proxy()).url
            if mode == "sync":
                soak.run(flux0)
            else:
                run(mode, partial(soak.run_async, flux0))
        del flux0
        gc.collect()
        with suppress(AssertionError):
            server.wait_until_closed()
        targets = [each.target for each in server.requests if each.method == "POST"]
        twice = len(targets) - len(set(targets))
        leaks: dict[str, Any] = {
            "sent twice": twice,
            "connections": server.open_connections,
            "descriptors": max(0, settled(descriptors, fds) - fds),
            "warnings": caught_warnings[:5],
        }
        # Count the threads now: while a connection is open, the server has a thread for it.
        extra = settled(threading.active_count, threads) - threads
        leaks["threads"] = [each.name for each in threading.enumerate()] if extra > 0 else []
        return {"turns": soak.sent, **{name: leak for name, leak in leaks.items() if leak}}


def main() -> None:
    """Run the soak test with the arguments of the command line."""
    transport, mode, seconds, seed = sys.argv[1:]
    print(json.dumps(find_leaks(transport, cast("Mode", mode), float(seconds), int(seed))))


if __name__ == "__main__":
    main()
