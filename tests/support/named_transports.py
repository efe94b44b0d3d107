"""Transports without a server, which record their name for each request and count closes."""

from __future__ import annotations

from typing import Any

from flux0.ports import Request, Response
from support.in_memory import scripted_response

NO_AGENTS = b'{"data": []}'


class Sync:
    """A sync transport that records its name in `served` for each request."""

    closes: int = 0

    def __init__(self, name: str, served: list[str]) -> None:
        self._name = name
        self._served = served

    def send(self, request: Request) -> Response[Any]:
        self._served.append(self._name)
        return scripted_response(NO_AGENTS)

    def close(self) -> None:
        self.closes += 1


class Both(Sync):
    """A transport with sync and async methods."""

    async def send_async(self, request: Request) -> Response[Any]:
        return self.send(request)

    async def close_async(self) -> None:
        self.close()


class Async:
    """An async transport. Its methods are attributes of the instance, not methods of the class.

    Attributes:
        both: The transport that does the work.
    """

    def __init__(self, name: str, served: list[str]) -> None:
        self.both = Both(name, served)
        self.send_async = self.both.send_async
        self.close_async = self.both.close_async
