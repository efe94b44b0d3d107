"""Flows driven in every kind of code, by a clock that passes only where somebody waits."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import anyio
from attrs import define, field

from flux0 import ports
from flux0.client.drivers import AsyncDriver, Driver
from flux0.flows import Flow
from flux0.ports import Request, Response
from support.in_memory import Script
from support.transports import Mode


@define
class Time(ports.Time):
    """A monotonic clock in seconds, and the waits on it; dates are in January of 2026."""

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


@define
class Slow(Script):
    """A script whose every answer takes some seconds of a clock."""

    time: Time = field(factory=Time, kw_only=True)
    seconds: float = field(default=0.0, kw_only=True)

    def send(self, request: Request) -> Response[Any]:
        self.time.now += self.seconds
        return super().send(request)


def drive_sync(flow: Flow[Any], transport: Script, time: Time) -> Any:
    """Drive a flow to its end over a transport, and return its result."""
    return Driver(transport, time).run(flow)


async def drive(mode: Mode, flow: Flow[Any], transport: Script, time: Time) -> Any:
    """Do as `drive_sync` does, in any kind of code."""
    if mode == "sync":
        return drive_sync(flow, transport, time)
    return await AsyncDriver(transport, time).run(flow)
