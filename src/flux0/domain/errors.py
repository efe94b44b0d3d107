"""The errors of flux0. All are subclasses of `Flux0Error`, and all can be pickled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

from flux0.domain.safe_text import escaped, shown_json, shown_url

if TYPE_CHECKING:
    from flux0.domain.messages.finalizing import TurnMessage
    from flux0.domain.stored_models import Agent

E = TypeVar("E", bound="Flux0Error")
Sent: TypeAlias = Literal["no", "maybe", "yes"]
"""Whether the server accepted a request: certainly not, perhaps, or certainly."""

_EXCERPT_LENGTH = 200  # Error messages show at most this number of characters of a body.
# These attributes are None in an unpickled error, because they refer to a connection or a client.
_NOT_PICKLED = frozenset({"raw_response", "_list_stored"})


class Flux0Error(Exception):
    """The base class of every error of this library.

    Attributes:
        sent: whether the server accepted the request: "no" (certainly not), "yes" (an event was
            received) or "maybe". After several attempts, "no" means that the server certainly
            accepted none of them.
        from_user_code: whether the user's code raised the error during the call: a hook, an
            authentication class, an adapter of `requests`, or a function that computes a header.
            After such an error, the call is not retried.
        operation: the call that failed, such as `agents.list`; empty if the call sent no request.
        method: the request's HTTP method; empty if the call sent no request.
        url: the request URL, without credentials. The values of query parameters that flux0 does
            not know are hidden.
        attempts: the number of attempts to send the request, including the first.
    """

    # Users import `flux0.Flux0Error`, so tracebacks must show this name of the class.
    __module__ = "flux0"

    def __init_subclass__(cls) -> None:
        if cls.__module__.startswith("flux0.domain."):
            cls.__module__ = "flux0"

    sent: Sent = "no"
    from_user_code: bool = False
    operation: str = ""
    method: str = ""
    url: str = ""
    attempts: int = 1

    @property
    def problem(self) -> str:
        """The error message without the method and the URL.

        The message is one line: line breaks and other control characters are escaped.
        """
        return escaped(super().__str__())

    def attach_request(self, operation: str, method: str, url: str) -> None:
        """Store the request that failed, unless a request is already stored."""
        if not self.operation:
            self.operation, self.method, self.url = operation, method, shown_url(url)

    def __str__(self) -> str:
        text = self.problem
        if self.url:
            text = f"{self.method} {self.url}: {text}"
        return text if self.attempts == 1 else f"{text} ({self.attempts} attempts)"

    def __reduce__(self) -> tuple[Any, ...]:
        # `restore` does not call `__init__`, whose parameters differ between subclasses.
        state = {name: value for name, value in vars(self).items() if name not in _NOT_PICKLED}
        return restore, (type(self), self.args, state)


def restore(cls: type[Flux0Error], args: tuple[Any, ...], state: dict[str, Any]) -> Flux0Error:
    error = cls.__new__(cls, *args)
    # Built-in base classes can set attributes: for example, ImportError.__init__ sets `msg`.
    super(Flux0Error, error).__init__(*args)
    error.__dict__.update(state)
    return error


def fresh(error: E) -> E:
    """Return a copy of `error` with the same cause, but without a traceback.

    A stored traceback keeps its frames, and all objects in their variables, in memory.
    """
    copied = restore(type(error), error.args, vars(error))
    copied.__cause__ = error.__cause__
    return cast("E", copied)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield `error`, its cause or context, the cause or context of that error, and so on.

    Each error is yielded once: after `raise error from error`, an error is its own cause.
    """
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def drop_tracebacks(error: BaseException | None) -> None:
    """Remove the tracebacks from `error` and its causes, because they keep objects in memory."""
    for each in chain(error):
        each.__traceback__ = None
        if each.__cause__ is not None:
            each.__context__ = None


def mark_user_error(error: BaseException, *, sent: bool = False) -> None:
    """If `error` is a `Flux0Error`, mark it as raised by the user's code: it causes no retry.

    If the user's code, such as a middleware, makes another call that fails, `error.sent` belongs to
    that call. Therefore, `error.sent` gets the value for the current call: "maybe" if `sent`, else
    "no".
    """
    if isinstance(error, Flux0Error):
        error.from_user_code = True
        error.sent = "maybe" if sent else "no"


class InvalidArgument(Flux0Error, ValueError):
    """An argument is invalid; the request was not sent.

    Attributes:
        argument: the name of the invalid argument.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument} {problem}")
        self.argument = argument


class ClientClosed(Flux0Error, RuntimeError):
    """The client, the stream or the user's HTTP client is closed; the message names the object."""


class StreamInUse(Flux0Error, RuntimeError):
    """A second thread or task tried to read a stream. The first reader is not affected."""

    def __init__(self) -> None:
        problem = "is already being read by another thread or task: read it in one place only"
        super().__init__(f"stream {problem}")


class MissingDependency(Flux0Error, ImportError):
    """A package is not installed; the message names the extra of flux0 that installs it."""


class AgentNotFound(Flux0Error, LookupError):
    """No agent has the requested type and name.

    Attributes:
        agents: all agents that the server has.
    """

    def __init__(self, wanted: str, agents: tuple[Agent, ...]) -> None:
        existing = ", ".join(f"{agent.name!r} of type {agent.type!r}" for agent in agents)
        agent = f"agent of {wanted}" if wanted else "agent"
        advice = "create one with agents.create(name=..., type_=...)"
        known = f"existing agents: {existing or 'none'}"
        super().__init__(f"the server has no {agent}; {known}; {advice}")
        self.agents = agents


