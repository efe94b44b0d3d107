"""The contract's part on what shows only after seconds. They pass while the other tests run."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import socket
from contextlib import ExitStack
from time import monotonic

import pytest
from attrs import evolve, field, frozen

from flux0.ports import Timeout
from flux0.testing.contract.answers import Answer, Hold, Pause, Step, answer
from flux0.testing.contract.base import PATIENT, Contract, class_of, get, post
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.probe import Pending, Probe

_SECONDS = 5.5  # Longer than any library's short default, and than a connection may be idle.
_ENDLESS = Timeout(connect=None, read=None, write=None, pool=None, idle=None)
_OK = answer(b"ok")


@frozen
class Lasting:
    """What began with the first test of a class, in one of its backends."""

    probe: Probe
    pooled: ByteServer
    waits: dict[str, Pending[bytes]]
    started: float = field(factory=monotonic)

    def seconds_left(self) -> float:
        """Return how long it is until `_SECONDS` are over."""
        return max(0.0, self.started + _SECONDS - monotonic())


_LASTING = pytest.StashKey[dict[str, Lasting]]()


class LastingContract(Contract):
    """Time alone changes nothing that it should not."""

    @pytest.fixture(autouse=True)
    def lasting(self, request: pytest.FixtureRequest) -> dict[str, Lasting]:
        """What began with the first test of the class, by backend."""
        shared = class_of(request)
        if _LASTING not in shared.stash:
            ending = ExitStack()
            shared.addfinalizer(ending.close)
            shared.stash[_LASTING] = {each: self._begin(each, ending) for each in self.backends}
        return shared.stash[_LASTING]

    def _begin(self, backend: str, ending: ExitStack) -> Lasting:
        def serve(*steps: Step, unasked: Answer = ()) -> ByteServer:
            return ending.enter_context(ByteServer(steps, unasked=unasked))

        probe = self.make_probe(self.make_transport(), backend, self.patience)
        ending.callback(probe.stop)
        ending.callback(probe.close)
        deaf = ending.enter_context(socket.create_server(("127.0.0.1", 0)))
        speechless = serve(unasked=(Hold(),))
        body = serve(*answer(Hold(), framing="chunked")).url
        dripping = serve(*answer(*(b"drop", Pause(1.0)) * 6, framing="chunked")).url
        pooled = serve(*_OK)
        requests = {
            "connect": get(f"https://127.0.0.1:{speechless.port}", timeout=_ENDLESS),
            "write": post(
                f"http://127.0.0.1:{deaf.getsockname()[1]}", bytes(16_000_000), timeout=_ENDLESS
            ),
            "head": get(serve(Hold()).url, timeout=_ENDLESS),
            "body": get(body, timeout=_ENDLESS),
            "stream": get(body, stream=True, timeout=_ENDLESS),
            "drops": get(dripping, stream=True, timeout=evolve(PATIENT, idle=3.0)),
            "pooled": get(pooled.url),
        }
        waits = {name: probe.start_fetch(request) for name, request in requests.items()}
        return Lasting(probe, pooled, waits)

    @pytest.mark.parametrize("wait", ["connect", "write", "head", "body", "stream"])
    def test_a_timeout_may_be_off(
        self, lasting: dict[str, Lasting], backend: str, wait: str
    ) -> None:
        """None waits without end."""
        here = lasting[backend]
        pending = here.waits[wait]
        assert pending.lasts(here.seconds_left()), repr(pending.future.exception())

    def test_the_idle_timeout_begins_anew(self, lasting: dict[str, Lasting], backend: str) -> None:
        """Each piece of a stream starts it again, so the whole stream may last for longer."""
        assert lasting[backend].waits["drops"].outcome() == b"drop" * 6

    def test_an_idle_connection_grows_old(self, lasting: dict[str, Lasting], backend: str) -> None:
        """It is not used again after four seconds: a server or a NAT may have forgotten it."""
        here = lasting[backend]
        assert here.waits["pooled"].outcome() == b"ok"
        here.waits["head"].lasts(here.seconds_left())
        assert here.probe.fetch(get(here.pooled.url)) == b"ok"
        assert here.pooled.connections == 2  # noqa: PLR2004
