"""Talking to an agent: one turn, or one after the other."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from io import StringIO, TextIOWrapper
from itertools import chain
from typing import TextIO, cast

import typer

from flux0 import Conversation, Event, EventSource, Flux0, Flux0Error, StreamEvent, to_dict
from flux0.cli.output import Output, one_line, print_note, print_problem
from flux0.cli.turn_view import TurnView
from flux0.cli.wording import describe_data, describe_error
from flux0.domain import arguments
from flux0.models import Agent, AgentNotFound, InvalidArgument

_PROMPT = "> "
_FAREWELLS = {"exit", "quit"}


def messages_to_send(message: str | None, *, lines: bool) -> Iterable[str]:
    """Return `message` with what is piped in below it, that alone, or each of its lines."""
    stream = standard_input()
    first = ""
    rest: Iterable[str] = ()
    if lines:
        said = (line.strip() for line in stream if not line.isspace())
        first, rest = next(said, ""), said
    elif message is None or message.strip():
        piped = "" if stream.isatty() else stream.read().rstrip()
        first = "\n\n".join(filter(None, (message, piped)))
    if not first.strip():
        raise InvalidArgument("message", "is empty: pass one, or pipe it into standard input")
    return chain([arguments.text("message", first)], rest)


def begin(
    flux0: Flux0, *, agent_id: str | None, agent_type: str | None, session_id: str | None
) -> Conversation:
    """Take up a session or open one, and say which on standard error."""
    agent = None if session_id is not None else _chosen_agent(flux0, agent_id, agent_type)
    conversation = flux0.conversation(agent=agent, session=session_id)
    session = conversation.session
    print_note(f"Session {session.id} with {agent.name if agent else f'agent {session.agent_id}'}.")
    return conversation


class Chat:
    """A conversation that is written to the terminal, or to what reads standard output.

    A terminal gets all of it. A pipe gets the text of the answers, or each event as a line of JSON;
    all else goes to standard error. `explain` puts into words what went wrong in a turn.
    """

    def __init__(
        self,
        conversation: Conversation,
        explain: Callable[[Flux0Error], str] = describe_error,
        *,
        as_json: bool = False,
    ) -> None:
        self._conversation = conversation
        self._explain = explain
        self._as_json = as_json
        self._output = Output()
        aside = self._output if self._output.is_terminal else Output(stderr=True)
        self._view = TurnView(self._output, aside)

    def say(self, message: str) -> bool:
        """Send a message and write the turn as it comes; return whether the agent had no error."""
        with self._conversation.send(message) as stream:
            try:
                for event in stream:
                    if self._as_json:
                        self._write_json(event, stream.correlation_id)
                    else:
                        self._view.show(event, stream)
            finally:
                self._view.end(stream)
            return stream.error is None

    def demonstrate(self, message: str) -> bool:
        """Send a message, and write it above the turn as if somebody had typed it."""
        self._view.user(message)
        return self.say(message)

    def say_all(self, messages: Iterable[str]) -> bool:
        """Send each message; a turn that fails, fails alone. Return whether none did."""
        went_well = True
        for number, message in enumerate(messages):
            if number and not self._as_json:
                self._output.write("\n")
            went_well &= self._try(message)
        return went_well

    def converse(self) -> bool:
        """Answer what somebody types, who ends with Ctrl-C no more than a turn."""
        if self._output.is_terminal:
            self._show_history()
        for message in self._asked():
            try:
                self._try(message)
            except KeyboardInterrupt:
                print_note("The turn was ended.")
            self._output.write("\n")
        return True  # Whoever sits there has seen what failed.

    def _try(self, message: str) -> bool:
        try:
            return self.say(message)
        except Flux0Error as error:
            print_problem(self._explain(error))
            return False

    def _show_history(self) -> None:
        """Write what was said so far."""
        history = self._conversation.history()
        for number, event in enumerate(history):
            if isinstance(event, Event) and event.source == EventSource.USER:
                self._view.user(describe_data(event.data))
            else:
                self._view.message(event.data, str(number))
        self._view.end()
        if history:
            self._output.write("\n")

    def _write_json(self, event: StreamEvent, correlation_id: str | None) -> None:
        turn = {"session_id": self._conversation.session.id, "correlation_id": correlation_id}
        self._output.json({"event": event.event, **turn, **to_dict(event)})

    def _asked(self) -> Iterator[str]:
        """Yield what is typed, line by line, until a line says farewell or the input ends."""
        print_note("Ctrl-C ends a turn; a second one, Ctrl-D or exit leaves.")
        with contextlib.suppress(ImportError):
            import_module("readline")  # Edits and recalls lines, where there is one.
        while True:
            prompt = _PROMPT if self._output.is_terminal else ""
            if not prompt:  # input() would write it to standard output.
                Output(stderr=True).write(_PROMPT)
            try:
                line = input(prompt).strip()
            except (EOFError, KeyboardInterrupt) as reason:
                Output(stderr=not prompt).write("\n")
                if isinstance(reason, EOFError):
                    return
                raise
            if line in _FAREWELLS:
                return
            if line:
                yield line


def standard_input() -> TextIO:
    """Return standard input, where what is not in its encoding is replaced."""
    if sys.stdin is None:  # As it is where a shell has closed it.
        return StringIO()
    cast("TextIOWrapper", sys.stdin).reconfigure(errors="replace")
    return sys.stdin


def _chosen_agent(flux0: Flux0, agent_id: str | None, agent_type: str | None) -> Agent:
    """Return the agent with this id, else the first of this type, else the only one."""
    if agent_id is not None:
        return flux0.agents.retrieve(agent_id=agent_id)
    if agent_type is not None:
        try:
            return flux0.agents.first(type_=agent_type)
        except AgentNotFound:
            return flux0.agents.create(name=agent_type, type_=agent_type)
    agents = flux0.agents.list()
    if len(agents) == 1:
        return agents[0]
    if not agents:
        raise typer.BadParameter("The server has no agent yet; --agent-type TYPE creates one.")
    listed = "".join(f"\n{one_line(f'{agent.id} {agent.name} ({agent.type})')}" for agent in agents)
    raise typer.BadParameter(f"The server has several agents; pass --agent ID for one of{listed}")
