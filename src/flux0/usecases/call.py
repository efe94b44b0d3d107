"""Building and sending the request of one call, for all use cases."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast

from attrs import field, frozen

from flux0.domain import arguments
from flux0.domain.errors import DecodeError, InvalidArgument
from flux0.domain.headers import Headers
from flux0.domain.retrying import RetryConfig
from flux0.domain.safe_text import shown_url
from flux0.domain.stored_models import Participant
from flux0.domain.timeouts import Deadline
from flux0.flows import CallRequest, Flow, HeaderFunction, SendFlow
from flux0.observers import Call
from flux0.ports import Codec, Response, Timeout

T = TypeVar("T")

_Observe: TypeAlias = Callable[[CallRequest, Flow[Any]], Flow[Any]]

_JSON = Headers((("accept", "application/json"),))
_JSON_BODY = Headers((*_JSON.pairs, ("content-type", "application/json")))
_STREAM = Headers((("accept", "text/event-stream"), ("content-type", "application/json")))


@frozen(eq=False)
class ApiCall:
    """The settings of one call. `perform` and `fetch` send the call's request.

    Attributes:
        send: the chain of middleware that sends a request. Only `perform` calls it.
        codec: encodes request bodies and decodes responses.
        server_url: the base URL, without a trailing slash and without credentials.
        login: an `authorization` header with the credentials in the server URL or `FLUX0_TOKEN`. An
            `authorization` header in `headers` replaces it.
        headers: the client's headers, joined with the call's headers.
        header_functions: a mapping from the lower-case name of a header field to the function that
            computes its value.
        timeout: the timeouts of each attempt.
        idle_timeout: the longest time between two events of a stream, in seconds.
        max_event_bytes: the size limit of one event of a stream.
        max_turn_bytes: the size limit of all messages that a stream builds from its events.
        retries: the retry policy.
        limit: the longest time that the call may take, with all its attempts, in seconds; None
            means no limit.
        deadline: the moment at which `limit` ends; None if `limit` is None.
        observe: a function that runs the flow of a call, and reports the call's start and end to
            the observers; None if the client has no observers.
        extra_query: parameters that are added to the query; None adds nothing.
        extra_body: members that are added to the JSON object in the body; None adds nothing.
        agent: the conversation's agent. An unknown id or name is None.
        cookie: a `cookie` header that identifies the user. Cookies in `headers` do not replace it.
    """

    _send: SendFlow = field(alias="send")
    codec: Codec
    server_url: str
    login: Headers
    headers: Headers
    header_functions: Mapping[str, HeaderFunction]
    timeout: Timeout
    idle_timeout: float
    max_event_bytes: int
    max_turn_bytes: int
    retries: RetryConfig
    limit: float | None = None
    deadline: Deadline | None = None
    _observe: _Observe | None = field(default=None, alias="observe")
    extra_query: Mapping[str, str] | None = None
    extra_body: Mapping[str, Any] | None = None
    agent: Participant = field(factory=Participant)
    cookie: Headers = field(factory=Headers)

    def request(
        self,
        operation: str,
        method: str,
        route: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Any = None,
        content: str | None = None,
        **ids: str,
    ) -> CallRequest:
        """Return a request of this call; the placeholders in `route` are replaced by `ids`.

        `content` is the user's message, if the call starts a turn. The response of such a call is a
        stream.

        Raises:
            InvalidArgument: An id is not valid, `extra_query` or `extra_body` contains a name that
                the request already has, or `extra_body` was passed and the request has no JSON
                object in its body.
        """
        if self.extra_query is not None:
            _check_new("extra_query", self.extra_query, dict(query))
            query = (*query, *self.extra_query.items())
        if self.extra_body is not None:
            if not isinstance(body, dict):
                problem = f"must not be passed: {operation} sends no JSON object in the body"
                raise InvalidArgument("extra_body", problem)
            members = cast("dict[str, Any]", body)
            _check_new("extra_body", self.extra_body, members)
            body = {**members, **self.extra_body}
        url = f"{self.server_url}{_fill(route, ids)}"
        if query:
            from urllib.parse import urlencode  # noqa: PLC0415 - not needed to import this package

            url = f"{url}?{urlencode(query)}"
        call = None
        if self._observe is not None:
            session_id, agent = ids.get("session_id"), self.agent
            shown = shown_url(url)
            call = Call(operation, method, shown, route, session_id, agent.id, agent.name, content)
        stream = content is not None
        defaults = _STREAM if stream else _JSON if body is None else _JSON_BODY
        headers = defaults.merge(self.login).merge(self.headers).merge(self.cookie)
        if functions := self.header_functions:
            headers = headers.without(functions.keys() - {"cookie"})
        return CallRequest(
            method=method,
            url=url,
            headers=headers,
            header_functions=functions,
            body=None if body is None else self.codec.encode(body, "extra_body"),
            stream=stream,
            timeout=self.timeout,
            operation=operation,
            route=route,
            retries=self.retries,
            deadline=self.deadline,
            call=call,
        )

    def fetch(self, model: type[T], request: CallRequest) -> Flow[T]:
        return self.perform(request, lambda response: self.codec.decode(model, response.body))

    def perform(self, request: CallRequest, decode: Callable[[Response[Any]], T]) -> Flow[T]:
        flow = self._perform(request, decode)
        return flow if self._observe is None else self._observe(request, flow)

    def _perform(self, request: CallRequest, decode: Callable[[Response[Any]], T]) -> Flow[T]:
        response = yield from self._send(request)
        try:
            return decode(response)
        except DecodeError as error:
            error.attach_request(request.operation, request.method, request.url)
            raise


def _check_new(argument: str, extra: Iterable[str], own: Container[str]) -> None:
    for key in extra:
        if key in own:
            problem = f"must not contain {key!r}: flux0 sends it in this call"
            raise InvalidArgument(argument, problem)


def _fill(route: str, ids: Mapping[str, str]) -> str:
    from urllib.parse import quote  # noqa: PLC0415 - not needed to import this package

    checked = {name: arguments.identifier(name, id_) for name, id_ in ids.items()}
    return route.format_map({name: quote(id_, safe="") for name, id_ in checked.items()})