class TransportError(Flux0Error):
    """The exchange with the server failed. The error class gives the reason.

    After a `ConnectError`, the request was certainly not sent. After any other transport error, the
    server may have acted on the request. `__cause__` is the HTTP library's exception.
    """

    sent: Sent = "maybe"


class ConnectError(TransportError):
    """The connection could not be established: unknown host, refused or unreachable.

    The request was not sent. Check `server_url` and that the server is running.

    Attributes:
        permanent: True if a retry is expected to fail for the same reason. Then the call is not
            retried.
    """

    permanent: bool = False
    sent: Sent = "no"


class TLSError(ConnectError):
    """The TLS handshake failed, for example because the certificate is not trusted.

    The request was not sent. Check that your HTTP client trusts the authority that issued the
    certificate.
    """

    permanent: bool = True


class TransportTimeout(TransportError):
    """A timeout expired. The message names the timeout and its length in seconds, if known."""


class ConnectTimeout(TransportTimeout, ConnectError):
    """The connection was not established within the connect timeout. The request was not sent."""


class PoolTimeout(TransportTimeout, ConnectError):
    """No connection in the pool became free within the pool timeout. The request was not sent.

    Close streams that you do not need, or pass an HTTP client with a larger pool.
    """

    permanent: bool = True


class ReadTimeout(TransportTimeout):
    """The server sent no data within the read timeout, or the call exceeded its `timeout_ms`.

    The server may have acted on the request. `timeout_ms` also sets the read timeout.
    """


class WriteTimeout(TransportTimeout):
    """The server did not accept the request's data within the write timeout.

    A part of the request was sent. The server may have acted on the request.
    """


class ConnectionInterrupted(TransportError):
    """The connection was closed or reset before the response was complete.

    The server may have acted on the request.
    """


class ProtocolError(TransportError):
    """The response is not valid HTTP, or its framing or content coding is invalid.

    The server may have acted on the request. Check that `server_url` is an HTTP server.
    """


class ResponseTooLarge(Flux0Error):
    """A response body has more than `limit` bytes (the client's `max_body_bytes`).

    The server may have acted on the request.

    Attributes:
        limit: the largest allowed size of a body in bytes.
    """

    sent: Sent = "maybe"

    def __init__(self, limit: int) -> None:
        super().__init__(f"the response body is larger than {limit:,} bytes (max_body_bytes)")
        self.limit = limit


class DecodeError(Flux0Error):
    """A body or an event is not JSON, or does not have the expected fields.

    The server may have acted on the request. Check that `server_url` is a flux0 server.

    Attributes:
        field: the invalid field, such as `data[0].created_at`; empty if the whole value is invalid.
        body: the start of the received text. The error message contains this text without values of
            JSON members that may be credentials.
    """

    sent: Sent = "maybe"

    def __init__(self, problem: str, *, field: str = "", body: str = "") -> None:
        where = f"{field}: " if field else ""
        shown = f" in {shown_json(body)[:_EXCERPT_LENGTH]!r}" if body else ""
        super().__init__(f"{where}{problem}{shown}")
        self.field = field
        self.body: str = body[:_EXCERPT_LENGTH]


class StreamError(Flux0Error):
    """The stream of a turn failed. Do not send the message again: the server may process it twice.

    Attributes:
        correlation_id: the turn's id; None if no event with an id was received.
        event_count: the number of events that were received before the error.
        messages: the messages that were received, even if incomplete.
    """

    sent: Sent = "maybe"
    correlation_id: str | None = None
    event_count: int = 0
    messages: tuple[TurnMessage, ...] = ()
    _list_stored: Callable[..., Any] | None = None

    def attach_stream(
        self, messages: tuple[TurnMessage, ...], list_stored: Callable[..., Any] | None
    ) -> None:
        """Store the stream's messages, and the function that `stored_events` calls."""
        self.messages = messages
        self._list_stored = list_stored

    def stored_events(self, **options: Any) -> Any:
        """Return the events that the server has stored for this turn, as `Events`.

        The options are the same as for `client.sessions.list_events`. If the stream was async,
        returns an awaitable. Raises `Flux0Error` if this error was unpickled, or if
        `correlation_id` is None.
        """
        if self._list_stored is None:
            reason = "the error was unpickled or has no stream: use client.sessions.list_events"
            raise Flux0Error(f"cannot list the stored events: {reason}")
        return self._list_stored(**options)


class StreamInterrupted(StreamError):
    """The connection failed, or the stream ended, before the turn was complete.

    The server may have stored more or fewer events than were received: call `stored_events`.
    """


class StreamIdleTimeout(StreamError):
    """No event was received within the idle timeout (`stream_idle_timeout_ms`).

    If an agent crashes, the server keeps the stream open and sends nothing. The server also sends
    nothing if another client sends a message to the same session. If your agents need more time,
    set a longer timeout.
    """


class AgentError(StreamError):
    """The agent reported an error.

    Attributes:
        data: the details from the agent, as plain JSON; None if there are none.
    """

    def __init__(self, data: Any) -> None:
        super().__init__(f"the agent reported an error: {data}")
        self.data = data


class EventTooLarge(StreamError):
    """An event has more than `limit` bytes (the client's `max_event_bytes`).

    Attributes:
        limit: the largest allowed size of an event in bytes.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"an event of the stream is larger than {limit:,} bytes (max_event_bytes)")
        self.limit = limit
