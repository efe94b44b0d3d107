"""`flux0_client`, the import name of the generated client, re-exports the names of `flux0`."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib import import_module

import httpx
import pytest

import flux0

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import flux0_client
from flux0_client import httpclient, models, utils


def test_import_emits_a_deprecation_warning_at_the_importing_line() -> None:
    code = "import sys\nfrom flux0_client import Flux0Client"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "<string>:2: DeprecationWarning: flux0_client is the old name" in done.stderr


def test_names_are_the_objects_of_flux0() -> None:
    assert flux0_client.Flux0 is flux0_client.Flux0Client is flux0.Flux0
    assert flux0_client.__version__ == flux0_client.VERSION == flux0.__version__
    assert (utils.RetryConfig, utils.BackoffStrategy) == (flux0.RetryConfig, flux0.BackoffStrategy)
    assert httpclient.HttpClient is flux0.HttpClient
    assert httpclient.AsyncHttpClient is flux0.AsyncHttpClient
    assert models.ChunkEventStream is flux0.ChunkEvent
    assert models.EmittedEventStream is flux0.StatusEvent


def test_client_protocols_support_isinstance() -> None:
    assert isinstance(httpx.Client(), httpclient.HttpClient)
    assert isinstance(httpx.AsyncClient(), httpclient.AsyncHttpClient)
    assert not isinstance(object(), (httpclient.HttpClient, httpclient.AsyncHttpClient))


def test_has_every_model_of_flux0() -> None:
    for name in (name for name in dir(flux0.models) if name[0] != "_"):
        model = getattr(flux0.models, name)
        assert getattr(flux0_client, name) is getattr(models, name) is model


@pytest.mark.parametrize(
    "name",
    [
        "AgentDTO",
        "APIError",
        "ChunkEventStream",
        "EventSourceDTO",
        "SessionStream",
        "ValidationError",
    ],
)
def test_each_model_has_its_old_submodule(name: str) -> None:
    found = import_module(f"flux0_client.models.{name.lower()}")
    assert getattr(models, name.lower()) is found
    assert getattr(found, name) is getattr(models, name)
