"""A transport that goes nowhere: a flux0 server in memory, for tests of code that uses flux0."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from threading import RLock
from typing import Any

from attrs import define

from flux0.domain.errors import ConnectionInterrupted, InvalidArgument, ReadTimeout
from flux0.ports import AsyncByteStream, ByteStream, Request, Response
from flux0.testing.fake.answer import FakeAnswer
from flux0.testing.fake.body import AsyncFakeBody, End, FakeBody, OpenBody
from flux0.testing.fake.calls import Call, ExpectedCall, call_of, nearest_call, nearest_expected
from flux0.testing.fake.clock import FakeClock
from flux0.testing.fake.faults import Drop, Fault, Refuse, Respond, Stall, with_faults
from flux0.testing.fake.scripts import Script
from flux0.testing.fake.server import ID_LENGTH, Agent, FakeServer
from flux0.testing.fake.steps import Reply, steps_of
from flux0.testing.fake.turn import FakeTurn


@define
class _PlannedFaults:
    """What is to go wrong with the next `times` calls of an operation, or of any."""

    faults: tuple[Fault, ...]
    times: int
    operation: str | None

    def __str__(self) -> str:
        of = f" of {self.operation}" if self.operation else ""
        return f"{', '.join(map(str, self.faults))} for {self.times} calls{of}"


class FakeTransport:
    """A `Transport` and an `AsyncTransport` that behave like a flux0 server of one's own.

    It answers as the released server does, errors included, keeps what that keeps, and has one
    agent to begin with. One fake may be used by many clients and threads at once; an agent runs in
    the thread that reads its stream, and must not wait for another that uses the fake.

    Args:
        reply: what agents answer: a text, steps of `flux0.testing`, or a function of the
            `UserMessage` that returns steps or, as a generator, yields them.
        agent_id: the id of the agent that is there from the start; it has 10 characters.
        agent_name: the name of that agent.
        agent_types: the types of which agents can be created; that agent is of the first.
        clock: the fake's time; by default it moves by itself, so that nothing ever waits.

    Attributes:
        agent_id: the id of the agent that is there from the start.
        clock: the fake's time.
    """

    def __init__(
        self,
        reply: Reply = "Hello",
        *,
        agent_id: str | None = None,
        agent_name: str = "Fake",
        agent_types: Iterable[str] = ("fake",),
        clock: FakeClock | None = None,
    ) -> None:
        types = tuple(agent_types)
        if not types:
            raise InvalidArgument("agent_types", "must not be empty")
        if agent_id is not None and len(agent_id) != ID_LENGTH:
            raise InvalidArgument("agent_id", f"must have {ID_LENGTH} characters: {agent_id!r}")
        self.clock = FakeClock() if clock is None else clock
        self._lock = RLock()
        self._agent = steps_of(reply)
        self._scripts: list[Script] = []
        self._scripts_begun = 0
        self._server = FakeServer(self._next_agent, types, self.clock)
        agent = self._server.store.create_agent(
            agent_name, types[0], None, id=agent_id, at=self.clock.now()
        )
        self.agent_id: str = agent["id"]
        self._calls: list[Call] = []
        self._expected: list[ExpectedCall] | None = None
        self._planned: list[_PlannedFaults] = []
        self._open: dict[OpenBody, Call] = {}
        self._left_open: list[Call] = []

    # --- what is to happen

    def script(self, *replies: Reply) -> None:
        """Have each of `replies` answer one of the next turns, in the order of their messages."""
        with self._lock:
            self._scripts.extend(map(Script, replies))

    def inject(self, *faults: Fault, times: int = 1, operation: str | None = None) -> None:
        """Have all of `faults` happen to each of the next `times` calls of an operation.

        Faults that were injected first happen first. An operation is named as the client names it,
        such as `sessions.create_event`; without one, any call will do.
        """
        if times < 1:
            raise InvalidArgument("times", f"must be 1 or more, and is {times}")
        with self._lock:
            self._planned.append(_PlannedFaults(faults, times, operation))

    def expect(self, operation: str, **arguments: Any) -> None:
        """Expect a call of an operation with at least these arguments, once, in any order.

        As soon as anything is expected, a call that is not raises AssertionError. `arguments` are
        those of the HTTP request: `type`, not `type_`.
        """
        with self._lock:
            self._expected = [*(self._expected or ()), ExpectedCall(operation, arguments)]

    # --- what has happened

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every call so far, oldest first, those that a fault befell included."""
        return tuple(self._calls)

    def assert_called(self, operation: str, **arguments: Any) -> Call:
        """Return the last call of an operation with at least these arguments.

        Raises:
            AssertionError: there was none; says which was most like it.
        """
        expected = ExpectedCall(operation, arguments)
        for call in reversed(self.calls):
            if not expected.differences(call):
                return call
        raise AssertionError(f"{expected} was not called\n{nearest_call(expected, self.calls)}")

    def assert_all_used(self) -> None:
        """Raise AssertionError if a script, a fault or an expected call was not used up."""
        with self._lock:
            problems = [
                f"script {number}: {problem}"
                for number, script in enumerate(self._scripts, start=1)
                if (problem := script.problem) is not None
            ]
            problems += [f"never happened: {planned}" for planned in self._planned]
            problems += [f"never called: {expected}" for expected in self._expected or ()]
        if problems:
            raise AssertionError("\n".join(("not all was used:", *problems)))

    def assert_no_open_streams(self) -> None:
        """Raise AssertionError if an answer was neither read to its end nor closed.

        Closing the client does not count, nor does letting go of a synchronous stream.
        """
        with self._lock:
            calls = [*self._left_open, *self._open.values()]
        if calls:
            raise AssertionError("\n".join(("left open:", *map(str, calls))))

    # --- the transport

    def send(self, request: Request) -> Response[ByteStream]:
        """Answer `request`; see `Transport.send`."""
        answer, body = self._exchange(request)
        return Response(answer.status_code, answer.headers, FakeBody(body))

    def close(self) -> None:
        """Break off what is still open, of any client. The fake goes on, as a server would."""
        with self._lock:
            for body, call in list(self._open.items()):
                self._left_open.append(call)
                body.end("closed")

    async def send_async(self, request: Request) -> Response[AsyncByteStream]:
        """Answer `request`; see `AsyncTransport.send_async`."""
        answer, body = self._exchange(request)
        return Response(answer.status_code, answer.headers, AsyncFakeBody(body))

    async def close_async(self) -> None:
        """Do as `close` does."""
        self.close()

    @property
    def time(self) -> FakeClock:
        """The time that a client goes by: the fake's clock."""
        return self.clock

    # --- within

    def _next_agent(self) -> Agent:
        if self._scripts_begun == len(self._scripts):
            return self._agent
        self._scripts_begun += 1
        return self._scripts[self._scripts_begun - 1]

    def _exchange(self, request: Request) -> tuple[FakeAnswer, OpenBody]:
        with self._lock:
            call = call_of(request)
            self._calls.append(call)
            self._check_expected(call)
            faults = self._take_faults(call)
            answer = self._failed_before(request, faults) or self._server.answer(request)
            streaming = request.stream and 200 <= answer.status_code < 300  # noqa: PLR2004 - success
            body = OpenBody(
                with_faults(_pieces(answer), faults),
                request.timeout.idle if streaming else request.timeout.read,
                self.clock,
                self._lock,
                lambda how: self._ended(body, answer, how),
            )
            self._open[body] = call
            if Drop(after_acting=True) in faults:
                body.end("closed")
                raise ConnectionInterrupted("the connection broke off before the answer")
            return answer, body

    def _check_expected(self, call: Call) -> None:
        if self._expected is None:
            return
        for expected in self._expected:
            if not expected.differences(call):
                self._expected.remove(expected)
                return
        raise AssertionError(f"unexpected: {call}\n{nearest_expected(call, self._expected)}")

    def _take_faults(self, call: Call) -> tuple[Fault, ...]:
        for planned in self._planned:
            if planned.operation in {None, call.operation}:
                planned.times -= 1
                if planned.times == 0:
                    self._planned.remove(planned)
                return planned.faults
        return ()

    def _failed_before(self, request: Request, faults: Iterable[Fault]) -> FakeAnswer | None:
        """Do what keeps a call from the server; return the answer that it gets instead, if any."""
        for fault in faults:
            match fault:
                case Respond():
                    return fault.answer()
                case Refuse(raises):
                    raise raises("the connection was refused")
                case Drop(after_acting=False):
                    raise ConnectionInterrupted("the connection broke off before the answer")
                case Stall(None, None):
                    self._wait_in_vain(request.timeout.read)
                case _:
                    pass
        return None

    def _wait_in_vain(self, timeout: float | None) -> None:
        if timeout is None:
            raise AssertionError("no answer will come, and this call has no timeout to end it")
        self.clock.move_to(self.clock.now() + timeout)
        raise ReadTimeout(f"nothing came for {timeout:g} s")

    def _ended(self, body: OpenBody, answer: FakeAnswer, how: End) -> None:
        call = self._open.pop(body)
        if how == "dropped":
            self._left_open.append(call)
        if how != "whole" and isinstance(answer.body, FakeTurn):
            self._server.leave(answer.body)


def _pieces(answer: FakeAnswer) -> Iterator[bytes | float]:
    if isinstance(answer.body, FakeTurn):
        return answer.body
    return iter((answer.body,) if answer.body else ())
