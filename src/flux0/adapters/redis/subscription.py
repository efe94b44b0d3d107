"""The subscription of one process: its messages, and its connection, which may stop responding."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import Any, Final, final

from flux0.adapters.redis.commands import as_text
from flux0.adapters.redis.outage import Outage
from flux0.adapters.redis.worker import RedisClient, Worker

_SILENT: Final = (
    "the subscription to Redis does not respond: events and requests to stop background turns "
    "arrive late"
)
_RESPONDS: Final = "the subscription to Redis responds again"
_NO_DATA: Final = "no data received, although the connection is open"


@final
class Subscription:
    """Receives the messages for this process. No connection is trusted for longer than a lease.

    If no data was received for some time, the subscription sends a PING. If it receives no data
    afterwards, it opens a new connection.

    Args:
        client: The client of Redis.
        worker: The worker whose commands show whether Redis responds at all.
        on_change: A function that is called with the key of each turn that has changed, and with
            None if messages may have been lost.
        on_question: A function that is called with the key of each turn that another process asks
            this process to check.
    """

    def __init__(
        self,
        client: RedisClient,
        worker: Worker,
        on_change: Callable[[str | None], object],
        on_question: Callable[[str], object],
    ) -> None:
        self._client = client
        self._worker = worker
        self._on_change = on_change
        self._on_question = on_question
        self._outage = Outage(worker.clock, _RESPONDS)
        self._is_renewed = False

    def renew(self) -> None:
        """Open a new connection soon, because Redis may now be another server."""
        self._is_renewed = True

    def run(self, ended: Event) -> None:
        """Receive messages until `ended` is set."""
        settings = self._worker.settings
        while not ended.is_set():
            try:
                self._receive(ended)
            except Exception as error:  # noqa: BLE001 - the client may be of another library
                self._on_change(None)
                self._fail(error)
                ended.wait(settings.check)

    def _receive(self, ended: Event) -> None:
        settings, clock = self._worker.settings, self._worker.clock
        # `reply` is the time since when this connection does not respond. `_outage` also includes
        # earlier connections.
        reply = Outage(clock)
        self._is_renewed = False
        subscriber = self._client.pubsub()
        try:
            reply.expect()
            self._outage.expect()
            subscriber.subscribe(settings.process, settings.everyone)
            heard = clock.now()
            while not (ended.is_set() or self._is_renewed):
                message = subscriber.get_message(timeout=settings.check)
                if message is not None:
                    heard = clock.now()
                    reply.respond()
                    self._outage.respond()
                    self._handle(message)
                elif reply.seconds >= settings.expiry:
                    raise TimeoutError(_NO_DATA)
                elif not reply.seconds and clock.now() - heard >= settings.renew:
                    reply.expect()
                    self._outage.expect()
                    subscriber.ping()
        finally:
            subscriber.close()

    def _handle(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            self._on_change(None)
        elif message["type"] == "message":
            key = as_text(message["data"])
            self._on_change(key)
            if key and as_text(message["channel"]) == self._worker.settings.process:
                self._on_question(key)

    def _fail(self, error: Exception) -> None:
        self._outage.fail(str(error))
        # If the commands do not get replies, either, the lease logs this. A command that was sent
        # just now has no reply yet, although Redis responds.
        settings, redis = self._worker.settings, self._worker.redis
        is_alone = redis.seconds < settings.renew and not redis.error
        if is_alone and self._outage.seconds >= settings.expiry:
            self._outage.warn(f"{_SILENT}: {self._worker.named(error)}")
