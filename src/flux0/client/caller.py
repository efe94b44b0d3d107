"""How a client makes its calls: options into an `ApiCall`, flows through a driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Concatenate, ParamSpec, TypeVar

from attrs import evolve

from flux0.client.drivers import AsyncDriver, Driver
from flux0.client.options import CallOptions
from flux0.domain import arguments
from flux0.domain.errors import ClientClosed, Flux0Error
from flux0.domain.retrying import RetryConfig
from flux0.domain.timeouts import Deadline
from flux0.flows import Flow
from flux0.ports import AsyncTransport, Time, Transport
from flux0.usecases.call import ApiCall

P = ParamSpec("P")
T = TypeVar("T")


class Caller:
    """Makes calls over a pair of transports until it is closed.

    Args:
        default_call: the call of somebody who passes no options, as nearly everybody does.
        call_timeout: the seconds that a call may take with all its retries, or None.
        transport: for synchronous calls; without it there are none.
        async_transport: for asynchronous calls.
        time: the time that calls go by.
    """

    def __init__(
        self,
        default_call: ApiCall,
        call_timeout: float | None,
        transport: Transport | None,
        async_transport: AsyncTransport,
        time: Time,
    ) -> None:
        self.time = time
        self._default_call = default_call
        self._call_timeout = call_timeout
        self._driver = None if transport is None else Driver(transport, time)
        self._async_driver = AsyncDriver(async_transport, time)
        self._closed = False

    def run(
        self,
        usecase: Callable[Concatenate[ApiCall, P], Flow[T]],
        options: CallOptions,
        *args: P.args,
        **given: P.kwargs,
    ) -> T:
        """Make one call with these options, over the synchronous transport."""
        return self.drive(usecase(self.call(**options), *args, **given))

    async def run_async(
        self,
        usecase: Callable[Concatenate[ApiCall, P], Flow[T]],
        options: CallOptions,
        *args: P.args,
        **given: P.kwargs,
    ) -> T:
        """Make one call with these options, over the asynchronous transport."""
        return await self.drive_async(usecase(self.call(**options), *args, **given))

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
        call = self._default_call
        if retries is not None:
            call = evolve(call, retries=arguments.instance("retries", RetryConfig, retries))
        if server_url is not None:
            url, login = arguments.server_url(server_url)
            call = evolve(call, server_url=url, login=None if call.login is None else login)
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
            deadline = Deadline(self.time.monotonic() + whole, whole)
            call = evolve(call, timeout=timeout, deadline=deadline)
        return call

    def drive(self, flow: Flow[T]) -> T:
        """Drive `flow` over the synchronous transport."""
        if self._driver is None:
            raise Flux0Error(
                "this client has an asynchronous transport only: call the methods that end in "
                "_async, or pass a transport for synchronous code too"
            )
        return self._driver.run(flow)

    async def drive_async(self, flow: Flow[T]) -> T:
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
