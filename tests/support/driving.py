"""Drives flows in each mode, with a clock that advances only when the flow waits."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import anyio
from attrs import define, field

from flux0 import ports
from flux0.client.drivers import AsyncDriver, Driver
from flux0.domain.timeouts import Deadline
from flux0.flows import Flow
from flux0.ports import Request, Response
from support.in_memory import Script, Step
from support.transports import Mode


@define
class Time(ports.Time):
    """A monotonic clock in seconds that records its waits. The date is 2026-01-01."""

    now: float = 1000.0
    random: float = 1.0
    waits: list[float] = field(factory=list[float])

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        await anyio.lowlevel.checkpoint()
        self.sleep(seconds)

    def utc_now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=timezone.utc)

    def jitter(self) -> float:
        return self.random


def after(time: Time, seconds: float, piece: bytes | None) -> Step:
    """Return a step of a body that yields `piece` after `seconds` on the clock."""

    def wait_and_continue() -> bytes | None:
        time.now += seconds
        return piece

    return wait_and_continue


class LoopTime(Time):
    """The running event loop's time."""

    def monotonic(self) -> float:
        return anyio.current_time()


@define
class Slow(Script):
    """A `Script` whose responses take `seconds` on the clock `time`."""

    time: Time = field(factory=Time, kw_only=True)
    seconds: float = field(default=0.0, kw_only=True)

    def send(self, request: Request) -> Response[Any]:
        self.time.now += self.seconds
        return super().send(request)


def drive_sync(
    flow: Flow[Any], transport: Script, time: ports.Time, deadline: Deadline | None = None
) -> Any:
    """Drive a flow with the sync driver, and return its result."""
    return Driver(transport, time).run(flow, deadline)


async def drive(
    mode: Mode,
    flow: Flow[Any],
    transport: Script,
    time: ports.Time,
    deadline: Deadline | None = None,
) -> Any:
    """Drive a flow in any mode, and return its result."""
    if mode == "sync":
        return drive_sync(flow, transport, time, deadline)
    return await AsyncDriver(transport, time).run(flow, deadline)
