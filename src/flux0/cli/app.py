"""The commands of `flux0-client`, with their options and help."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from flux0 import EventSource, EventType, Flux0, Flux0Error, __version__, to_dict
from flux0.cli.descriptions import Listed, describe_error
from flux0.cli.options import (
    MAX_SECONDS,
    AgentId,
    CommandWithId,
    Json,
    Port,
    SessionId,
    argument,
    common_options,
    complete_agents,
    complete_sessions,
    option,
    with_common_options,
)
from flux0.middleware.logging import TURN_ENDED
from flux0.models import InvalidArgument

if TYPE_CHECKING:
    from flux0.testing import FakeTransport

_FAILED, _WRONG_USE, _INTERRUPTED = 1, 2, 130  # The exit codes of the command line.
_CLOCK_SECONDS = 0.5  # The clock of `serve-demo` is at most this late.

app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # With this setting, the names of options are shortened on a narrow terminal.
    rich_markup_mode=None,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "terminal_width": min(get_terminal_size().columns, 80),
    },
)


@with_common_options
def _accept_options(_: typer.Context) -> None:
    """Accept the common options between a group and its command."""


def _examples(*commands: str) -> str:
    # In a help text, typer keeps the line breaks of a paragraph that begins with a backspace.
    return "\n".join(("\b", "Examples:", *(f"  flux0-client {command}" for command in commands)))


_Query: TypeAlias = "Callable[..., Listed]"
_group = partial(typer.Typer, no_args_is_help=True, callback=_accept_options)
agents: typer.Typer = _group(help="List, show and create agents.")
sessions: typer.Typer = _group(help="List, show and create sessions.")
app.add_typer(agents, name="agents")
app.add_typer(sessions, name="sessions")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flux0-client {__version__}")
        raise typer.Exit


_VERSION = option("--version", None, "Print the version.", callback=_print_version, is_eager=True)


_ROOT_EXAMPLES = _examples(
    "demo                       Show an example turn.",
    'chat "What\'s the weather?" Send one message.',
    "chat                       Have a conversation.",
    "events qH-klmX3cz          List the stored events of a session.",
)


@app.callback(epilog=_ROOT_EXAMPLES)
@with_common_options
def root(_: typer.Context, *, _version: Annotated[bool, _VERSION] = False) -> None:
    """Talk to the agents of a flux0 server, and list its agents, sessions and events."""


_MESSAGE = "Text to send. Default: the piped input; in a terminal, a prompt for each message."
_AGENT = "Id or unique name of the agent. Default: the server's only agent."
_SESSION = "Id of a session to continue. Default: a new session."
_CONTINUE = "Continue the last session that was created for the user."
_TYPE = "Agent type: use the first agent of this type, or create it."
_LINES = "Send each piped line as a message. With --json, print one object for each line."
_KEEP_GOING = "After a failure, send the other lines, too."
_IDLE = "Longest time without an event, after which the turn fails. Default: 600."
_DEMO = "Use the demo agent, without a server."

_CHAT_EXAMPLES = _examples(
    'chat "What\'s the weather in SF?"',
    'chat "Summarize this." < report.txt > summary.txt',
    'chat --continue "And tomorrow?"',
)


@app.command("chat", epilog=_CHAT_EXAMPLES)
@with_common_options
def chat(
    context: typer.Context,
    message: Annotated[str | None, argument("MESSAGE", _MESSAGE)] = None,
    *,
    agent: Annotated[
        str | None, option("--agent -a", "AGENT", _AGENT, autocompletion=complete_agents)
    ] = None,
    agent_type: Annotated[str | None, option("--agent-type", "TYPE", _TYPE)] = None,
    session: Annotated[
        str | None, option("--session -s", "ID", _SESSION, autocompletion=complete_sessions)
    ] = None,
    continue_last: Annotated[bool | None, option("--continue -c", None, _CONTINUE)] = None,
    lines: Annotated[bool, option("--lines", None, _LINES)] = False,
    keep_going: Annotated[bool, option("--keep-going", None, _KEEP_GOING)] = False,
    idle_timeout: Annotated[
        int | None, option("--idle-timeout", "SECONDS", _IDLE, min=1, max=MAX_SECONDS)
    ] = None,
    demo: Annotated[bool, option("--demo", None, _DEMO)] = False,
) -> None:
    """Talk to an agent: one turn for a MESSAGE, or a conversation.

    A terminal shows the complete turn while it streams. If the output is piped, only the text of
    the answer is written to it, and everything else to standard error. Piped input is the message;
    if there is a MESSAGE, the input is appended to it as context.

    In a conversation, Ctrl-C cancels the turn. A second Ctrl-C, Ctrl-D or "exit" ends the program.
    """
    if sum(choice is not None for choice in (agent, agent_type, session, continue_last)) > 1:
        problem = "--agent, --agent-type, --session and --continue cannot be combined."
        raise typer.BadParameter(problem)
    if agent_type == "":
        raise typer.BadParameter("must not be empty.", param_hint="--agent-type")
    if lines and message is not None:
        problem = "cannot be combined with MESSAGE: the messages are read from standard input."
        raise typer.BadParameter(problem, param_hint="--lines")
    if keep_going and not lines:
        raise typer.BadParameter("has no effect without --lines.", param_hint="--keep-going")
    as_json = common_options(context).as_json
    explain = partial(describe_error, ids={"session": session})
    with _client(context, explain, idle_timeout, demo=demo) as flux0:
        from flux0.cli.chat import (  # noqa: PLC0415 - slow
            Chat,
            messages_to_send,
            standard_input,
            start_conversation,
        )

        interactive = message is None and standard_input().isatty()
        if as_json and interactive:
            raise typer.BadParameter("needs a MESSAGE or piped input.", param_hint="--json")
        messages = None if interactive else messages_to_send(message, lines=lines)
        if continue_last:
            from flux0.cli.choices import last_session  # noqa: PLC0415 - loads rich

            session = last_session(flux0).id
        conversation = start_conversation(
            flux0, agent=agent, agent_type=agent_type, session_id=session
        )
        chat = Chat(conversation, explain, as_json=as_json)
        if messages is None:
            chat.converse()
        elif not chat.send_all(messages, lines=lines, keep_going=keep_going):
            raise typer.Exit(_FAILED)


@app.command(epilog="To talk to the agent: flux0-client chat --demo")
def demo(context: typer.Context, *, as_json: Json = False) -> None:
    """Show a turn with reasoning, a tool call and an answer.

    The agent runs in memory, so no server is needed.
    """
    as_json = common_options(context).as_json
    with _client(context, demo=True) as flux0:
        from flux0.cli.chat import Chat  # noqa: PLC0415 - slow

        conversation = flux0.conversation(agent=flux0.agents.list()[0])
        message = "What's the weather like in San Francisco?"
        Chat(conversation, as_json=as_json).show_example(message)


@app.command()
def serve_demo(context: typer.Context, *, port: Port = 8080) -> None:
    """Serve the demo agent until Ctrl-C.

    The command prints the URL when it is ready. It listens on 127.0.0.1.
    """
    _reject_json(context)
    with _exit_codes(describe_error):
        transport = _demo_transport()
        clock = transport.clock
        try:
            with transport.serve(port) as url:
                typer.echo(url)
                while True:
                    time.sleep(_CLOCK_SECONDS)
                    clock.advance(max(time.time() - clock.now(), 0))
        except OSError as error:
            raise InvalidArgument("port", f"cannot be {port}: {error.strerror}") from error


_HTTP = "Serve streamable HTTP until Ctrl-C, and print the URL."
_ERRORS = "Show assistants the text of errors. By default, they get a general sentence."


@app.command("mcp")
@with_common_options
def mcp(
    context: typer.Context,
    *,
    http: Annotated[bool, option("--http", None, _HTTP)] = False,
    host: Annotated[str, option("--host", "HOST", "Address to listen on.")] = "127.0.0.1",
    port: Port = 8000,
    show_errors: Annotated[bool, option("--show-errors", None, _ERRORS)] = False,
) -> None:
    """Offer the agents as MCP tools.

    An assistant can then use them over the Model Context Protocol. The assistant starts this
    command, and uses standard input and output. With --http, assistants connect to the URL instead.
    """
    _reject_json(context)
    for name in ("host", "port"):
        source: Any = context.get_parameter_source(name)
        if not http and source.name != "DEFAULT":
            raise typer.BadParameter("has no effect without --http.", param_hint=f"--{name}")
    with _client(context) as flux0:
        import anyio  # noqa: PLC0415 - slow

        from flux0.cli.mcp_server import (  # noqa: PLC0415 - an extra
            create_server,
            serve_http,
            serve_stdio,
        )

        flux0.agents.list()  # List the agents to fail at once if the server cannot be reached.
        server = create_server(flux0, show_errors=show_errors)
        if http:
            serve_http(server, host, port)
        else:
            anyio.run(serve_stdio, server)


def _reject_json(context: typer.Context) -> None:
    if common_options(context).as_json:
        raise typer.BadParameter("has no effect on this command.", param_hint="--json")


def _query(group: typer.Typer, name: str, *examples: str) -> Callable[[_Query], None]:
    """Return a decorator that adds a command to `group`.

    The command calls the decorated function, and shows the models that the function returns. It has
    the common options, and the function's parameters except `flux0`.
    """

    def register(get: _Query) -> None:
        def command(context: typer.Context, **arguments: Any) -> None:
            with _client(context, partial(describe_error, ids=arguments)) as flux0:
                from flux0.cli.listing import show  # noqa: PLC0415 - loads rich
                from flux0.cli.output import Output  # noqa: PLC0415

                model = get(flux0, **arguments)
                if common_options(context).as_json:
                    Output().json(to_dict(model), indent=2)
                else:
                    show(Output(), model)

        signature = inspect.signature(get, eval_str=True)
        command.__doc__ = get.__doc__
        vars(command)["__signature__"] = signature
        kinds = {each.annotation for each in signature.parameters.values()}
        has_id = bool(kinds & {AgentId, SessionId})
        group.command(
            name,
            cls=CommandWithId if has_id else None,
            context_settings={"ignore_unknown_options": has_id},
            epilog=_examples(*examples) if examples else None,
        )(with_common_options(command))

    return register


_EVENT_TYPE = "List only events of this type; may be repeated."
_SOURCE = "List only events from this source."
_TURN = "List only events with this correlation id, from one turn."
_FROM = "List only events with this offset or a higher one."


@_query(app, "events", "events qH-klmX3cz", "events qH-klmX3cz --type message --type tool --json")
def events(
    flux0: Flux0,
    session: SessionId,
    *,
    types: Annotated[list[EventType] | None, option("--type", "TYPE", _EVENT_TYPE)] = None,
    source: Annotated[EventSource | None, option("--source", "SOURCE", _SOURCE)] = None,
    correlation_id: Annotated[str | None, option("--correlation-id", "ID", _TURN)] = None,
    min_offset: Annotated[int | None, option("--min-offset", "N", _FROM, min=0)] = None,
) -> Listed:
    """List the stored events of a session."""
    return flux0.sessions.list_events(
        session_id=session,
        types=types or None,
        source=source,
        correlation_id=correlation_id,
        min_offset=min_offset,
    )


@_query(agents, "list")
def list_agents(flux0: Flux0) -> Listed:
    """List the server's agents."""
    return flux0.agents.list()


