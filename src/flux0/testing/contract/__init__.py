"""The transport contract: what every transport must do, as tests to run against one's own.

Subclass `TransportContract` or `AsyncTransportContract` in a test module under a name that begins
with `Test`, and say how to make the transport, and how to make one that trusts an authority::

    class TestMyTransport(TransportContract):
        def make_transport(self) -> MyTransport:
            return MyTransport()

        def make_trusting_transport(self, ca_file: str) -> MyTransport:
            return MyTransport(ca_file)

If your library can limit the connections of a pool, subclass `LimitedPoolContract` as well, and
have `make_limited_transport` allow one connection. `backends` says where asynchronous transports
run.

The tests talk to servers of their own on 127.0.0.1, which write exactly the bytes that a test says.
They need pytest, trustme, and trio for asynchronous transports. The queue of a port that is full,
which `ConnectTimeout` is tested with, is Linux's.
"""

from __future__ import annotations

import pytest

_PARTS = ("base", "bodies", "connecting", "connections", "heads", "probe", "waiting")
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS))

from flux0.testing.contract.suites import (  # noqa: E402 - its asserts are rewritten
    AsyncTransportContract,
    LimitedPoolContract,
    TransportContract,
)

__all__ = ["AsyncTransportContract", "LimitedPoolContract", "TransportContract"]
