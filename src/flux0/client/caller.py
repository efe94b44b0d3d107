"""Converts the options of a call into an `ApiCall`, and makes the call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar

from attrs import evolve

from flux0.client.drivers import AsyncDriver, Driver
from flux0.domain import arguments
from flux0.domain.errors import Flux0Error
from flux0.domain.retrying import RetryConfig
from flux0.domain.stored_models import Participant
from flux0.domain.timeouts import Deadline
from flux0.flows import Flow
from flux0.middleware.observing import Observers
from flux0.ports import AsyncTransport, Time, Transport
from flux0.turns.open_turns import OpenTurns
from flux0.turns.running_calls import RunningCalls
from flux0.usecases import sessions
from flux0.usecases.call import ApiCall
from flux0.usecases.options import CallOptions, UserOptions, check_options

P = ParamSpec("P")
T = TypeVar("T")
_UseCase: TypeAlias = Callable[Concatenate[ApiCall, P], Flow[T]]

# `_CHECKS` maps each option, except `server_url` and `http_headers`, to the option's field of
# `ApiCall` and to the function that checks and converts the option's value.
_CHECKS: Final[Mapping[str, tuple[str, Callable[[str, Any], object]]]] = {
    "retries": ("retries", lambda name, value: arguments.instance(name, RetryConfig, value)),
    "timeout_ms": ("limit", arguments.seconds),
    "extra_query": ("extra_query", arguments.parameters),
    "extra_body": ("extra_body", arguments.members),
    "stream_idle_timeout_ms": ("idle_timeout", arguments.seconds),
    "user": ("cookie", arguments.user),
}
# The options of all other use cases are `CallOptions`.
_OPTIONS: Final[Mapping[object, type[CallOptions]]] = {
    sessions.create_session: UserOptions,
    sessions.list_sessions: UserOptions,
}


class Caller:
    """Makes calls over a sync and an async transport until it is closed.

    Args:
        default_call: The settings of a call without options.
        transport: The transport of sync calls. If it is None, sync calls raise `Flux0Error`.
        async_transport: The transport of async calls.
        time: The clock of timeouts and retries.
        observers: The observers of calls and turns.

    Attributes:
        clock: A function that returns the current time in seconds.
        observers: The observers of calls and turns.
        open_turns: The open streams, at most one per session.
    """

    def __init__(
        self,
        default_call: ApiCall,
        transport: Transport | None,
        async_transport: AsyncTransport,
        time: Time,
        observers: Observers,
    ) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self.observers: Observers = observers
        self._default_call = default_call
        self._is_view = False
        self._calls = RunningCalls()
        self.open_turns: OpenTurns = OpenTurns(self._calls, self.clock)
        self._driver = None if transport is None else Driver(transport, time, self._calls)
        self.async_driver: AsyncDriver = AsyncDriver(async_transport, time, self._calls)

    def run(
        self, usecase: _UseCase[P, T], options: CallOptions, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        call = self.call(options, _OPTIONS.get(usecase, CallOptions))
        return self.sync_driver().run(usecase(call, *args, **kwargs), call.deadline)

    async def run_async(
        self, usecase: _UseCase[P, T], options: CallOptions, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        call = self.call(options, _OPTIONS.get(usecase, CallOptions))
        return await self.async_driver.run(usecase(call, *args, **kwargs), call.deadline)

    def call(self, options: CallOptions, kind: type[CallOptions]) -> ApiCall:
        """Return the settings of one call. For options that are None, use the client's settings.

        Raises `InvalidArgument` if a name is not an option in `kind`, and `ClientClosed` after
        `close`.
        """
        self._calls.check()
        call = self._default_call
        if options:
            check_options(options, kind)
            call = self._settings(**options)
        limit = call.limit
        if limit is None:
            return call
        # `timeout_ms` also sets the read and write timeouts: a call with a `timeout_ms` of 5
        # minutes must not end after 60 s without data.
        timeout = evolve(call.timeout, read=limit, write=limit)
        deadline = Deadline(self.clock() + limit, limit)
        return evolve(call, timeout=timeout, deadline=deadline)

    def with_options(self, agent: Participant | None = None, /, **options: Any) -> Caller:
        """Return a caller with different default options. Closing the new caller has no effect.

        Both callers share transports, open turns and observers. `agent` is the agent of a
        conversation, which observers get; None means the agent of this caller.
        """
        call = evolve(self._settings(**options), agent=agent or self._default_call.agent)
        view = copy(self)
        vars(view).update(_default_call=call, _is_view=True)
        return view

    def _settings(self, **options: Any) -> ApiCall:
        given = {name: value for name, value in options.items() if value is not None}
        call, changes = self._default_call, dict[str, Any]()
        if (url := given.pop("server_url", None)) is not None:
            changes["server_url"], changes["login"] = arguments.server_url(url)
        if (fields := given.pop("http_headers", None)) is not None:
            added, functions = arguments.split_headers("http_headers", fields)
            changes["headers"] = call.headers.merge(added)
            both = {**call.header_functions, **functions}.items()
            functions = {name: each for name, each in both if name == "cookie" or name not in added}
            changes["header_functions"] = functions
        for name, value in given.items():
            field, check = _CHECKS[name]
            changes[field] = check(name, value)
        return evolve(call, **changes) if changes else call

    @property
    def server_url(self) -> str:
        return self._default_call.server_url

    @property
    def is_closed(self) -> bool:
        return self._calls.closed

    def sync_driver(self) -> Driver:
        if self._driver is None:
            advice = "call the methods that end in _async, or pass a sync transport or client, too"
            raise Flux0Error(f"this client has only an async transport: {advice}")
        return self._driver

    def close(self) -> None:
        """Close the sync transport and all streams, and end all calls with `ClientClosed`."""
        if self._is_view:
            return
        self._calls.close()
        # Mark the streams as closed before the transport closes their connections, so that a thread
        # that reads a stream gets ClientClosed, and not the error of a closed connection.
        self.open_turns.mark_closed()
        if self._driver is not None:
            self._driver.transport.close()
        self.open_turns.close()
        self.observers.flush()

    async def close_async(self) -> None:
        self.close()
        if not self._is_view:
            await self.async_driver.transport.close_async()
