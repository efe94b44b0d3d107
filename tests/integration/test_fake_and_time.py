"""The fake and the real server, step by step: turns unread, half read, left, and overlapping.

Agents wait at gates that the test opens, so that both go the same way however fast they are.
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
from support.fake_scripts import scripted_fake
from support.fake_witness import EVENTS, Witness, get
from support.server import Flux0Server

_PATIENCE_SECONDS = 0.3
_SETTLED_SECONDS = 0.1
_READINGS = "read", "read_one", "leave"

pytestmark = pytest.mark.slow

_names = count()


@frozen
class Stage:
    """One of the two servers, and how its agents are let go on."""

    witness: Witness
    release: Callable[[str], None]
    is_real: bool

    def settle(self) -> None:
        """Return when the agents have done what they can do."""
        if self.is_real:
            before = None
            # Not as an answer that is compared, which names the ids in it.
            while (now := b"".join(self.witness.send(get(EVENTS)).body)) != before:
                before = now
                # What the server does on its own cannot be waited for otherwise.
                time.sleep(_SETTLED_SECONDS)


@pytest.fixture(scope="module")
def stages(
    server_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Stage, Stage]]:
    """The real server and the fake."""
    with Flux0Server(server_python, tmp_path_factory.mktemp("time")) as server:
        transport = HttpxTransport()
        gates: defaultdict[str, Gate] = defaultdict(lambda: Gate(timeout=_PATIENCE_SECONDS))
        fake = scripted_fake(server.agent_id, gates)
        yield (
            Stage(Witness(transport, server.url, server.agent_id), server.release, is_real=True),
            Stage(
                Witness(fake, "http://fake", fake.agent_id),
                lambda name: gates[name].open(),
                is_real=False,
            ),
        )
        transport.close()
        fake.assert_no_open_streams()


@define
class Play:
    """What happens in one session, and what comes of it."""

    stage: Stage
    names: list[str]
    streams: list[Response[ByteStream]] = field(factory=list[Response[ByteStream]])
    said: list[int] = field(factory=list[int])
    came: list[Any] = field(factory=list[Any])

    def post(self, sizes: list[int]) -> None:
        """Begin a turn that says so many texts before each gate, and after the last one."""
        turn = len(self.streams)
        script: list[dict[str, Any]] = []
        for gate, size in enumerate(sizes):
            if gate:
                script.append({"wait": f"{self.names[turn]}-{gate}"})
            script += [{"text": f"{turn} {gate} {number}"} for number in range(size)]
        self.streams.append(self.stage.witness.begin_script(script))
        self.said.append(sizes[0])

    def release(self, turn: int, gate: int) -> None:
        """Open a gate of a turn."""
        self.stage.release(f"{self.names[turn]}-{gate}")

    def read(self, turn: int) -> None:
        """Read the rest of a turn."""
        if turn < len(self.streams):
            self.came.append(self.stage.witness.read(self.streams[turn]))

    def read_one(self, turn: int) -> None:
        """Read the first event of a turn, which is sure to come."""
        if turn < len(self.streams) and self.said[turn]:
            self.said[turn] -= 1
            self.came.append(self.stage.witness.read_next(self.streams[turn]))

    def leave(self, turn: int) -> None:
        """Leave a turn."""
        if turn < len(self.streams):
            self.streams[turn].body.close()

    def look(self) -> None:
        """List what the session has stored."""
        self.came.append(self.stage.witness.events())


def some_acts(chance: random.Random) -> list[tuple[Any, ...]]:
    """Return what else may happen."""
    acts: list[tuple[Any, ...]] = []
    for _ in range(chance.randrange(2, 9)):
        turn = chance.randrange(3)
        sizes = chance.choices(range(3), k=chance.randrange(1, 4))
        doings = [("release", turn, chance.randrange(1, 3)), ("post", sizes), ("look",)]
        acts.append(chance.choice([*doings, *((name, turn) for name in _READINGS)]))
    return acts


def play(stage: Stage, names: list[str], acts: list[tuple[Any, ...]]) -> list[Any]:
    """Do one thing after the other in a new session, and return what comes of it."""
    stage.witness.new_session()
    going = Play(stage, names)
    read: set[int] = set()
    for name, *arguments in acts:
        if name == "post" and len(going.streams) == len(names):
            continue
        if name in _READINGS:
            if arguments[0] in read:  # A body that was closed can be read no more.
                continue
            if name != "read_one":
                read.add(arguments[0])
        getattr(going, name)(*arguments)
        stage.settle()
    going.look()
    for stream in going.streams:
        stream.body.close()
    return going.came


def compare(stages: tuple[Stage, Stage], *acts: tuple[Any, ...]) -> None:
    """Do the same on both, from a turn on that waits at a gate, and compare what comes of it."""
    names = [f"turn-{next(_names)}" for _ in range(3)]
    real, fake = (play(stage, names, [("post", [1, 1]), *acts]) for stage in stages)
    assert fake == real


LEFT = ("read_one", 0), ("leave", 0)


@pytest.mark.parametrize(
    "acts",
    [
        # One that is left stores no more, and leaves the next alone.
        [*LEFT, ("release", 0, 1), ("post", [1]), ("read", 1)],
        # A second one silences the first, and leaving the first ends the second.
        [("read_one", 0), ("post", [1, 1]), ("release", 1, 1), ("read", 1), ("read", 0)],
        [("post", [1, 1]), ("read_one", 1), *LEFT, ("release", 1, 1), ("read", 1)],
    ],
    ids=["left", "silenced", "ended"],
)
def test_turns_that_come_in_each_others_way(
    stages: tuple[Stage, Stage], acts: list[tuple[Any, ...]]
) -> None:
    compare(stages, *acts)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_to_turns_comes_to_the_same(
    stages: tuple[Stage, Stage], seed: int
) -> None:
    compare(stages, *some_acts(random.Random(seed)))  # noqa: S311 - nothing here is a secret
