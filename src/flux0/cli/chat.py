"""Talking to an agent: one turn, or one after the other."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from io import StringIO, TextIOWrapper
from typing import TextIO, cast

import typer

from flux0 import Conversation, Event, EventSource, EventStream, Flux0, Flux0Error, to_dict
from flux0.cli.output import Output, one_line, print_note, print_problem
from flux0.cli.turn_view import TurnView
from flux0.cli.wording import data_in_words, error_in_words
from flux0.domain import arguments
from flux0.models import Agent, AgentNotFound, InvalidArgument

_PROMPT = "> "
_FAREWELLS = {"exit", "quit"}


def is_asked() -> bool:
    """Whether somebody sits at standard input, and can be asked for messages."""
    return _standard_input().isatty()


def whole_message(message: str | None) -> str:
    """Return the message to send: `message` with what is piped in below it, or that alone.

    Raises:
        InvalidArgument: there is none, it is empty, or UTF-8 cannot carry it.
    """
    standard_input = _standard_input()
    piped = "" if standard_input.isatty() or message == "" else standard_input.read().rstrip()
    if not (piped if message is None else message).strip():
        raise InvalidArgument("message", "is empty: pass one, or pipe it into standard input")
    return arguments.text("message", "\n\n".join(filter(None, (message, piped))))


def begin(
    flux0: Flux0, *, agent_id: str | None, agent_type: str | None, session_id: str | None
) -> Conversation:
    """Take up a session or open one, and say which on standard error."""
    if session_id is not None:
        conversation = flux0.conversation(session=session_id)
        partner = f"agent {conversation.session.agent_id}"
    else:
        agent = _chosen_agent(flux0, agent_id, agent_type)
        conversation = flux0.conversation(agent=agent)
        partner = agent.name
    print_note(f"Session {conversation.session.id} with {partner}.")
    return conversation


class Chat:
    """A conversation that is written to the terminal, or to what reads standard output.

    A terminal gets all of it. A pipe gets the text of the answers, or each event as a line of JSON;
    all else goes to standard error.
    `explain` says what went wrong where a turn fails and the conversation goes on.
    """

    def __init__(
        self,
        conversation: Conversation,
        explain: Callable[[Flux0Error], str] = error_in_words,
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
            if self._as_json:
                self._write_json(stream)
                return stream.error is None
            try:
                for event in stream:
                    self._view.show(event, stream)
            finally:
                self._view.end(stream)
            return stream.error is None

    def demonstrate(self, message: str) -> bool:
        """Send a message, and write it above the turn as if somebody had typed it."""
        self._view.user(message)
        return self.say(message)

    def converse(self, *, interactive: bool) -> bool:
        """Answer each line of standard input with a turn; a turn that fails, fails alone.

        Somebody who sits there is prompted, and ends with Ctrl-C no more than a turn. Return False
        where a turn failed and nobody has seen it.
        """
        if interactive and self._output.is_terminal:
            self._show_history()
        went_well = True
        for message in self._asked() if interactive else map(str.strip, _standard_input()):
            if not message:
                continue
            try:
                went_well &= self.say(message)
            except KeyboardInterrupt:
                if not interactive:
                    raise
                print_note("The turn was ended.")
            except Flux0Error as error:
                went_well = False
                print_problem(self._explain(error))
            if not self._as_json:
                self._output.write("\n")
        return went_well or interactive

    def _show_history(self) -> None:
        """Write what was said so far."""
        history = self._conversation.history()
        for number, event in enumerate(history):
            if isinstance(event, Event) and event.source == EventSource.USER:
                self._view.user(data_in_words(event.data))
            else:
                self._view.message(event.data, str(number))
        self._view.end()
        if history:
            self._output.write("\n")

    def _write_json(self, stream: EventStream) -> None:
        for event in stream:
            turn = {
                "event": event.event,
                "session_id": self._conversation.session.id,
                "correlation_id": stream.correlation_id,
            }
            self._output.json({**turn, **to_dict(event)})

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
            yield line


def _standard_input() -> TextIO:
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
