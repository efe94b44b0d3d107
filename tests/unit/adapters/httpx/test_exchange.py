"""The errors of failed exchanges are freed at once, without the garbage collector."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from weakref import ref

import anyio
import pytest

from flux0 import Flux0, RetryConfig, TransportError
from flux0.domain.errors import chain
from flux0.testing.contract.byte_server import ByteServer
from flux0.testing.contract.responses import (
    Disconnect,
    Reset,
    ServerSteps,
    WaitForRelease,
    Write,
    http_response,
    size,
    truncated,
)
from support.garbage_collection import no_garbage_collection
from support.modes import in_mode, run
from support.over_httpx import FAMILY, OverHttpx

BODY = http_response(b"body")
FAULTS: dict[str, ServerSteps] = {
    "timeout": (WaitForRelease(),),
    "reset": (Reset(),),
    "not HTTP": (Write(b"garbage\r\n\r\n"),),
    "truncated": (*truncated(BODY, size(BODY) - 1), Disconnect()),
    "truncated chunks": (
        *http_response(framing="chunked")[:1],
        Write(b"5\r\nab"),
        Disconnect(),
    ),
}
LONG_MS = 20_000


@contextmanager
def failing_url(fault: str) -> Generator[str, None, None]:
    if fault == "refused":
        yield "http://127.0.0.1:1"
    else:
        with ByteServer(FAULTS[fault]) as server:
            yield server.url


@pytest.mark.parametrize("own_client", [False, True], ids=["built-in", "own"])
@pytest.mark.parametrize("fault", ["refused", *FAULTS])
@pytest.mark.parametrize("way", FAMILY, ids=str)
def test_error_and_its_causes_are_in_no_reference_cycle(
    way: OverHttpx, fault: str, own_client: bool
) -> None:
    async def fail(url: str, timeout_ms: int) -> None:
        async with way.closing(way.client() if own_client else None) as transport:
            client = in_mode(way.mode, Flux0(url, transport=transport))
            causes: list[ref[BaseException]] = []
            with no_garbage_collection():
                try:
                    await client.agents.list_async(
                        retries=RetryConfig("none"), timeout_ms=timeout_ms
                    )
                except TransportError as error:
                    ours = (each for each in chain(error) if type(each).__module__ != "builtins")
                    causes += (ref(each) for each in ours if hasattr(each, "__weakref__"))
                if way.mode != "sync":
                    await anyio.sleep(0)
                assert [cause() for cause in causes if cause() is not None] == []
            # On a busy machine, a short timeout can expire before the request is sent. This error
            # has no cause.
            if len(causes) == 1 and fault == "timeout" and timeout_ms < LONG_MS:
                await fail(url, 10 * timeout_ms)
            else:
                assert len(causes) > 1

    with failing_url(fault) as url:
        run(way.mode, partial(fail, url, 200 if fault == "timeout" else LONG_MS))
