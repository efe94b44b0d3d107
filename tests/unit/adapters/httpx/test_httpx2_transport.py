"""Errors and clients of httpx2. Its contract is in tests/slow."""

from __future__ import annotations

from contextlib import closing

import httpx2
import pytest

from flux0 import Flux0, Httpx2Transport
from flux0.domain.api_errors import APIError
from flux0.domain.errors import ConnectError
from flux0.testing.contract.harness import get


def test_cause_of_an_error_is_an_error_of_httpx2() -> None:
    with pytest.raises(ConnectError) as caught:
        Httpx2Transport().send(get("http://127.0.0.1:1"))
    assert isinstance(caught.value.__cause__, httpx2.ConnectError)


def test_flux0_accepts_a_client_of_httpx2() -> None:
    def refuse(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(403, json={"detail": "no"})

    with (
        closing(httpx2.Client(transport=httpx2.MockTransport(refuse))) as client,
        Flux0("http://flux0.invalid", client=client) as flux0,
        pytest.raises(APIError) as caught,
    ):
        flux0.agents.list()
    assert isinstance(caught.value.raw_response, httpx2.Response)
