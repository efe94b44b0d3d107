"""A transport that goes nowhere: a flux0 server in memory, for tests of code that uses flux0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import zip_longest
from math import inf
from threading import RLock
from typing import Any, cast

from attrs import define, evolve

from flux0.domain.errors import ConnectionInterrupted, InvalidArgument, ReadTimeout, TransportError
from flux0.domain.timeouts import timed_out
from flux0.ports import Request, Response
from flux0.runtime.event_loop import Loop
from flux0.testing.fake import calls
from flux0.testing.fake.body import BodyEnd, FakeBody, SharedTransport
from flux0.testing.fake.calls import Call, CallResponse, ExpectedCall
from flux0.testing.fake.clock import FakeClock, Wait, Waits
from flux0.testing.fake.faults import Delay, Drop, Fault, Refuse, Respond, Stall, with_faults
from flux0.testing.fake.server import FakeServer
from flux0.testing.fake.steps import AgentFunction, AgentReply, agent_of
from flux0.testing.fake.turn import FakeTurn
from flux0.testing.fake.validation import ID_LENGTH


@define
class _PlannedFaults:
    faults: tuple[Fault, ...]
    times: int
    operation: str | None
    after: int
    when: Callable[[Call], object] | None

    def __str__(self) -> str:
        of = f" of {self.operation}" if self.operation else ""
        return f"{', '.join(map(str, self.faults))} for {self.times} calls{of}"

    def befall(self, call: Call) -> bool:
        """Return whether they happen to `call`, and count it."""
        if self.operation not in {None, call.operation} or (self.when and not self.when(call)):
            return False
        happen = self.after == 0
        self.after -= not happen
        self.times -= happen
        return happen


class FakeTransport(SharedTransport):
    """A `Transport` and an `AsyncTransport` that behave like a flux0 server of one's own.

    It answers as the released server does, errors included, and has one agent to begin with. Many
    clients, threads and tasks may use it at once. An agent runs in the thread that posts the
    message, and after a pause in the one that moves the clock.

    Args:
        reply: what agents answer: a text, a step of `flux0.testing`, several of both, or a function
            of the `UserMessage` that returns or yields them, asynchronous or not.
        agent_id: the id of the agent that is there from the start; it has 10 characters.
        agent_name: the name of that agent.
        agent_types: the types of which agents can be created; that agent is of the first.
        clock: the fake's time; by default it moves by itself, so that nothing ever waits.
    """

    def __init__(
        self,
        reply: AgentReply = "Hello",
        *,
        agent_id: str | None = None,
        agent_name: str = "Fake",
        agent_types: Iterable[str] = ("fake",),
        clock: FakeClock | None = None,
    ) -> None:
        self._types = tuple(agent_types)
        if not self._types:
            raise InvalidArgument("agent_types", "must not be empty")
        if agent_id is not None and len(agent_id) != ID_LENGTH:
            raise InvalidArgument("agent_id", f"must have {ID_LENGTH} characters: {agent_id!r}")
        super().__init__(FakeClock() if clock is None else clock)
        self._lock = RLock()
        self._agent = agent_of(reply)
        self._agent_name = agent_name
        # What was neither read to its end nor closed.
        self._open: dict[Iterator[bytes | Wait], tuple[Call, FakeTurn | None]] = {}
        self.agent_id: str = agent_id or ""
        self.reset()

    def __repr__(self) -> str:
        return f"<FakeTransport, {len(self._calls)} calls>"

    def reset(self) -> None:
        """Forget everything that has happened and was to happen, and cut off what is still open.

        The agent that is there from the start stays, and so does the time.
        """
        with self._lock:
            for body in tuple(self._bodies):
                body.end("closed")
            self._open.clear()
            self._scripts: list[AgentFunction] = []
            # All turns, and those that the scripts answer.
            self._turns: list[FakeTurn] = []
            self._scripted: list[FakeTurn] = []
            self._calls: list[Call] = []
            self._expected: list[ExpectedCall] | None = None
            self._unexpected: list[str] = []
            self._planned: list[_PlannedFaults] = []
            self._server = FakeServer(self._types, self.clock, self._lock)
            store = self._server.store
            agent = store.create_agent(self._agent_name, self._types[0], id=self.agent_id)
            self.agent_id = agent["id"]

    def script(self, *replies: AgentReply) -> None:
        """Have each of `replies` answer one of the next turns, in the order of their messages."""
        with self._lock:
            self._scripts.extend(map(agent_of, replies))

    def inject(
        self,
        *faults: Fault,
        times: int = 1,
        operation: str | None = None,
        after: int = 0,
        when: Callable[[Call], object] | None = None,
    ) -> None:
        """Have all of `faults` happen to each of the next `times` calls of an operation.

        Faults that were injected first happen first.

        Args:
            operation: its name, such as `sessions.create_event`; without one, any call will do.
            after: how many such calls are left alone first.
            when: is given such a call, and returns whether it counts; for faults of one session,
                user or argument: `when=lambda call: call.user == "ann"`.
        """
        if operation is not None:
            calls.check_operation(operation)
        if times < 1:
            raise InvalidArgument("times", f"must be 1 or more, and is {times}")
        with self._lock:
            self._planned.append(_PlannedFaults(faults, times, operation, after, when))

    def expect(self, operation: str, **arguments: Any) -> None:
        """Expect a call of an operation with at least these arguments, once, in any order.

        As soon as anything is expected, a call that is not raises AssertionError. `arguments` are
        those of the HTTP request: `type`, not `type_`.
        """
        with self._lock:
            self._expected = [*(self._expected or ()), ExpectedCall(operation, arguments)]

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every call so far, oldest first, those that a fault befell included."""
        return tuple(self._calls)

    def assert_called(self, operation: str, **arguments: Any) -> Call:
        """Return the last call of an operation with these arguments, or tell the nearest one."""
        expected = ExpectedCall(operation, arguments)
        for call in reversed(self.calls):
            if not expected.differences(call):
                return call
        near = calls.nearest(expected, self.calls, expected.differences)
        made = f"nearest: {near}" if near else "no call was made"
        raise AssertionError(f"{expected} was not called\n{made}")

    def assert_all_used(self) -> None:
        """Raise AssertionError if a script, a fault or an expected call was not used up.

        A script is used up when it has come to its end, or to a `FallSilent` or a `Fail`.
        """
        with self._lock:
            problems = [
                f"script {number}: {left}"
                for number, (_, turn) in enumerate(zip_longest(self._scripts, self._scripted), 1)
                if (left := "no turn has used it" if turn is None else turn.left)
            ]
            problems += [f"never happened: {planned}" for planned in self._planned]
            problems += [f"never called: {expected}" for expected in self._expected or ()]
        _raise_if("not all was used:", problems)

    def assert_nothing_unexpected(self) -> None:
        """Raise AssertionError if a call was not expected, or an agent raised an exception.

        The code under test may have caught what was raised there and then.
        """
        with self._lock:
            raised = [f"an agent raised {turn.error!r}" for turn in self._turns if turn.error]
            problems = [*self._unexpected, *raised]
        _raise_if("not expected:", problems)

    def assert_no_open_streams(self) -> None:
        """Raise AssertionError if an answer was neither read to its end nor closed.

        Closing the client does not count, nor does letting go of a synchronous stream.
        """
        with self._lock:
            left = [str(call) for call, _ in self._open.values()]
        _raise_if("left open:", left)

    def installed(self) -> AbstractContextManager[FakeTransport]:
        """Have each `Flux0()` that is made without a transport within a `with` block use the fake.

        It holds for all threads and tasks of the process.
        """
        from flux0.client.transports import default_transport  # noqa: PLC0415 - rarely needed

        return default_transport(self)

    def serve(self, port: int = 0) -> AbstractContextManager[str]:
        """Return a block that serves the fake on `port`, by default a free one, and has its URL."""
        from flux0.testing.fake.serving import serve  # noqa: PLC0415 - loads http.server

        return serve(self, port)

    def answer(self, request: Request, loop: Loop | None) -> Waits[Response[FakeBody]]:
        """Return the answer to `request`; see `SharedTransport.answer`."""
        with self._lock:
            made, number = self._calls, len(self._calls)
            call = calls.call_of(request, self.clock.now())
            made.append(call)
            self._check_expected(call)
            faults = self._take_faults(call)
        body = None
        try:
            instead = yield from self._apply_faults(request, faults, acted=False)
            answer = instead or self._served(request, loop)
            turn = answer.body if isinstance(answer.body, FakeTurn) else None
            content = b"" if turn else cast("bytes", answer.body)
            streams = request.is_streaming(answer.status_code)
            timeout = request.timeout.idle if streams else request.timeout.read
            pieces = with_faults(iter(turn or filter(None, (content,))), faults)
            body = FakeBody(pieces, timeout, self.clock, self._lock, self._ended)
            self._open[pieces] = call, turn
            self._bodies.add(body)
            yield from self._apply_faults(request, faults, acted=True)
        except BaseException as error:
            if body is not None:
                body.end("closed")
            if isinstance(error, TransportError):
                made[number] = evolve(call, answer=error)
            raise
        known = CallResponse(answer.status_code, answer.headers, calls.json_or_bytes(content))
        made[number] = evolve(call, answer=known)
        return evolve(answer, body=body)

    def _served(self, request: Request, loop: Loop | None) -> Response[Any]:
        """Return what the server answers, and have an agent begin if that is a turn."""
        with self._lock:
            answer = self._server.answer(request)
            if not isinstance(answer.body, FakeTurn):
                return answer
            agent, number = self._agent, len(self._scripted)
            self._turns.append(answer.body)
            if number < len(self._scripts):
                self._scripted.append(answer.body)
                agent = self._scripts[number]
        answer.body.begin(agent, loop)
        return answer

    def _check_expected(self, call: Call) -> None:
        if self._expected is None:
            return
        for expected in self._expected:
            if not expected.differences(call):
                self._expected.remove(expected)
                return
        near = calls.nearest(call, self._expected, lambda expected: expected.differences(call))
        left = f"nearest expected: {near}" if near else "no more calls are expected"
        problem = f"unexpected: {call}\n{left}"
        self._unexpected.append(problem)
        raise AssertionError(problem)

    def _take_faults(self, call: Call) -> tuple[Fault, ...]:
        for planned in self._planned:
            if planned.befall(call):
                if planned.times == 0:
                    self._planned.remove(planned)
                return planned.faults
        return ()

    def _apply_faults(
        self, request: Request, faults: Iterable[Fault], *, acted: bool
    ) -> Waits[Response[Any] | None]:
        """Do what keeps a call from the server, and return what comes in place of its answer."""
        for fault in faults:
            match fault:
                case Respond() if not acted:
                    return fault.answer()
                case Refuse(raises) if not acted:
                    raise raises("connection refused")
                case Stall(None, None) if not acted:
                    yield from self._late(inf, request)
                case Drop(after_acting) if after_acting is acted:
                    raise ConnectionInterrupted("the connection was closed before the response")
                case Delay(seconds) if acted:
                    yield from self._late(seconds, request)
                case _:
                    pass
        return None

    def _late(self, seconds: float, request: Request) -> Waits[None]:
        """Wait until an answer comes; raise ReadTimeout if that takes longer than the timeout."""
        timeout = request.timeout.read
        if seconds < (inf if timeout is None else timeout):
            yield Wait(self.clock.now() + seconds)
            return
        if timeout is None:
            raise AssertionError("no answer will come, and this call has no timeout to end it")
        yield Wait(self.clock.now() + timeout, timeout=True)
        raise timed_out(ReadTimeout, timeout)

    def _ended(self, pieces: Iterator[bytes | Wait], how: BodyEnd) -> None:
        _, turn = self._open[pieces]
        if how != "lost":
            del self._open[pieces]
        if how != "whole" and turn is not None:
            self._server.leave(turn)


def _raise_if(what: str, problems: list[str]) -> None:
    if problems:
        raise AssertionError("\n".join((what, *problems)))
