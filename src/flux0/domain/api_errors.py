"""The errors for responses with a status other than 2xx."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from flux0.domain.errors import Flux0Error, Sent
from flux0.domain.headers import Headers
from flux0.domain.http import is_rejected


@frozen
class ValidationError:
    """One problem that the server found in a request.

    Attributes:
        loc: the path to the invalid value, such as `("body", "name")`.
        msg: the problem, as text for people.
        type: the kind of problem, as a fixed string that code can compare.
        input: the invalid value; None if the server did not send it.
        ctx: further details, such as the limit that was exceeded; None if there are none.
    """

    loc: tuple[str | int, ...]
    msg: str
    type: str
    input: Any = None
    ctx: Mapping[str, Any] | None = None


@frozen
class HTTPValidationErrorData:
    """The problems in a 422 response.

    Attributes:
        detail: the problems; empty if the server sent only text.
    """

    detail: tuple[ValidationError, ...] = ()


class APIError(Flux0Error):
    """The server, or a proxy in front of it, returned a status other than 2xx.

    Attributes:
        status_code: the response's HTTP status, such as 404.
        message: the server's error text. If the server sent no error text, the start of a
            plain-text body, or the status name.
        body: the response's complete body, as text.
        headers: the response's header fields; empty if another process has received the response.
        raw_response: the HTTP library's response object; None if the error was unpickled. To get
            the body, use `body`.
    """

    headers: Headers = Headers()
    raw_response: Any = None

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        body: str,
        headers: Headers,
        raw_response: Any = None,
    ) -> None:
        super().__init__(f"{status_code}: {message}")
        self.sent: Sent = "no" if is_rejected(status_code) else "maybe"
        self.message = message
        self.status_code = status_code
        self.body = body
        self.headers = headers
        self.raw_response = raw_response


class BadRequestError(APIError):
    """400: the server rejected the request, for example because the session does not exist."""


class AuthenticationError(APIError):
    """401: the credentials are missing or wrong."""


class PermissionDeniedError(APIError):
    """403: the credentials do not permit this request."""


class NotFoundError(APIError):
    """404: the agent, the session or the route does not exist."""


class ConflictError(APIError):
    """409: the request conflicts with the server's current state."""


class HTTPValidationError(APIError):
    """422: the server rejected the arguments.

    Attributes:
        data: the problems that the server reported.
    """

    data: HTTPValidationErrorData = HTTPValidationErrorData()


class RateLimitError(APIError):
    """429: too many requests. A header `Retry-After` determines the wait before a retry."""


class ServerError(APIError):
    """5xx: the server, or a proxy in front of it, failed. The request may have had an effect."""


_BY_STATUS: Mapping[int, type[APIError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: HTTPValidationError,
    429: RateLimitError,
}


def api_error_class(status_code: int) -> type[APIError]:
    if status_code >= 500:  # noqa: PLR2004 - the first status of the server-error range
        return ServerError
    return _BY_STATUS.get(status_code, APIError)
