"""Everything that flux0 raises. All of it is a `Flux0Error`, and all of it pickles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from flux0.domain.headers import Headers
    from flux0.domain.messages.finalizing import TurnMessage
    from flux0.domain.models import Agent


class Flux0Error(Exception):
    """The base of every error that this library raises.

    Attributes:
        operation: the call that failed, such as `agents.list`; empty where nothing was to be sent.
        method: the request's method.
        url: the request's URL, without credentials.
        attempts: how many times the request was tried.
    """

    def __init_subclass__(cls) -> None:
        if cls.__module__ == __name__:
            cls.__module__ = "flux0"  # Where users import it from.

    operation: str = ""
    method: str = ""
    url: str = ""
    attempts: int = 1

    @property
    def problem(self) -> str:
        """What went wrong, without the request."""
        return super().__str__()

    def attach_request(self, operation: str, method: str, url: str) -> None:
        """Take note of the request that failed, unless it is known already."""
        if not self.operation:
            self.operation, self.method, self.url = operation, method, url

    def __str__(self) -> str:
        text = self.problem
        if self.url:
            text = f"{self.method} {self.url}: {text}"
        return text if self.attempts == 1 else f"{text} ({self.attempts} attempts)"

    def __reduce__(self) -> tuple[Any, ...]:
        # The message is rebuilt as it was, not by calling __init__ again: subclasses take more.
        return _restore, (type(self), self.args, self._picklable_state())

    def _picklable_state(self) -> dict[str, Any]:
        return dict(self.__dict__)


def _restore(cls: type[Flux0Error], args: tuple[Any, ...], state: dict[str, Any]) -> Flux0Error:
    error = cls.__new__(cls, *args)
    super(Flux0Error, error).__init__(*args)  # Which an ImportError needs, for its `msg`.
    error.__dict__.update(state)
    return error


class InvalidArgument(Flux0Error, ValueError):
    """A call's argument was refused before anything was sent; `argument` is its name."""

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument} {problem}")
        self.argument = argument


class ClientClosed(Flux0Error, RuntimeError):
    """A client or a stream was used after it was closed."""


class MissingDependency(Flux0Error, ImportError):
    """A part of flux0 needs a package that is not installed; the message names the extra."""


class AgentNotFound(Flux0Error, LookupError):
    """The server has no agent as was asked for; `agents` are those that it has."""

    def __init__(self, wanted: str, agents: tuple[Agent, ...]) -> None:
        known = ", ".join(f"{agent.name!r} of type {agent.type!r}" for agent in agents)
        super().__init__(
            f"the server has no agent{f' of {wanted}' if wanted else ''}; "
            f"it has {known or 'none at all'}; make one with agents.create(name=..., type_=...)"
        )
        self.agents = agents


# --- the server answered, with something other than success


@frozen
class ValidationError:
    """One thing that the server found wrong with a request; `loc` leads to it."""

    loc: tuple[str | int, ...]
    msg: str
    type: str
    input: Any = None
    ctx: Mapping[str, Any] | None = None


@frozen
class HTTPValidationErrorData:
    """What a 422 says in detail; empty where the server sent plain text instead."""

    detail: tuple[ValidationError, ...] = ()


class APIError(Flux0Error):
    """The server, or a proxy before it, answered with a status other than 2xx.

    Attributes:
        status_code: the HTTP status.
        message: the server's own words, or the start of the body, or the status's name.
        body: the whole body as text.
        headers: the answer's header fields.
        raw_response: the HTTP library's own response object; None after unpickling.
    """

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
        self.message = message
        self.status_code = status_code
        self.body = body
        self.headers = headers
        self.raw_response = raw_response

    def _picklable_state(self) -> dict[str, Any]:
        return {**self.__dict__, "raw_response": None}


class BadRequestError(APIError):
    """400: among others, the answer for an unknown session when its events are asked for."""


class AuthenticationError(APIError):
    """401: no credentials, or wrong ones."""


class PermissionDeniedError(APIError):
    """403: known, but not allowed."""


class NotFoundError(APIError):
    """404: no such agent, session or route."""


class ConflictError(APIError):
    """409: the request does not fit the state of things."""


