"""A turn over httpx, read with the libraries that a user could choose instead of flux0.

Only the environment `bench` of tox has these libraries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import httpx
from pydantic import BaseModel, create_model

from benchmarks.exchanges import BODY, HEADERS, read_turn, read_turn_async
from benchmarks.measuring import Case, Effort
from benchmarks.server import serving, session_id
from flux0 import Flux0

_COUNT = 1000

Decode = Callable[[str], object]


def alternatives(effort: Effort) -> Iterator[Case]:
    """A turn over httpx whose events arrive at once, read with libraries instead of flux0."""
    session = session_id(_COUNT)
    with serving() as base:
        url = f"{base}/api/sessions/{session}/events/stream"
        ours = effort.cpu(_COUNT, read_turn, Flux0(base), session)
        peers = {name: effort.cpu(_COUNT, read, url) for name, read in _sync().items()}
        yield Case("alternatives", "httpx", ours, peers, target=1.1)

        loop = asyncio.new_event_loop()

        def run(read: Callable[..., Any], *arguments: object) -> object:
            return loop.run_until_complete(read(*arguments))

        ours = effort.cpu(_COUNT, run, read_turn_async, Flux0(base), session)
        peers = {name: effort.cpu(_COUNT, run, read, url) for name, read in _async().items()}
        yield Case("alternatives", "httpx async", ours, peers, target=1.1)


def _chunk_class(create: Callable[..., Any]) -> Any:
    """Return the class of a chunk event. `create` makes a class from a name and fields."""
    patch: Any = create("Patch", op=str, path=str, value=Any)
    return create(
        "Chunk",
        correlation_id=str,
        event_id=str,
        seq=int,
        patches=list.__class_getitem__(patch),
        metadata=dict[str, Any],
        timestamp=float,
    )


def _pydantic_class(base: type[BaseModel]) -> Any:
    def create(name: str, **fields: Any) -> Any:
        required: dict[str, Any] = {field: (kind, ...) for field, kind in fields.items()}
        return create_model(name, __base__=base, **required)

    return _chunk_class(create)


def _decoders() -> dict[str, Decode]:
    """Return functions that decode and check the JSON of a chunk event."""
    msgspec = import_module("msgspec")

    def create(name: str, **fields: Any) -> Any:
        return msgspec.defstruct(name, list(fields.items()))

    return {
        "pydantic": _pydantic_class(BaseModel).model_validate_json,
        "msgspec": msgspec.json.Decoder(_chunk_class(create)).decode,
    }


def _sync() -> dict[str, Callable[[str], object]]:
    """Return functions that read a turn, and decode each event."""
    client, httpx_sse, openai = httpx.Client(), import_module("httpx_sse"), import_module("openai")
    client2: Any = import_module("httpx2").Client()
    sdk = openai.OpenAI(api_key="key", base_url="http://127.0.0.1")
    chunk = _pydantic_class(openai.BaseModel)

    def with_httpx_sse(decode: Decode) -> Callable[[str], object]:
        def read(url: str) -> None:
            opened = httpx_sse.connect_sse(client, "POST", url, content=BODY, headers=HEADERS)
            with opened as source:
                for event in source.iter_sse():
                    decode(event.data)

        return read

    def with_httpx2(decode: Decode) -> Callable[[str], object]:
        def read(url: str) -> None:
            with client2.sse(url, method="POST", content=BODY, headers=HEADERS) as source:
                for event in source:
                    decode(event.data)

        return read

    def with_openai(url: str) -> None:
        stream_class = openai.Stream[chunk]
        for _ in sdk.post(url, body={}, cast_to=chunk, stream=True, stream_cls=stream_class):
            pass

    return {
        **{f"httpx-sse + {name}": with_httpx_sse(decode) for name, decode in _decoders().items()},
        **{f"httpx2 + {name}": with_httpx2(decode) for name, decode in _decoders().items()},
        "openai": with_openai,
    }


def _async() -> dict[str, Callable[[str], Any]]:
    """The async version of `_sync`."""
    httpx_sse, openai = import_module("httpx_sse"), import_module("openai")
    client, sdk = (
        httpx.AsyncClient(),
        openai.AsyncOpenAI(api_key="key", base_url="http://127.0.0.1"),
    )
    client2: Any = import_module("httpx2").AsyncClient()
    chunk = _pydantic_class(openai.BaseModel)

    def with_httpx_sse(decode: Decode) -> Callable[[str], Any]:
        async def read(url: str) -> None:
            opened = httpx_sse.aconnect_sse(client, "POST", url, content=BODY, headers=HEADERS)
            async with opened as source:
                async for event in source.aiter_sse():
                    decode(event.data)

        return read

    def with_httpx2(decode: Decode) -> Callable[[str], Any]:
        async def read(url: str) -> None:
            opened = client2.sse(url, method="POST", content=BODY, headers=HEADERS)
            async with opened as source:
                async for event in source:
                    decode(event.data)

        return read

    async def with_openai(url: str) -> None:
        kind = openai.AsyncStream[chunk]
        async for _ in await sdk.post(url, body={}, cast_to=chunk, stream=True, stream_cls=kind):
            pass

    return {
        **{f"httpx-sse + {name}": with_httpx_sse(decode) for name, decode in _decoders().items()},
        **{f"httpx2 + {name}": with_httpx2(decode) for name, decode in _decoders().items()},
        "openai": with_openai,
    }