@_query(agents, "get")
def get_agent(flux0: Flux0, agent: AgentId) -> Listed:
    """Show one agent."""
    return flux0.agents.retrieve(agent_id=agent)


_PURPOSE = "Description: the purpose of the agent."


@_query(agents, "create", 'agents create Drizzle weather --description "Knows the weather"')
def create_agent(
    flux0: Flux0,
    name: Annotated[str, argument("NAME", "Name of the agent for people.")],
    type_: Annotated[str, argument("TYPE", "Type of the agent; the server must have it.")],
    *,
    description: Annotated[str | None, option("--description", "TEXT", _PURPOSE)] = None,
) -> Listed:
    """Create an agent."""
    return flux0.agents.create(name=name, type_=type_, description=description)


_OF_AGENT = "List only sessions with the agent that has this id or unique name."


@_query(sessions, "list")
def list_sessions(
    flux0: Flux0,
    *,
    agent: Annotated[
        str | None, option("--agent -a", "AGENT", _OF_AGENT, autocompletion=complete_agents)
    ] = None,
) -> Listed:
    """List the user's sessions."""
    from flux0.cli.choices import choose_agent  # noqa: PLC0415 - loads rich

    return flux0.sessions.list(agent_id=agent and choose_agent(flux0, agent).id)


@_query(sessions, "get")
def get_session(flux0: Flux0, session: SessionId) -> Listed:
    """Show one session."""
    return flux0.sessions.retrieve(session_id=session)