class HTTPValidationError(APIError):
    """422: the server refused the arguments; `data.detail` says which, where it told."""

    def __init__(
        self, message: str, *, data: HTTPValidationErrorData | None = None, **rest: Any
    ) -> None:
        super().__init__(message, **rest)
        self.data: HTTPValidationErrorData = HTTPValidationErrorData() if data is None else data


class RateLimitError(APIError):
    """429: too many requests; `headers` may hold a `Retry-After`."""


class ServerError(APIError):
    """5xx: the server, or a proxy before it, failed."""


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
    """Return the class of error for a status other than 2xx."""
    if status_code >= 500:  # noqa: PLR2004 - the first status of the server-error range
        return ServerError
    return _BY_STATUS.get(status_code, APIError)


# --- the server was not reached, or did not speak HTTP to the end


class TransportError(Flux0Error):
    """The exchange with the server failed; `__cause__` is the HTTP library's own exception."""


class ConnectError(TransportError):
    """No connection came about: name not found, refused, unreachable. Nothing was sent."""


class TLSError(ConnectError):
    """The server's certificate or its TLS was refused. Nothing was sent."""


class TransportTimeout(TransportError):
    """Something took longer than its timeout."""


class ConnectTimeout(TransportTimeout, ConnectError):
    """No connection came about in time. Nothing was sent."""


class PoolTimeout(TransportTimeout, ConnectError):
    """No connection of the pool became free in time. Nothing was sent."""


class ReadTimeout(TransportTimeout):
    """The server fell silent while it was being read."""


class WriteTimeout(TransportTimeout):
    """The server took the request too slowly."""


class ConnectionInterrupted(TransportError):
    """The connection broke off after it was made; the server may have acted on the request."""


class ProtocolError(TransportError):
    """What came back is not HTTP, or breaks its own framing or compression."""


class ResponseTooLarge(Flux0Error):
    """A body grew past the limit that was set for it, in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the response's body is larger than {limit:,} bytes")
        self.limit = limit


# --- what came back was not what the server promises


class DecodeError(Flux0Error):
    """A body or an event was not JSON, or JSON of the wrong shape.

    Attributes:
        field: the place that was wrong, such as `data[0].created_at`; empty where it is the whole.
        body: the start of what was read.
    """

    def __init__(self, problem: str, *, field: str = "", body: str = "") -> None:
        where = f"{field}: " if field else ""
        shown = f" in {body!r}" if body else ""
        super().__init__(f"{where}{problem}{shown}")
        self.field = field
        self.body = body


class StreamError(Flux0Error):
    """A turn's stream went wrong.

    Attributes:
        correlation_id: names the turn, for listing what the server stored; None if none came.
        event_count: how many events came before.
        messages: what was rebuilt of the turn's messages so far.
    """

    correlation_id: str | None = None
    event_count: int = 0
    messages: tuple[TurnMessage, ...] = ()
    _list_stored: Callable[[], Any] | None = None

    def attach_stream(
        self, messages: tuple[TurnMessage, ...], list_stored: Callable[[], Any] | None
    ) -> None:
        """Take what the stream had rebuilt, and its way to list what the server stored."""
        self.messages = messages
        self._list_stored = list_stored

    def stored_events(self) -> Any:
        """Return the events of this turn that the server has stored by now, as `Events`.

        Of an asynchronous stream's error it is an awaitable of them. An error that was unpickled,
        or whose stream had no event to name the turn, raises `Flux0Error`.
        """
        if self._list_stored is None:
            raise Flux0Error("this error does not know the stream that it came from")
        return self._list_stored()

    def _picklable_state(self) -> dict[str, Any]:
        return {**self.__dict__, "_list_stored": None}


class StreamInterrupted(StreamError):
    """The stream ended before the turn did. The server may have stored more, or less, than came."""


class StreamIdleTimeout(StreamError):
    """Nothing came for the stream's idle timeout; the server falls silent when an agent crashes."""


class AgentError(StreamError):
    """The agent reported an error; `data` is what it said about it, as JSON, or None."""

    def __init__(self, data: Any) -> None:
        super().__init__(f"the agent reported an error: {data}")
        self.data = data


class EventTooLarge(StreamError):
    """One event grew past the limit that was set for it."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"an event of the stream is larger than {limit:,} bytes")
        self.limit = limit
