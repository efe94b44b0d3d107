"""How a client makes its calls: options into an `ApiCall`, flows through a driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from attrs import evolve, frozen

from flux0.client.drivers import AsyncDriver, Driver
from flux0.domain import arguments
from flux0.domain.errors import ClientClosed, Flux0Error
from flux0.domain.headers import Headers
from flux0.domain.retrying import RetryConfig
from flux0.flows import Flow, SendFlow
from flux0.ports import Codec, Time, Timeout
from flux0.usecases.call import ApiCall

T = TypeVar("T")


@frozen(eq=False)
class Defaults:
    """What holds for every call that does not say otherwise; `call_timeout` is in seconds."""

    server_url: str
    headers: Headers
    timeout: Timeout
    call_timeout: float | None
    retries: RetryConfig
    max_body_bytes: int


class Caller:
    """Makes calls over a pair of transports until it is closed.

    Attributes:
        time: the time that calls go by.
    """

    def __init__(
        self,
        send: SendFlow,
        codec: Codec,
        defaults: Defaults,
        driver: Driver | None,
        async_driver: AsyncDriver,
        time: Time,
    ) -> None:
        self.time = time
        self._driver = driver
        self._async_driver = async_driver
        self._closed = False
        self._call_timeout = defaults.call_timeout
        # The call of somebody who passes no options: nearly every one.
        self._usual = ApiCall(
            send=send,
            codec=codec,
            server_url=defaults.server_url,
            headers=defaults.headers,
            timeout=defaults.timeout,
            max_body_bytes=defaults.max_body_bytes,
            retries=defaults.retries,
        )

    def call(
        self,
        *,
        retries: RetryConfig | None = None,
        server_url: str | None = None,
        timeout_ms: int | None = None,
        http_headers: Mapping[str, str] | None = None,
        stream_idle_timeout_ms: int | None = None,
    ) -> ApiCall:
        """Return the way of one call with these options, or the client's where they are None."""
        if self._closed:
            raise ClientClosed("this Flux0 client is closed")
        call = self._usual
        if retries is not None:
            call = evolve(call, retries=arguments.instance("retries", RetryConfig, retries))
        if server_url is not None:
            call = evolve(call, server_url=arguments.server_url(server_url))
        if http_headers is not None:
            headers = call.headers.merge(arguments.headers("http_headers", http_headers))
            call = evolve(call, headers=headers)
        if stream_idle_timeout_ms is not None:
            idle = arguments.seconds("stream_idle_timeout_ms", stream_idle_timeout_ms)
            call = evolve(call, timeout=evolve(call.timeout, idle=idle))
        whole = self._call_timeout
        if timeout_ms is not None:
            whole = arguments.seconds("timeout_ms", timeout_ms)
        if whole is not None:  # It replaces the default silences, the longer ones as well.
            timeout = evolve(call.timeout, read=whole, write=whole)
            call = evolve(call, timeout=timeout, deadline=self.time.monotonic() + whole)
        return call

    def run(self, flow: Flow[T]) -> T:
        """Drive `flow` over the synchronous transport."""
        if self._driver is None:
            raise Flux0Error(
                "this client has an asynchronous transport only: use the _async methods, "
                "or pass transport="
            )
        return self._driver.run(flow)

    async def run_async(self, flow: Flow[T]) -> T:
        """Drive `flow` over the asynchronous transport."""
        return await self._async_driver.run(flow)

    def close(self) -> None:
        """Refuse further calls and close the synchronous transport."""
        self._closed = True
        if self._driver is not None:
            self._driver.transport.close()

    async def close_async(self) -> None:
        """Refuse further calls and close both transports."""
        self.close()
        await self._async_driver.transport.close_async()
