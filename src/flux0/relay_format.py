"""The interface of relay formats, and its default implementation: the flux0 server's format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar, Final, final

from attrs import evolve

from flux0.domain import arguments
from flux0.domain.background_errors import ReaderLost, RelayEnded, TurnStopped, TurnTooLarge
from flux0.domain.enums import SessionStatus
from flux0.domain.errors import AgentError, ClientClosed, Flux0Error, StreamIdleTimeout
from flux0.domain.stream_events import ChunkEvent, StatusEvent, StreamEvent
from flux0.ports import ServerSentEvent

# The heartbeat is an SSE comment without a blank line after the comment. The library
# @microsoft/fetch-event-source, which the React hook of the flux0 server uses, reports a comment
# with a blank line as an empty message.
HEARTBEAT: Final = b": heartbeat\n"

RELAY_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "content-type": "text/event-stream",
        "cache-control": "no-store",
        "x-accel-buffering": "no",  # Without this header, nginx delays events.
    }
)
"""The header fields of a response that relays a turn as server-sent events."""


# Each encoded event with the status `error` contains `AGENT_ERROR`. Relays search for
# `AGENT_ERROR`, because they must replace the agent's error text in such an event.
AGENT_ERROR: Final = b'"status": "error"'
# The messages of these error classes contain no text of an agent and no address of a server, so
# relays send the messages to browsers.
_PUBLIC: Final = (RelayEnded, StreamIdleTimeout, TurnStopped)
# The messages of these error classes are for developers. Visitors of a website get the sentences.
_SENTENCES: Final[Mapping[type[Flux0Error], str]] = MappingProxyType(
    {
        AgentError: "The agent reported an error",
        ClientClosed: "The answer was interrupted",
        ReaderLost: "The answer was interrupted",
        TurnTooLarge: "The answer is too long to be shown from its beginning",
    }
)


def general_text(error: Flux0Error) -> str:
    """Return a sentence about `error` that any user of a website may see.

    If the error's message may contain the exception of an agent or the address of a server, the
    result is a general sentence instead of this message.
    """
    if isinstance(error, _PUBLIC):
        return error.problem
    sentences = (text for kind, text in _SENTENCES.items() if isinstance(error, kind))
    return next(sentences, "The exchange with the flux0 server failed")


class RelayEncoder(ABC):
    """Encodes one turn for one relay. Each method returns the relay's next bytes, if any.

    A relay calls `start`, then `event` for each event, and at last `error` or `end`, in one thread
    or task at a time.
    """

    def start(self) -> bytes:
        """Return the bytes before the first event. By default, there are none."""
        return b""

    @abstractmethod
    def event(self, event: StreamEvent) -> bytes:
        """Encode the turn's next event."""

    @abstractmethod
    def error(self, error: Flux0Error, number: int | None = None) -> bytes:
        """Encode the error that ends the relay.

        Args:
            error: The error to encode.
            number: The event number, if the error ends a background turn. None in a relay of an
                `EventStream`, or if the turn continues after this relay.
        """

    def heartbeat(self) -> bytes:
        """Return bytes that show that the relay is alive, by default a comment.

        A relay may call this method while another thread calls another method.
        """
        return HEARTBEAT

    def end(self) -> bytes:
        """Return the bytes after the last event, unless the turn failed. By default, none."""
        return b""


class RelayFormat(ABC):
    """A protocol in which a relay encodes the events of a turn, for example for a browser.

    Any number of relays can use one object at the same time.

    Attributes:
        headers: The header fields of an HTTP response that sends a relay in this format.
    """

    headers: ClassVar[Mapping[str, str]] = RELAY_HEADERS

    @abstractmethod
    def encoder(self) -> RelayEncoder:
        """Return an encoder for one relay."""


@final
class Flux0Format(RelayFormat, RelayEncoder):
    """The relay format of the flux0 server, which relays use by default.

    A browser gets the server's events unchanged, except that the data of each status `error` are
    replaced with a sentence.

    Args:
        error_text: A function that returns the text that a reader gets for an error: the data of a
            status `error`, and the `message` of an event `error`. By default, the text is a general
            sentence.
    """

    def __init__(self, *, error_text: Callable[[Flux0Error], str] = general_text) -> None:
        self._error_text = error_text

    def encoder(self) -> Flux0Format:
        return self

    def event(self, event: StreamEvent) -> bytes:
        return self.shown(event).to_sse()

    def shown(self, event: StreamEvent) -> StreamEvent:
        """Return `event`; if its status is `error`, a copy with the text that readers may see."""
        if isinstance(event, StatusEvent) and event.status == SessionStatus.ERROR:
            text = self._error_text(AgentError(event.data.data))
            event = evolve(event, data=evolve(event.data, data=text))
        return event

    def error(self, error: Flux0Error, number: int | None = None) -> bytes:
        """Return an event named `error`, with the error's class and message as JSON.

        For a `RelayEnded`, the event is named `reconnect`, and its field `retry` makes an
        `EventSource` connect again after 1 s.
        """
        import json  # noqa: PLC0415 - errors are rare

        name, field = "error", "" if number is None else f"id: {number}\n"
        if isinstance(error, RelayEnded):
            name, field = "reconnect", "retry: 1000\n"
        data = json.dumps({"type": type(error).__name__, "message": self._error_text(error)})
        return f"event: {name}\n{field}data: {data}\n\n".encode()


FLUX0: Final = Flux0Format()


def encoded(event: StreamEvent, source: ServerSentEvent, id: str | None = None) -> bytes:
    """Encode an event in flux0's own format. If possible, reuse the JSON text of `source`.

    Args:
        event: The event to encode.
        source: The server-sent event from which the event was decoded.
        id: The field `id` of the encoded event. None means the default of the event's `to_sse`.
    """
    data = source.data
    # The JSON text of an event can contain NaN or infinities, which are not valid JSON. `to_sse`
    # replaces them with null, so an event with such a value must be encoded again.
    is_plain = "\n" not in data and "NaN" not in data and "Infinity" not in data
    if is_plain and type(event) is ChunkEvent:
        field = "" if id is None else f"id: {id}\n"
        return f"event: {event.event}\n{field}data: {data}\n\n".encode()
    return event.to_sse(id)


def checked_format(format: object) -> RelayFormat:
    return arguments.instance("format", RelayFormat, format)  # type: ignore[type-abstract]
