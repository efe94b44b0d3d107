"""The command `chat`, which sends messages or has a conversation."""

from __future__ import annotations

import codecs
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from io import StringIO, TextIOWrapper
from itertools import chain
from typing import TextIO, cast

from attrs import define, field

from flux0 import (
    Conversation,
    EventSource,
    Flux0,
    Flux0Error,
    StreamEvent,
    to_dict,
)
from flux0.cli.choices import choose_agent
from flux0.cli.descriptions import describe_data, describe_error
from flux0.cli.output import (
    Output,
    output_streams_are_one_file,
    print_note,
    print_problem,
)
from flux0.cli.turn_view import TurnView
from flux0.domain import arguments
from flux0.models import Agent, AgentNotFound, InvalidArgument

_PROMPT = "> "
_EXIT_COMMANDS = {"exit", "quit"}


def messages_to_send(message: str | None, *, lines: bool) -> Iterable[tuple[int, str]]:
    """Return the messages to send, from the argument MESSAGE and the piped input.

    If `lines` is True, each line is a message, with the line's number. Otherwise there is one
    message: `message`, or the piped input, or both with a blank line between them.
    """
    stream = standard_input()
    texts: Iterator[tuple[int, str]]
    if lines:
        numbered = enumerate(stream, 1)
        texts = ((number, line.strip()) for number, line in numbered if not line.isspace())
    else:
        is_blank = message is not None and not message.strip()
        piped = "" if is_blank or stream.isatty() else stream.read().rstrip()
        texts = iter([(1, "\n\n".join(filter(None, (message, piped))))])
    number, first = next(texts, (1, ""))
    if not first.strip():
        problem = "must not be empty: pass a message, or pipe text into the command"
        raise InvalidArgument("message", problem)
    return chain([(number, arguments.text("message", first))], texts)


def start_conversation(
    flux0: Flux0, *, agent: str | None, agent_type: str | None, session_id: str | None
) -> Conversation:
    if session_id is None:
        chosen = _chosen_agent(flux0, agent, agent_type)
        conversation, name = flux0.conversation(agent=chosen), chosen.name
    else:
        session = flux0.sessions.retrieve(session_id=session_id)
        conversation, name = flux0.conversation(session=session), f"agent {session.agent_id}"
    print_note(f"Session {conversation.session_id} with {name}.")
    return conversation


@define(eq=False)
class Chat:
    """Writes the turns of a conversation to the terminal or to a pipe.

    A terminal shows complete turns. If standard output is a pipe, only the answers are written to
    the pipe, and everything else to standard error. If standard output and standard error are the
    same pipe or file, complete turns are written to it. If `as_json` is True, each event is written
    to standard output as a line of JSON. `explain` converts an error to a message.
    """

    _conversation: Conversation
    _explain: Callable[[Flux0Error], str] = describe_error
    _as_json: bool = field(default=False, alias="as_json", kw_only=True)
    _output: Output = field(factory=Output, init=False)
    _view: TurnView = field(init=False)

    def __attrs_post_init__(self) -> None:
        is_one = self._output.is_terminal or output_streams_are_one_file()
        aside = self._output if is_one else Output(stderr=True)
        self._view = TurnView(self._output, aside)

    def send(self, message: str) -> bool:
        with self._conversation.send(message) as stream:
            try:
                for event in stream:
                    if self._as_json:
                        self._write_json(event, stream.correlation_id)
                    else:
                        self._view.show(event, stream)
            finally:
                self._view.finish(stream)
            return stream.error is None

    def show_example(self, message: str) -> bool:
        if not self._as_json:
            self._view.user(message)
        return self.send(message)

    def send_all(self, messages: Iterable[tuple[int, str]], lines: bool, keep_going: bool) -> bool:
        """Send messages until a turn fails, or all messages if `keep_going` is True.

        If `lines` is True and the output is JSON, write one object for each message instead of its
        events. Return True if all turns succeeded.
        """
        succeeded = True
        for sent, (number, message) in enumerate(messages):
            if sent and not self._as_json:
                self._output.write("\n")
            if lines and self._as_json:
                succeeded &= self._send_line(number, message)
            else:
                succeeded &= self._send_and_report(message)
            if not (succeeded or keep_going):
                break
        return succeeded

    def converse(self) -> None:
        """Send each message that the user types. Ctrl-C cancels only the current turn.

        Errors of single turns do not change the exit code, because the user has seen them.
        """
        if self._output.is_terminal:
            self._show_history()
        for message in self._read_messages():
            try:
                self._send_and_report(message)
            except KeyboardInterrupt:
                print_note("Turn cancelled.")
            self._output.write("\n")

    def _send_and_report(self, message: str) -> bool:
        try:
            return self.send(message)
        except Flux0Error as error:
            print_problem(self._explain(error))
            return False

    def _send_line(self, number: int, message: str) -> bool:
        text, problem = "", None
        try:
            text = self._conversation.ask(message).text
        except Flux0Error as error:
            problem = self._explain(error)
        session = self._conversation.session_id
        self._output.json({"line": number, "session_id": session, "text": text, "error": problem})
        return problem is None

    def _show_history(self) -> None:
        history = self._conversation.history()
        for number, event in enumerate(history):
            if event.source == EventSource.USER:
                self._view.user(describe_data(event.data))
            else:
                self._view.message(event.data, str(number))
        self._view.finish()
        if history:
            self._output.write("\n")

    def _write_json(self, event: StreamEvent, correlation_id: str | None) -> None:
        turn = {"session_id": self._conversation.session_id, "correlation_id": correlation_id}
        self._output.json({"event": event.event, **turn, **to_dict(event)})

    def _read_messages(self) -> Iterator[str]:
        print_note('Ctrl-C cancels a turn. A second Ctrl-C, Ctrl-D or "exit" ends the program.')
        with contextlib.suppress(ImportError):
            # The module readline adds editing and a history of lines to the function `input`.
            import_module("readline")
        while True:
            prompt = _PROMPT if self._output.is_terminal else ""
            # If standard output is a pipe, `input` writes the prompt into the pipe. Therefore,
            # write the prompt to standard error.
            if not prompt:
                Output(stderr=True).write(_PROMPT)
            try:
                line = input(prompt).strip()
            except (EOFError, KeyboardInterrupt) as reason:
                Output(stderr=not prompt).write("\n")
                if isinstance(reason, EOFError):
                    return
                raise
            if line in _EXIT_COMMANDS:
                return
            if line:
                yield line


def standard_input() -> TextIO:
    """Return standard input as text. Bytes that are not UTF-8 become surrogates.

    Then a message with such bytes raises an error that describes the problem.
    """
    if sys.stdin is None:  # The shell can close standard input (`<&-`).
        return StringIO()
    stream = cast("TextIOWrapper", sys.stdin)
    # If no locale is set, Python reads standard input as ASCII, although the input is usually
    # UTF-8. A file can begin with a byte order mark, which the codec utf-8-sig removes.
    is_utf8 = codecs.lookup(stream.encoding).name in {"ascii", "utf-8"}
    stream.reconfigure(encoding="utf-8-sig" if is_utf8 else None, errors="surrogateescape")
    return stream


def _chosen_agent(flux0: Flux0, wanted: str | None, agent_type: str | None) -> Agent:
    if agent_type is None:
        return choose_agent(flux0, wanted)
    try:
        return flux0.agents.first(type_=agent_type)
    except AgentNotFound:
        return flux0.agents.create(name=agent_type, type_=agent_type)