@_query(sessions, "create", 'sessions create f1KizRKqjY --title "The weather"')
def create_session(
    flux0: Flux0,
    agent: AgentId,
    *,
    title: Annotated[str | None, option("--title", "TEXT", "Topic of the session.")] = None,
) -> Listed:
    """Create a session with an agent."""
    return flux0.sessions.create(agent_id=agent, title=title)


@contextmanager
def _client(
    context: typer.Context,
    explain: Callable[[Flux0Error], str] = describe_error,
    idle_timeout: int | None = None,
    *,
    demo: bool = False,
) -> Generator[Flux0, None, None]:
    options, limit = common_options(context), idle_timeout and idle_timeout * 1000
    logger = logging.getLogger("flux0")
    logger.addFilter(_is_logged)
    try:
        with _exit_codes(explain):
            transport = _demo_transport() if demo else None
            with options.client(transport=transport, stream_idle_timeout_ms=limit) as client:
                yield client
    finally:
        logger.removeFilter(_is_logged)


def _is_logged(record: logging.LogRecord) -> bool:
    """Leave out the failure of a turn, which the command prints as its own error."""
    return record.msg is not TURN_ENDED


@contextmanager
def _exit_codes(explain: Callable[[Flux0Error], str]) -> Generator[None, None, None]:
    from flux0.cli.output import escape_unencodable, print_problem  # noqa: PLC0415 - loads rich

    escape_unencodable()
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    except Flux0Error as error:
        print_problem(explain(error))
        code = _WRONG_USE if isinstance(error, InvalidArgument) else _FAILED
        raise typer.Exit(code) from error


def _demo_transport() -> FakeTransport:
    from flux0.cli.demo_agent import demo_transport  # noqa: PLC0415 - only the demo needs it
    from flux0.testing import FakeClock  # noqa: PLC0415

    return demo_transport(FakeClock(time.time(), sleep=time.sleep))
