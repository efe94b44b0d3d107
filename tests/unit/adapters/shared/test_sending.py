"""Waiting for sockets."""

from __future__ import annotations

import select
import socket

import pytest

from flux0.adapters.shared.sending import wait


@pytest.mark.parametrize("has_poll", [True, False])
def test_closed_socket_ends_a_wait(monkeypatch: pytest.MonkeyPatch, *, has_poll: bool) -> None:
    """A signal handler or another thread may close the socket before the wait begins."""
    if not has_poll:
        monkeypatch.delattr(select, "poll")
    with socket.socket() as sock:
        pass
    assert wait(sock, None, read=True, write=True) == (True, True)
