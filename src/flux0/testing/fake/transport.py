"""`FakeTransport`: a flux0 server in memory, for tests of code that uses flux0."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from itertools import zip_longest
from math import inf
from threading import RLock
from typing import Any, cast, get_args

from attrs import define, evolve

from flux0.domain import arguments
from flux0.domain.errors import ConnectionInterrupted, InvalidArgument, ReadTimeout, TransportError
from flux0.domain.timeouts import timed_out
from flux0.ports import Request, Response
from flux0.testing.fake import calls
from flux0.testing.fake.body import BodyEnd, FakeBody, SharedTransport, Starter
from flux0.testing.fake.calls import CallResponse, ExpectedCall, ReceivedCall
from flux0.testing.fake.clock import FakeClock, Wait, Waits
from flux0.testing.fake.faults import Delay, Drop, Fault, Refuse, Respond, Stall, with_faults
from flux0.testing.fake.operations import check_operation_name
from flux0.testing.fake.server import FakeServer
from flux0.testing.fake.steps import AgentFunction, AgentReply, as_agent
from flux0.testing.fake.turn import FakeTurn
from flux0.testing.fake.validation import ID_LENGTH


@define
class _PlannedFaults:
    faults: tuple[Fault, ...]
    times: int
    operation: str | None
    after: int
    when: Callable[[ReceivedCall], object] | None

    def __str__(self) -> str:
        calls = "1 more call" if self.times == 1 else f"{self.times} more calls"
        of = f" of {self.operation}" if self.operation else ""
        return f"{', '.join(map(str, self.faults))} for {calls}{of}"

    def consume(self, call: ReceivedCall) -> bool:
        if self.operation not in {None, call.operation} or (self.when and not self.when(call)):
            return False
        apply = self.after == 0
        self.after -= not apply
        self.times -= apply
        return apply


class FakeTransport(SharedTransport):
    """A transport that simulates a flux0 server in memory, for sync and async calls.

    The responses are the same as from the released server, with a few differences (see
    docs/testing.md). Any number of clients, threads and tasks can use a fake at once. A sync agent
    starts in the thread that sends the message. After a pause, it continues in the thread that
    moves the fake's clock.

    Args:
        reply: the default reply of agents: a string, a step of `flux0.testing`, an iterable of
            both, or a sync or async function that takes a `UserMessage` and returns or yields them.
        agent_id: the first agent's id, 10 characters long. By default, the fake creates one.
        agent_name: the first agent's name.
        agent_types: the agent types that the server supports. The first agent has the first type.
        clock: a simulated clock for all waits. By default, waits take no real time.
        newer_server: whether to simulate the newest sources of the server, which are not released:
            sessions have `metadata` and `mode`, an existing session id gets a 409 response, and
            status events have a timestamp.
        tokens: the users who are logged in: maps bearer tokens to names of users. The fake then
            simulates the newest sources of the server, too: it takes the user of each request from
            the token instead of the cookie, and responds with 401 to requests without such a token.
            The mapping is read at each request: to let a token expire, remove it.
        path_prefix: the path below which a reverse proxy serves the API, such as `/flux0`. The
            fake responds with 404 to other paths.

    Attributes:
        agent_id: the first agent's id.
        clock: the simulated clock for all waits.

    Raises:
        InvalidArgument: `agent_types` is empty, or `agent_id` has a wrong length.
    """

    def __init__(
        self,
        reply: AgentReply = "Hello",
        *,
        agent_id: str | None = None,
        agent_name: str = "Fake",
        agent_types: Iterable[str] = ("fake",),
        clock: FakeClock | None = None,
        newer_server: bool = False,
        tokens: Mapping[str, str] | None = None,
        path_prefix: str = "",
    ) -> None:
        types = tuple(agent_types)
        if not types:
            raise InvalidArgument("agent_types", "must not be empty")
        if agent_id is not None and len(agent_id) != ID_LENGTH:
            raise InvalidArgument("agent_id", f"must have {ID_LENGTH} characters, not {agent_id!r}")
        super().__init__(FakeClock() if clock is None else clock)
        self._lock = RLock()
        self._agent = as_agent(reply)
        self._first_agent = agent_name, types[0]
        self._path_prefix = f"/{path_prefix.strip('/')}".rstrip("/")
        is_newer = newer_server or tokens is not None
        server = types, self.clock, self._lock, is_newer, tokens, self._path_prefix
        self._new_server = partial(FakeServer, *server)
        # `_open` contains the bodies that were neither read to their end nor closed. The keys are
        # iterators over the pieces of a body; the values are the body's call and turn.
        self._open: dict[Iterator[bytes | Wait], tuple[ReceivedCall, FakeTurn | None]] = {}
        self.agent_id: str = agent_id or ""
        self.reset()

    def __repr__(self) -> str:
        return f"<FakeTransport, {len(self._calls)} calls>"

    def reset(self) -> None:
        """Delete sessions, calls, scripts, faults and expected calls, and close open streams.

        The first agent and the clock's time are kept.
        """
        with self._lock:
            for body in self._bodies.values():
                body.mark_ended("closed")
            self._open.clear()
            self._scripts: list[AgentFunction] = []
            self._turns: list[FakeTurn] = []
            # The turns whose replies the method `script` has set.
            self._scripted: list[FakeTurn] = []
            self._calls: list[ReceivedCall] = []
            self._expected: list[ExpectedCall] | None = None
            self._unexpected: list[str] = []
            self._planned: list[_PlannedFaults] = []
            self._server = self._new_server()
            agent = self._server.store.create_agent(*self._first_agent, id=self.agent_id)
            self.agent_id = agent["id"]

    def script(self, *replies: AgentReply) -> None:
        """Use each reply for one of the next turns, in order; later turns use the default reply."""
        with self._lock:
            self._scripts.extend(map(as_agent, replies))

    def inject(
        self,
        *faults: Fault,
        times: int = 1,
        operation: str | None = None,
        after: int = 0,
        when: Callable[[ReceivedCall], object] | None = None,
    ) -> None:
        """Apply all `faults` to each of the next `times` matching calls.

        If several `inject` calls match a call, the faults from the earliest `inject` apply.

        Args:
            faults: the faults to apply, such as `Respond(503)`.
            times: the number of calls to which the faults apply.
            operation: the operation of matching calls, such as `sessions.create_event`. By
                default, calls of all operations match.
            after: the number of matching calls to skip first.
            when: a function that returns whether a `ReceivedCall` matches, for example
                `lambda call: call.user == "ann"`.

        Raises:
            InvalidArgument: there is no fault, or a value that is not a fault; the operation does
                not exist; `times` is less than 1, or `after` less than 0.
        """
        if operation is not None:
            check_operation_name(operation)
        for fault in faults or (None,):
            if not isinstance(fault, get_args(Fault)):
                problem = f"must be faults of flux0.testing, such as Respond(503), not {fault!r}"
                raise InvalidArgument("faults", problem)
        arguments.integer("times", times, smallest=1)
        arguments.integer("after", after, smallest=0)
        with self._lock:
            self._planned.append(_PlannedFaults(faults, times, operation, after, when))

    def expect(self, operation: str, **arguments: Any) -> None:
        """Expect one call of an operation with at least these arguments.

        Expected calls may happen in any order. After the first `expect`, a call that was not
        expected raises AssertionError. Arguments have the names of the HTTP API: `type`, not
        `type_`.

        Raises:
            InvalidArgument: the operation does not exist.
        """
        with self._lock:
            self._expected = [*(self._expected or ()), ExpectedCall(operation, arguments)]

    @property
    def calls(self) -> tuple[ReceivedCall, ...]:
        """All calls so far, oldest first, including calls to which a fault was applied."""
        return tuple(self._calls)

    def assert_called(self, operation: str, **arguments: Any) -> ReceivedCall:
        """Return the last call of an operation with at least these arguments.

        Raises:
            AssertionError: there is no such call. The message shows the most similar call.
            InvalidArgument: the operation does not exist.
        """
        expected = ExpectedCall(operation, arguments)
        for call in reversed(self.calls):
            if not expected.differences(call):
                return call
        near = calls.nearest(expected, self.calls, expected.differences)
        hint = f"nearest: {near}" if near else "there were no calls"
        raise AssertionError(f"{expected} was not called\n{hint}")

    def assert_all_used(self) -> None:
        """Raise AssertionError if a script, a fault or an expected call was not used.

        A script counts as used when its agent has ended, or has reached a `FallSilent` or a `Fail`,
        or when a fault such as `Truncate` has ended its stream early.
        """
        with self._lock:
            problems = [
                f"script {number}: {unused}"
                for number, (_, turn) in enumerate(zip_longest(self._scripts, self._scripted), 1)
                if (unused := "no turn has used it" if turn is None else turn.unused_steps)
            ]
            problems += [f"fault not applied: {planned}" for planned in self._planned]
            problems += [f"expected but not called: {each}" for each in self._expected or ()]
        calls.raise_if("some scripts, faults or expected calls were not used:", problems)

    def assert_nothing_unexpected(self) -> None:
        """Raise AssertionError if a call was not expected, or an agent raised an exception.

        Call this method at the end of a test: the code under test may have caught the exceptions.
        """
        with self._lock:
            raised = [f"an agent raised {turn.error!r}" for turn in self._turns if turn.error]
            problems = [*self._unexpected, *raised]
        calls.raise_if("unexpected calls or errors:", problems)

    def assert_no_open_streams(self) -> None:
        """Raise AssertionError if a response was neither read to its end nor closed.

        A stream counts as open even if its client was closed. A sync stream also counts as open
        after its garbage collection.
        """
        with self._lock:
            still_open = [str(call) for call, _ in self._open.values()]
        calls.raise_if("responses left open:", still_open)

    def installed(self) -> AbstractContextManager[FakeTransport]:
        """Return a context manager for code that creates its own clients.

        Entering the context manager returns the fake. In its `with` block, each `Flux0` that was
        created without a transport and without an HTTP client sends its calls to the fake, and
        waits on the fake's clock, in all threads and tasks. After the block, a client that was
        created before the block uses its own transport again. A client that was created in the
        block still uses the fake.
        """
        from flux0.client.default_transport import default_transport  # noqa: PLC0415 - rarely needed

        return default_transport(self)

    def serve(
        self, port: int = 0, *, allow_origins: Collection[str] = ()
    ) -> AbstractContextManager[str]:
        """Return a context manager that serves the fake on 127.0.0.1. Entering it returns the URL.

        Args:
            port: the TCP port; 0 chooses a free port.
            allow_origins: the origins of web pages that may use the fake with CORS, such as
                `http://localhost:5173`; `*` allows all origins. The real server allows none.
        """
        from flux0.testing.fake.serving import FakeHTTPServer  # noqa: PLC0415 - loads h11

        origins = (allow_origins,) if isinstance(allow_origins, str) else allow_origins
        return FakeHTTPServer(self, port, origins)

    def respond(self, request: Request, starter: Starter) -> Waits[Response[FakeBody]]:
        with self._lock:
            received, number = self._calls, len(self._calls)
            call = calls.call_from(request, self.clock.now(), self._path_prefix)
            received.append(call)
            self._check_expected(call)
            faults = self._pop_faults(call)
        body = turn = None
        try:
            injected = yield from self._apply_faults(request, faults, acted=False)
            response = injected or self._server_response(request, starter)
            turn = response.body if isinstance(response.body, FakeTurn) else None
            content = b"" if turn else cast("bytes", response.body)
            pieces = with_faults(iter(turn or filter(None, (content,))), faults, call, turn)
            body = FakeBody(pieces, self.clock, self._lock, self._on_body_end)
            with self._lock:
                self._open[pieces] = call, turn
                self._bodies.add(body)
            yield from self._apply_faults(request, faults, acted=True)
        except BaseException as error:
            if turn is not None:
                turn.mark_used_up()
            if body is not None:
                body.mark_ended("closed")
            if isinstance(error, TransportError):
                received[number] = evolve(call, response=error)
            raise
        summary = CallResponse(response.status_code, response.headers, calls.json_or_bytes(content))
        received[number] = evolve(call, response=summary)
        return evolve(response, body=body)

    def _server_response(self, request: Request, starter: Starter) -> Response[Any]:
        with self._lock:
            response = self._server.respond(request)
            if not isinstance(response.body, FakeTurn):
                return response
            agent, number = self._agent, len(self._scripted)
            self._turns.append(response.body)
            if number < len(self._scripts):
                self._scripted.append(response.body)
                agent = self._scripts[number]
        response.body.start(agent, starter)
        return response

    def _check_expected(self, call: ReceivedCall) -> None:
        if self._expected is None:
            return
        for expected in self._expected:
            if not expected.differences(call):
                self._expected.remove(expected)
                return
        near = calls.nearest(call, self._expected, lambda expected: expected.differences(call))
        hint = f"nearest expected: {near}" if near else "no more calls are expected"
        problem = f"unexpected: {call}\n{hint}"
        self._unexpected.append(problem)
        raise AssertionError(problem)

    def _pop_faults(self, call: ReceivedCall) -> tuple[Fault, ...]:
        for planned in self._planned:
            if planned.consume(call):
                if planned.times == 0:
                    self._planned.remove(planned)
                return planned.faults
        return ()

    def _apply_faults(
        self, request: Request, faults: Iterable[Fault], *, acted: bool
    ) -> Waits[Response[Any] | None]:
        """Apply the faults that take effect before the server acts or, if `acted`, after it acts.

        Return the response of a `Respond` fault; None if there is no such fault.
        """
        for fault in faults:
            match fault:
                case Respond() if not acted:
                    return fault.response()
                case Refuse() if not acted:
                    raise fault.error(request.timeout)
                case Stall(None, None) if not acted:
                    yield from self._delay_response(inf, request)
                case Drop(after_acting) if after_acting is acted:
                    raise ConnectionInterrupted("the connection was closed before the response")
                case Delay(seconds) if acted:
                    yield from self._delay_response(seconds, request)
                case _:
                    pass
        return None

    def _delay_response(self, seconds: float, request: Request) -> Waits[None]:
        limit = inf if request.timeout.read is None else request.timeout.read
        end = self.clock.now() + min(seconds, limit)
        while self.clock.now() < end:
            yield Wait(end, is_timeout=limit <= seconds)
        if limit <= seconds:
            raise timed_out(ReadTimeout, limit)

    def _on_body_end(self, pieces: Iterator[bytes | Wait], how: BodyEnd) -> bool:
        # After `reset` in another thread, there is no entry.
        _, turn = self._open.get(pieces, (None, None))
        if how != "unclosed":
            self._open.pop(pieces, None)
        if turn is not None:
            self._server.on_closed_early(turn)
        return turn is not None and turn.closes_connection
