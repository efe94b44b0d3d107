"""Random turns over one transport, broken in random ways, and what they leave behind.

    python -m support.soak <transport> <sync|asyncio|trio> <seconds> <seed>

It prints a line of JSON: how many turns there were, and what was left behind or sent twice. With an
odd seed they go through a proxy.
"""

# ruff: noqa: S311 - nothing here is a secret

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
_PATIENCE = 20.0  # seconds
# If connecting is cancelled, older ones leave the connection to the collector.
_ANYIO_CLOSES = tuple(map(int, version("anyio").split(".")[:2])) >= (4, 16)


def random_answer(chance: random.Random) -> ServerSteps:
    """Return a turn that goes well, or breaks anywhere, or falls silent."""
    kinds: list[bytes | Sleep] = [chunk("Hi"), Sleep(0.005)]
    whole = http_response(
        *chance.choices(kinds, k=chance.randrange(1, 6)),
        framing=chance.choice(["chunked", "content-length", "close-delimited"]),
        gzip=chance.random() < 0.3,
        headers=[("Content-Type", "text/event-stream")],
    )
    broken: list[Callable[[], ServerSteps]] = [
        lambda: whole,
        lambda: whole,
        lambda: (head("103 Early Hints"), *whole),
        lambda: truncated(whole, chance.randrange(size(whole))),
        lambda: (*whole[: chance.randrange(len(whole))], Reset()),
        lambda: (*whole[: chance.randrange(len(whole))], WaitForRelease()),
        lambda: (Write(b"SSH-2.0\r\n\r\n"), Disconnect()),
        lambda: http_response(b"Later.", status="503 Busy"),
    ]
    if size(whole) < 1_000:
        broken.append(lambda: byte_by_byte(whole))
    return chance.choice(broken)()


class Soak:
    """Workers that share a client, each of which sends turns, one after the other."""

    def __init__(self, seed: int, seconds: float, mode: Mode) -> None:
        self.seed = seed
        self.mode: Mode = mode
        self.end = time.monotonic() + seconds
        self.sent = 0
        self._lock = threading.Lock()

    def _turns(self) -> Iterator[str]:
        """Yield a new session for each turn until time is up, and once even on a slow machine."""
        while True:
            with self._lock:
                self.sent += 1
                session = f"s{self.sent}"
            yield session
            if time.monotonic() > self.end:
                return

    async def work(self, flux0: Flux0, worker: int) -> None:
        chance = random.Random(f"{self.seed} {worker}")
        for turn in self._turns():
            seconds = chance.random() * 0.02 if chance.random() < 0.3 else _PATIENCE
            sync = self.mode == "sync"
            with suppress(Flux0Error), nullcontext() if sync else anyio.move_on_after(seconds):
                await self._turn(in_mode(self.mode, flux0), turn, chance)

    async def _turn(self, flux0: Flux0, turn: str, chance: random.Random) -> None:
        stream = await flux0.sessions.create_event_async(session_id=turn, content="Hello")
        read = chance.choice(["all", "some", "none", "cycle", "elsewhere"])
        if read == "cycle":
            cycle: list[Any] = [stream]
            cycle.append(cycle)
        elif read == "elsewhere" and self.mode == "sync":
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
            thread.join(_PATIENCE + self.end - time.monotonic())
        flux0.close()
        assert not any(thread.is_alive() for thread in threads), "a worker hangs"

    def _fork(self, flux0: Flux0) -> None:
        """Have a child use the client, and forget it, while the workers go on."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            faulthandler.dump_traceback_later(_PATIENCE / 2)
            with suppress(BaseException):
                with suppress(Flux0Error):
                    flux0.agents.list()
                flux0.close()
                gc.collect()
            os._exit(0)
        child_ends = os.pidfd_open(child)
        ended, _, _ = select.select([child_ends], [], [], _PATIENCE)
        os.close(child_ends)
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
        for _ in range(200):  # Callbacks of what was closed come in the loop's next rounds.
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


def settled(measure: Any, wanted: int) -> int:
    """Return the measure once it is as wanted, or after some seconds."""
    end = time.monotonic() + 5
    while (found := measure()) > wanted and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)  # Threads end by themselves, and tell nobody.
    return int(found)


def left_behind(transport: str, mode: Mode, seconds: float, seed: int) -> dict[str, Any]:
    """Run, and return what is wrong afterwards."""
    chance = random.Random(seed)
    complaints: list[str] = []

    def complain(message: Warning | str, *_rest: Any, **_more: Any) -> None:
        way, text = (transport[:5], mode), str(message)
        if _ANYIO_CLOSES or way != ("httpx", "asyncio") or not text.startswith("unclosed "):
            complaints.append(text)

    warnings.simplefilter("always")
    warnings.showwarning = complain
    sys.unraisablehook = lambda raised: complaints.append(repr(raised.exc_value))
    with ExitStack() as running:
        answers = [random_answer(chance) for _ in range(1000)]
        server = running.enter_context(ByteServer(*answers, timeout=_PATIENCE))
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
        lost: dict[str, Any] = {
            "sent twice": twice,
            "connections": server.open_connections,
            "descriptors": max(0, settled(descriptors, fds) - fds),
            "warnings": complaints[:5],
        }
        # The server has a thread for each connection; all are gone by now.
        extra = settled(threading.active_count, threads) - threads
        lost["threads"] = [each.name for each in threading.enumerate()] if extra > 0 else []
        return {"turns": soak.sent, **{name: what for name, what in lost.items() if what}}


def main() -> None:
    """Do what the arguments say."""
    transport, mode, seconds, seed = sys.argv[1:]
    print(json.dumps(left_behind(transport, cast("Mode", mode), float(seconds), int(seed))))


if __name__ == "__main__":
    main()
