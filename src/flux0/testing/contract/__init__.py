"""The transport contract: what every transport must do, as tests to run against one's own.

Subclass `TransportContract` or `AsyncTransportContract` in a test module under a name that begins
with `Test`, and say how to make the transport::

    class TestMyTransport(TransportContract):
        def make_transport(self) -> MyTransport:
            return MyTransport()

It needs pytest, trio (for asynchronous transports) and trustme (for TLS).
"""

from __future__ import annotations

import pytest

_PARTS = ("probe", "exchange", "framing", "faults", "release", "tls")
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS))

from flux0.testing.contract.suites import (  # noqa: E402 - its asserts are rewritten
    AsyncTransportContract,
    LimitedPoolContract,
    TransportContract,
)

__all__ = ["AsyncTransportContract", "LimitedPoolContract", "TransportContract"]
