"""Sends real signals, or kills of gevent, to a thread that makes calls, while others do the same.

    python -m support.real_signals <transport> <signals|gevent> <number> <seed>

With "signals", the main thread makes calls and turns, and the handler of a signal raises an
exception at a random moment. Three other threads use the same client. With "gevent", greenlets make
the calls, and are killed or get a `Timeout`. It prints one JSON object: the number of interruptions
and the problems that were found. A call that hangs prints the stacks of all threads, and exits.
"""

# ruff: noqa: S311, E402 - random numbers are not secrets; gevent is imported first

from __future__ import annotations

import sys

_GEVENT = "gevent" in sys.argv[2:3]
if _GEVENT:
    from gevent import monkey  # type: ignore[import-untyped]

    monkey.patch_all()

import faulthandler
import gc
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import flux0
from support.counting_server import OPEN_SESSION, TEXTS, CountingServer
from support.transports import make_transport

_LIMIT_MS = 20_000
_THREADS = 3


class Interruption(BaseException):
    pass


def use(client: flux0.Flux0, session: str, rng: random.Random) -> None:
    """Make a random call, and check its result."""
    chosen = rng.randrange(4)
    if chosen == 0:
        assert len(client.agents.list(timeout_ms=_LIMIT_MS)) == 1
        return
    options: Any = {"content": "Hi", "timeout_ms": _LIMIT_MS}
    if chosen == 1:
        with client.sessions.create_event(session_id=OPEN_SESSION, **options) as stream:
            next(stream)
        return
    stream = client.sessions.create_event(session_id=session, **options)
    if chosen == 2:
        assert len(list(stream)) == len(TEXTS)
    else:
        assert b"".join(stream.relay()).count(b"event: chunk") == len(TEXTS)


class Others:
    """Threads or greenlets that use the client without interruptions."""

    def __init__(self, client: flux0.Flux0, seed: int) -> None:
        self._client = client
        self._ended = False
        self.problems: list[str] = []
        self.calls = 0
        self._threads = [
            threading.Thread(target=self._run, args=(seed + number,), daemon=True)
            for number in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self._ended:
            try:
                # A second message on one session would close the stream of another thread.
                if rng.randrange(2):
                    assert len(self._client.agents.list(timeout_ms=_LIMIT_MS)) == 1
                else:
                    stream = self._client.sessions.create_event(session_id=f"s{seed}", content="Hi")
                    assert len(list(stream)) == len(TEXTS)
                self.calls += 1
            except BaseException as error:  # noqa: BLE001 - reported
                self.problems.append(f"another thread: {error!r}")

    def end(self) -> None:
        self._ended = True
        for thread in self._threads:
            thread.join()


def with_signals(client: flux0.Flux0, rng: random.Random, number: int) -> tuple[int, list[str]]:
    problems: list[str] = []
    expected: list[Interruption] = []
    is_armed = False

    def handle(*_: object) -> None:
        if is_armed:
            expected.append(Interruption())
            raise expected[-1]

    signal.signal(signal.SIGALRM, handle)
    interrupted = 0
    while interrupted < number:
        faulthandler.dump_traceback_later(2 * _LIMIT_MS / 1000, exit=True)
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 8e-3))
            is_armed = True
            use(client, "s", rng)
            is_armed = False
        except BaseException as error:  # noqa: BLE001 - compared
            is_armed = False
            if error is not (expected[-1] if expected else None):
                problems.append(f"raised {error!r}")
        else:
            if expected:
                problems.append("lost")
        signal.setitimer(signal.ITIMER_REAL, 0)
        interrupted += len(expected)
        expected.clear()
    faulthandler.cancel_dump_traceback_later()
    return interrupted, problems


def with_gevent(client: flux0.Flux0, rng: random.Random, number: int) -> tuple[int, list[str]]:
    import gevent  # noqa: PLC0415 - replaces modules

    problems: list[str] = []
    interrupted = 0

    def run(timeout: Any) -> str:
        try:
            if timeout is not None:
                timeout.start()
            while True:
                use(client, "s", rng)
        except gevent.GreenletExit:
            return "killed"
        except gevent.Timeout as raised:
            return "expired" if raised is timeout else "wrong timeout"
        except BaseException as error:  # noqa: BLE001 - reported
            return repr(error)

    for each in range(number):
        kills = each % 2 == 0
        timeout = None if kills else gevent.Timeout(rng.uniform(1e-5, 1e-2))
        greenlet = cast("Any", gevent).spawn(run, timeout)
        gevent.sleep(rng.uniform(0, 1e-2))
        if kills:
            greenlet.kill(block=False)
        greenlet.join(2 * _LIMIT_MS / 1000)
        outcome = greenlet.value if greenlet.dead else "hangs"
        # A greenlet that is killed before its start has no outcome.
        ended = isinstance(outcome, gevent.GreenletExit)
        if not ended and outcome != ("killed" if kills else "expired"):
            problems.append(str(outcome))
            if not greenlet.dead:
                break
        interrupted += 1
    return interrupted, problems


def main() -> None:
    transport, mode, number, seed = sys.argv[1:]
    lost: list[str] = []

    def record(raised: Any) -> None:
        if not isinstance(raised.exc_value, Exception):
            lost.append(f"lost in a finalizer: {raised.exc_value!r}")

    sys.unraisablehook = record
    modes: dict[str, Callable[..., tuple[int, list[str]]]]
    modes = {"signals": with_signals, "gevent": with_gevent}
    with CountingServer() as server:
        client = flux0.Flux0(
            server.url,
            transport=make_transport(transport),
            retry_config=flux0.RetryConfig("none"),
        )
        for each in range(20):
            use(client, "s", random.Random(each))
        others = Others(client, int(seed))
        interrupted, problems = modes[mode](client, random.Random(int(seed)), int(number))
        others.end()
        gc.collect()
        ends = time.monotonic() + 10
        while server.turns and time.monotonic() < ends:
            time.sleep(0.01)
        if server.turns:
            problems.append(f"{len(server.turns)} turns are open")
        if len(server.connections) > _THREADS + 3:
            problems.append(f"{len(server.connections)} connections are open")
        assert others.calls > 0
        found = problems + others.problems + lost
        print(json.dumps({"interrupted": interrupted, "problems": found}))
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
