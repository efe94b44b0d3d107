"""How a client makes its calls: options into a `Call`, flows through a driver and a transport."""

from __future__ import annotations

from collections.abc import Mapping
from time import sleep
from typing import TypeVar

from attrs import frozen

from flux0 import options
from flux0.domain.errors import ClientClosed, Flux0Error
from flux0.domain.headers import Headers
from flux0.domain.retrying import RetryConfig
from flux0.drivers import run, run_async
from flux0.event_loop import sleep as sleep_async
from flux0.flows import Flow, SendFlow
from flux0.ports import AsyncTransport, Codec, Timeout, Transport
from flux0.usecases.call import Call

T = TypeVar("T")


@frozen
class Defaults:
    """What holds for every call that does not say otherwise."""

    server_url: str
    headers: Headers
    timeout: Timeout
    retries: RetryConfig | None
    max_body_bytes: int


class Caller:
    """Makes calls over a pair of transports until it is closed."""

    def __init__(
        self,
        send: SendFlow,
        codec: Codec,
        defaults: Defaults,
        transport: Transport | None,
        async_transport: AsyncTransport | None,
    ) -> None:
        self.codec = codec
        self._defaults = defaults
        self._send = send
        self._transport = transport
        self._async_transport = async_transport
        self._closed = False

    def call(
        self,
        retries: RetryConfig | None,
        server_url: str | None,
        timeout_ms: int | None,
        http_headers: Mapping[str, str] | None,
    ) -> Call:
        """Return the way of one call with these options, or the client's where they are None."""
        if self._closed:
            raise ClientClosed("this Flux0 client is closed")
        defaults = self._defaults
        headers = defaults.headers
        if http_headers is not None:
            headers = headers.merge(Headers.checked(http_headers, "http_headers"))
        return Call(
            send=self._send,
            codec=self.codec,
            server_url=(
                defaults.server_url if server_url is None else options.server_url(server_url)
            ),
            headers=headers,
            timeout=(
                defaults.timeout
                if timeout_ms is None
                else options.within(defaults.timeout, timeout_ms)
            ),
            max_body_bytes=defaults.max_body_bytes,
            retries=defaults.retries if retries is None else retries,
        )

    def run(self, flow: Flow[T]) -> T:
        """Drive `flow` over the synchronous transport."""
        if self._transport is None:
            raise Flux0Error(
                "this client has an asynchronous transport only: use the _async methods, "
                "or pass transport="
            )
        return run(flow, self._transport, sleep)

    async def run_async(self, flow: Flow[T]) -> T:
        """Drive `flow` over the asynchronous transport."""
        if self._async_transport is None:
            raise Flux0Error(
                "this client has a synchronous transport only: use the methods without _async, "
                "or pass async_transport="
            )
        return await run_async(flow, self._async_transport, sleep_async)

    def close(self) -> None:
        """Refuse further calls and close the synchronous transport."""
        self._closed = True
        if self._transport is not None:
            self._transport.close()

    async def close_async(self) -> None:
        """Refuse further calls and close both transports."""
        self.close()
        if self._async_transport is not None:
            await self._async_transport.close_async()
