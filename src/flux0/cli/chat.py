"""Talking to an agent: one turn, or one after the other."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib import import_module
from io import TextIOWrapper
from typing import cast

import typer

from flux0 import Conversation, EventSource, EventType, Flux0, Flux0Error, to_dict
from flux0.cli.output import Output, one_line, print_note, print_problem
from flux0.cli.turn_view import Blocks, TurnView
from flux0.cli.wording import data_in_words, error_in_words
from flux0.models import Agent

_PROMPT = "> "
_FAREWELLS = {"exit", "quit"}


def begin(
    flux0: Flux0,
    *,
    agent_id: str | None,
    agent_type: str | None,
    session_id: str | None,
    quiet: bool,
) -> Conversation:
    """Take up a session or open one, and say which unless `quiet`."""
    if session_id is not None:
        conversation = flux0.conversation(session=session_id)
        partner = f"agent {conversation.session.agent_id}"
    else:
        agent = _chosen_agent(flux0, agent_id, agent_type)
        conversation = flux0.conversation(agent=agent)
        partner = agent.name
    if not quiet:
        print_note(f"Session {conversation.session.id} with {partner}.")
    return conversation


class Chat:
    """A conversation on the terminal.

    Args:
        flux0: the client to have it with.
        conversation: the conversation.
        server_url: where the server is, for what is said about problems.
    """

    def __init__(self, flux0: Flux0, conversation: Conversation, server_url: str) -> None:
        self._flux0 = flux0
        self._conversation = conversation
        self._server_url = server_url
        self._output = Output()
        self._blocks = Blocks(self._output, self._output)

    def show_history(self) -> None:
        """Write what was said so far."""
        events = self._flux0.sessions.list_events(
            session_id=self._conversation.session.id, types=(EventType.MESSAGE, EventType.TOOL)
        )
        for event in events:
            if event.source == EventSource.USER:
                self._blocks.user(data_in_words(event.data))
            else:
                self._blocks.message(event.data, event.id)
        self._blocks.end()
        if events:
            self._output.write("\n")

    def say(self, message: str) -> bool:
        """Send a message and write the turn as it comes; return whether the agent had no error."""
        with self._conversation.send(message) as stream:
            view = TurnView(self._blocks, lambda: stream.messages)
            try:
                for event in stream:
                    view.show(event)
            finally:
                view.end()
            return stream.error is None

    def say_in_json(self, message: str) -> bool:
        """Do as `say` does, with each event as a line of JSON."""
        with self._conversation.send(message) as stream:
            for event in stream:
                self._output.json(to_dict(event))
            return stream.error is None

    def demonstrate(self, message: str) -> bool:
        """Do as `say` does, below the message as if somebody had typed it."""
        self._blocks.user(message)
        return self.say(message)

    def converse(self) -> bool:
        """Answer each line of standard input with a turn.

        A turn that fails, or that Ctrl-C ends, ends alone. Returns whether nobody is left to be
        told of failures: False where a turn failed and nobody sits at the terminal.
        """
        went_well = True
        is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
        for message in self._lines(is_interactive=is_interactive):
            try:
                went_well &= self.say(message)
            except KeyboardInterrupt:
                print_note("The turn was ended.")
            except Flux0Error as error:
                went_well = False
                print_problem(error_in_words(error, self._server_url))
            self._output.write("\n")
        return went_well or is_interactive

    def _lines(self, *, is_interactive: bool) -> Iterator[str]:
        """Yield the lines that say anything, until one says farewell or the input ends."""
        cast("TextIOWrapper", sys.stdin).reconfigure(errors="replace")
        prompt = ""
        if is_interactive:
            prompt = _PROMPT
            print_note("Ctrl-C ends a turn; a second one, Ctrl-D or exit leaves.")
            with contextlib.suppress(ImportError):
                import_module("readline")  # Edits and recalls lines, where there is one.
        while True:
            try:
                line = input(prompt).strip()
            except (EOFError, KeyboardInterrupt) as reason:
                if prompt:
                    self._output.write("\n")
                if isinstance(reason, EOFError):
                    return
                raise
            if line in _FAREWELLS:
                return
            if line:
                yield line


def _chosen_agent(flux0: Flux0, agent_id: str | None, agent_type: str | None) -> Agent:
    """Return the agent with this id, else the first of this type, else the only one."""
    if agent_id is not None:
        return flux0.agents.retrieve(agent_id=agent_id)
    agents = flux0.agents.list()
    if agent_type is not None:
        found = next((agent for agent in agents if agent.type == agent_type), None)
        return found or flux0.agents.create(name=agent_type, type_=agent_type)
    if len(agents) == 1:
        return agents[0]
    if not agents:
        raise typer.BadParameter("The server has no agent yet; --agent-type TYPE creates one.")
    listed = "".join(f"\n{one_line(f'{agent.id} {agent.name} ({agent.type})')}" for agent in agents)
    raise typer.BadParameter(f"The server has several agents; pass --agent ID for one of{listed}")
