"""The contracts: tests that each transport and each store of background turns must pass.

In a test module, subclass `TransportContract` or `AsyncTransportContract`, with a name that starts
with `Test`. Define how to create the transport, and how to create a transport that trusts a
certificate authority::

    class TestMyTransport(TransportContract):
        def make_transport(self) -> MyTransport:
            return MyTransport()

        def make_trusting_transport(self, ca_file: str) -> MyTransport:
            return MyTransport(ca_file)

If your library can limit the connections of a pool, subclass `LimitedPoolContract` as well. The
tests need Linux, pytest and trustme, and trio for async transports. `TurnStoreContract` has the
tests for stores.
"""

# ruff: noqa: E402 - pytest must register the contract's modules before their import

from __future__ import annotations

from pkgutil import iter_modules
from typing import ClassVar

import pytest

_parts = iter_modules(__path__, f"{__name__}.")
pytest.register_assert_rewrite(*(part.name for part in _parts))

from flux0.testing.contract.base import THREADS
from flux0.testing.contract.bodies import BodyContract
from flux0.testing.contract.connecting import (
    ConnectContract,
    LimitedPoolContract as LimitedPoolContract,
    TLSContract,
)
from flux0.testing.contract.connections import (
    CancellationContract,
    ReleaseContract,
    SendOnceContract,
)
from flux0.testing.contract.heads import HeadContract
from flux0.testing.contract.turn_stores import (
    LocalTurnStoreContract as LocalTurnStoreContract,
    TurnStoreContract as TurnStoreContract,
)
from flux0.testing.contract.waiting import IdleContract, InterruptContract, TimeoutContract


class _Parts(
    # pytest runs the tests of the first base class last. `IdleContract` is the first base class,
    # because its long waits run in the background during the tests of all other base classes.
    IdleContract,
    HeadContract,
    BodyContract,
    ConnectContract,
    TimeoutContract,
    SendOnceContract,
    ReleaseContract,
    TLSContract,
):
    pass


class TransportContract(_Parts, InterruptContract):
    """The contract tests that a `Transport` must pass.

    Define the methods `make_transport` and `make_trusting_transport` in a subclass.
    """

    backends: ClassVar[tuple[str, ...]] = (THREADS,)


class AsyncTransportContract(_Parts, CancellationContract):
    """The contract tests that an `AsyncTransport` must pass, under asyncio and trio.

    Define the methods `make_transport` and `make_trusting_transport` in a subclass.
    """

    backends: ClassVar[tuple[str, ...]] = ("asyncio", "trio")
