"""A body that another thread closes at the moment when the reader receives something."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread

import pytest

from flux0.adapters.shared.bodies import SyncPulledBody
from flux0.domain.errors import ConnectionInterrupted


class _Body(SyncPulledBody):
    """A body that receives the result of `receive`, and counts what happens to its connection."""

    def __init__(self, receive: Callable[[_Body], bytes | None]) -> None:
        super().__init__("identity")
        self.released = Event()
        self.releases = 0
        self.shutdowns = 0
        self._result = receive

    def close_in_thread(self) -> Thread:
        closing = Thread(target=self.close)
        closing.start()
        return closing

    def _receive(self, _timeout: float | None) -> bytes | None:
        return self._result(self)

    def _on_finished(self) -> None:
        self.released.set()

    def _shut_down(self) -> None:
        self.shutdowns += 1

    def _release(self) -> None:
        self.releases += 1
        self.released.set()

    def _translate_error(self, error: BaseException, _: float | None) -> ConnectionInterrupted:
        return ConnectionInterrupted(str(error))


def test_body_closed_when_a_piece_arrives_releases_its_connection() -> None:
    def receive(body: _Body) -> bytes:
        body.close_in_thread().join()
        return b"piece"

    body = _Body(receive)
    assert body.read(None) == b"piece"
    assert body.released.wait(10)
    with pytest.raises(ConnectionInterrupted, match="closed before its end"):
        body.read(None)


def test_body_closed_when_its_end_arrives_keeps_its_connection() -> None:
    """The connection may serve the next request immediately."""
    threads: list[Thread] = []

    class Ending(_Body):
        def __setattr__(self, name: str, value: object) -> None:
            if (name, value) == ("finished", True):
                threads.append(self.close_in_thread())
                threads[0].join(0.05)  # The thread must wait until the body is finished.
            super().__setattr__(name, value)

    body = Ending(lambda _: None)
    assert body.read(None) is None
    threads[0].join()
    assert (body.shutdowns, body.releases) == (0, 0)
    assert body.released.is_set()


def test_failed_body_releases_its_connection_once() -> None:
    def receive(_: _Body) -> bytes:
        raise OSError("reset")

    body = _Body(receive)
    with pytest.raises(ConnectionInterrupted, match="reset"):
        body.read(None)
    body.close()
    assert (body.shutdowns, body.releases) == (1, 1)
