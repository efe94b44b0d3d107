"""The fake and the real server behave the same if turns are unread, closed early or overlap.

Agents wait at gates that the test opens, so that the result does not depend on speed.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from attrs import define, field, frozen

from flux0 import HttpxTransport
from flux0.ports import ByteStream, Response
from flux0.testing import Gate
from support.fake_comparison import EVENTS, ComparedServer, get
from support.fake_scripts import scripted_fake
from support.sending import Pieces
from support.server import Flux0Server

_GATE_TIMEOUT_SECONDS = 0.3
_SETTLE_SECONDS = 0.1
_READS = "read", "read_one", "close"


_names = count()


@frozen
class Side:
    """A server, with a function that releases a step of its agents by name."""

    server: ComparedServer
    release: Callable[[str], None]
    is_real: bool

    def settle(self) -> None:
        """Wait until the agents cannot continue."""
        if self.is_real:
            before = None
            # Not with `ask`, which would assign placeholders to the ids.
            while (now := b"".join(Pieces(self.server.send(get(EVENTS)).body))) != before:
                before = now
                # The server sends no notification of stored events.
                time.sleep(_SETTLE_SECONDS)


@pytest.fixture(scope="module")
def sides(
    server_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Side, Side]]:
    """The real server and the fake."""
    with Flux0Server(server_python, tmp_path_factory.mktemp("time")) as server:
        transport = HttpxTransport()
        gates: defaultdict[str, Gate] = defaultdict(lambda: Gate(timeout=_GATE_TIMEOUT_SECONDS))
        fake = scripted_fake(server.agent_id, gates)
        yield (
            Side(
                ComparedServer(transport, server.url, server.agent_id), server.release, is_real=True
            ),
            Side(
                ComparedServer(fake, "http://fake", fake.agent_id),
                lambda name: gates[name].open(),
                is_real=False,
            ),
        )
        transport.close()
        fake.assert_no_open_streams()


@define
class SessionRun:
    """One session: the streams of its turns, and the results of all reads."""

    side: Side
    names: list[str]
    streams: list[Response[ByteStream]] = field(factory=list[Response[ByteStream]])
    available: list[int] = field(factory=list[int])
    results: list[Any] = field(factory=list[Any])

    def post(self, sizes: list[int]) -> None:
        """Start a turn that sends `sizes[n]` messages after gate number n; gate 0 is the start."""
        turn = len(self.streams)
        script: list[dict[str, Any]] = []
        for gate, size in enumerate(sizes):
            if gate:
                script.append({"wait": f"{self.names[turn]}-{gate}"})
            script += [{"text": f"{turn} {gate} {number}"} for number in range(size)]
        self.streams.append(self.side.server.begin_script(script))
        self.available.append(sizes[0])

    def release(self, turn: int, gate: int) -> None:
        """Open a gate of a turn."""
        self.side.release(f"{self.names[turn]}-{gate}")

    def read(self, turn: int) -> None:
        """Read the rest of a turn."""
        if turn < len(self.streams):
            self.results.append(self.side.server.read(self.streams[turn]))

    def read_one(self, turn: int) -> None:
        """Read one event of a turn, if one was sent before its first gate."""
        if turn < len(self.streams) and self.available[turn]:
            self.available[turn] -= 1
            self.results.append(self.side.server.read_next(self.streams[turn]))

    def close(self, turn: int) -> None:
        """Close the stream of a turn."""
        if turn < len(self.streams):
            self.streams[turn].body.close()

    def list_events(self) -> None:
        """List the session's stored events."""
        self.results.append(self.side.server.events())


def random_actions(chance: random.Random) -> list[tuple[Any, ...]]:
    """Return a random list of actions."""
    actions: list[tuple[Any, ...]] = []
    for _ in range(chance.randrange(2, 9)):
        turn = chance.randrange(3)
        sizes = chance.choices(range(3), k=chance.randrange(1, 4))
        choices = [("release", turn, chance.randrange(1, 3)), ("post", sizes), ("list_events",)]
        actions.append(chance.choice([*choices, *((name, turn) for name in _READS)]))
    return actions


def perform(side: Side, names: list[str], actions: list[tuple[Any, ...]]) -> list[Any]:
    """Perform the actions in a new session, and return the results of all reads."""
    side.server.new_session()
    session = SessionRun(side, names)
    read: set[int] = set()
    for name, *arguments in actions:
        if name == "post" and len(session.streams) == len(names):
            continue
        if name in _READS:
            if arguments[0] in read:  # A closed body cannot be read.
                continue
            if name != "read_one":
                read.add(arguments[0])
        getattr(session, name)(*arguments)
        side.settle()
    session.list_events()
    for stream in session.streams:
        stream.body.close()
    return session.results


def compare(sides: tuple[Side, Side], *actions: tuple[Any, ...]) -> None:
    """Start a turn that waits at a gate, perform the actions on both servers, compare results."""
    names = [f"turn-{next(_names)}" for _ in range(3)]
    real, fake = (perform(side, names, [("post", [1, 1]), *actions]) for side in sides)
    assert fake == real


READ_AND_CLOSE = ("read_one", 0), ("close", 0)


@pytest.mark.parametrize(
    "actions",
    [
        # A closed turn stores no more events and does not affect the next turn.
        [*READ_AND_CLOSE, ("release", 0, 1), ("post", [1]), ("read", 1)],
        # A second turn cancels the first; closing the first cancels the second.
        [("read_one", 0), ("post", [1, 1]), ("release", 1, 1), ("read", 1), ("read", 0)],
        [("post", [1, 1]), ("read_one", 1), *READ_AND_CLOSE, ("release", 1, 1), ("read", 1)],
    ],
    ids=["closed", "second cancels first", "first cancels second"],
)
def test_overlapping_turns(sides: tuple[Side, Side], actions: list[tuple[Any, ...]]) -> None:
    compare(sides, *actions)


@pytest.mark.parametrize("seed", range(10))
def test_random_actions_have_the_same_results(sides: tuple[Side, Side], seed: int) -> None:
    compare(sides, *random_actions(random.Random(seed)))  # noqa: S311 - nothing here is a secret
