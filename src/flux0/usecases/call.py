"""One call's way to the server and back: what every use case shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from attrs import frozen

from flux0.domain.errors import DecodeError
from flux0.domain.headers import Headers
from flux0.domain.retrying import RetryConfig
from flux0.domain.timeouts import Deadline
from flux0.flows import Flow, SendFlow
from flux0.ports import Codec, Request, Timeout

T = TypeVar("T")

_NOTHING = Headers()
_JSON = Headers((("accept", "application/json"),))
_JSON_BODY = Headers((*_JSON.pairs, ("content-type", "application/json")))
_STREAM = Headers((("accept", "text/event-stream"), ("content-type", "application/json")))


@frozen(eq=False)
class ApiCall:
    """Where one call goes, through what, and with which options.

    `server_url` has no trailing slash; `login` is what it had credentials for, and gives way to
    `headers`; it is None where the client computes an authorization, which wins over any login.
    `max_body_bytes` bounds a body that is read whole; `deadline` is when the call must be over, by
    the driver's clock.
    """

    send: SendFlow
    codec: Codec
    server_url: str
    login: Headers | None
    headers: Headers
    timeout: Timeout
    max_body_bytes: int
    retries: RetryConfig
    deadline: Deadline | None = None

    def request(
        self,
        operation: str,
        method: str,
        route: str,
        *,
        ids: Mapping[str, str] | None = None,
        query: tuple[tuple[str, str], ...] = (),
        body: Any = None,
        stream: bool = False,
    ) -> Request:
        """Return the request of this call; `ids` go where `route` has their names."""
        url = f"{self.server_url}{route if ids is None else _filled(route, ids)}"
        if query:
            from urllib.parse import urlencode  # noqa: PLC0415 - not needed to import this package

            url = f"{url}?{urlencode(query)}"
        own = _STREAM if stream else _JSON if body is None else _JSON_BODY
        return Request(
            method=method,
            url=url,
            headers=own.merge(self.login or _NOTHING).merge(self.headers),
            body=None if body is None else self.codec.encode(body),
            stream=stream,
            timeout=self.timeout,
            operation=operation,
            route=route,
            retries=self.retries,
            deadline=self.deadline,
        )

    def fetch(self, model: type[T], request: Request) -> Flow[T]:
        """Send `request` and return the model that the answer's body holds."""
        response = yield from self.send(request)
        try:
            return self.codec.decode(model, response.body)
        except DecodeError as error:
            error.attach_request(request.operation, request.method, request.url)
            raise


def _filled(route: str, ids: Mapping[str, str]) -> str:
    from urllib.parse import quote  # noqa: PLC0415 - not needed to import this package

    return route.format_map({name: quote(id_, safe="") for name, id_ in ids.items()})
