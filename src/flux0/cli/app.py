"""The commands of `flux0-client`, with their options and help."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flux0 import EventSource, EventType, Flux0, Flux0Error, __version__, to_dict
from flux0.cli.descriptions import Listed, describe_error
from flux0.cli.options import AgentId, Port, SessionId, argument, option, with_common_options
from flux0.domain import arguments
from flux0.models import InvalidArgument

if TYPE_CHECKING:
    from flux0.testing import FakeTransport

_FAILED, _WRONG_USE, _INTERRUPTED = 1, 2, 130  # The exit codes.

# An id may begin with a hyphen. With this setting, such an id is not read as an option.
_SETTINGS_FOR_IDS = {"ignore_unknown_options": True}


app: typer.Typer = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@with_common_options
def _store_options(_: typer.Context) -> None:
    """Store the common options that are written between a group and its command."""


_group = partial(typer.Typer, no_args_is_help=True, callback=_store_options)
agents: typer.Typer = _group(help="List, show and create agents.")
sessions: typer.Typer = _group(help="List, show and create sessions.")
app.add_typer(agents, name="agents")
app.add_typer(sessions, name="sessions")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flux0-client {__version__}")
        raise typer.Exit


_VERSION = option("--version", None, "Print the version.", callback=_print_version, is_eager=True)


@app.callback()
@with_common_options
def root(_: typer.Context, *, _version: Annotated[bool, _VERSION] = False) -> None:
    """Talk to the agents of a flux0 server, and list its agents, sessions and events.

    flux0-client demo                       Show an example turn.
    flux0-client chat "What's the weather?" Send one message.
    flux0-client chat                       Have a conversation.
    flux0-client events qH-klmX3cz          List the stored events of a session.
    """


_MESSAGE = "Text to send. Default: the piped input; in a terminal, a prompt for each message."
_AGENT = "Id of the agent. Default: the server's only agent."
_SESSION = "Id of a session to continue. Default: a new session."
_TYPE = "Agent type: use the first agent of this type, or create it."
_IDLE = "Longest time without an event, after which the turn fails. Default: 600."

# Do not break a sentence into lines: typer removes line breaks from the first paragraph only.
_CHAT = (
    "Talk to an agent: one turn for a MESSAGE, or a conversation.\n\n"
    "A terminal shows the complete turn while it streams. If the output is piped, only the text of "
    "the answer is written to it, and everything else to standard error. Piped input is the "
    "message; if there is a MESSAGE, the input is appended to it as context.\n\n"
    "In a conversation, Ctrl-C cancels the turn. "
    'A second Ctrl-C, Ctrl-D or "exit" ends the program.\n\n'
    "Examples:\n"
    'flux0-client chat "What\'s the weather in SF?"\n'
    'flux0-client chat "Summarize this." < report.txt > summary.txt\n'
    'flux0-client chat --session qH-klmX3cz "And tomorrow?"'
)


@app.command("chat", help=_CHAT)
@with_common_options
def chat(
    context: typer.Context,
    message: Annotated[str | None, argument("MESSAGE", _MESSAGE)] = None,
    *,
    agent: Annotated[str | None, option("--agent", "ID", _AGENT)] = None,
    agent_type: Annotated[str | None, option("--agent-type", "TYPE", _TYPE)] = None,
    session: Annotated[str | None, option("--session", "ID", _SESSION)] = None,
    lines: Annotated[bool, option("--lines", None, "Send each piped line as a message.")] = False,
    idle_timeout: Annotated[int | None, option("--idle-timeout", "SECONDS", _IDLE, min=1)] = None,
    demo: Annotated[bool, option("--demo", None, "Use the demo agent, without a server.")] = False,
) -> None:
    """Send messages to an agent, and show its turns.

    With MESSAGE or piped input, send one message. With `--lines`, send each piped line as a
    message. Without MESSAGE, if the input is a terminal, send each message that the user types.
    """
    if sum(choice is not None for choice in (agent, agent_type, session)) > 1:
        raise typer.BadParameter("--agent, --agent-type and --session cannot be combined.")
    if lines and message is not None:
        problem = "cannot be combined with MESSAGE: the messages are read from standard input."
        raise typer.BadParameter(problem, param_hint="--lines")
    *_, as_json = context.obj
    explain = partial(describe_error, ids={"agent": agent, "session": session})
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
        conversation = start_conversation(
            flux0, agent_id=agent, agent_type=agent_type, session_id=session
        )
        chat = Chat(conversation, explain, as_json=as_json)
        if not (chat.converse() if messages is None else chat.send_all(messages)):
            raise typer.Exit(_FAILED)


@app.command()
def demo(context: typer.Context) -> None:
    """Show a turn with reasoning, a tool call and an answer.

    The agent runs in memory, so no server is needed. To talk to the agent:
    flux0-client chat --demo
    """
    with _client(context, demo=True) as flux0:
        from flux0.cli.chat import Chat  # noqa: PLC0415 - slow

        conversation = flux0.conversation(agent=flux0.agents.list()[0])
        Chat(conversation).show_example("What's the weather like in San Francisco?")


@app.command()
def serve_demo(
    *,
    port: Port = 8080,
) -> None:
    """Serve the demo agent on 127.0.0.1 until Ctrl-C, and print the URL."""
    with _exit_codes(describe_error):
        try:
            with _demo_transport().serve(port) as url:
                typer.echo(url)
                Event().wait()
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
    """Offer the agents as tools to an assistant (Model Context Protocol).

    The assistant starts this command, and uses standard input and output.
    With --http, assistants connect to the URL instead.
    """
    *_, as_json = context.obj
    if as_json:
        raise typer.BadParameter("has no effect on this command.", param_hint="--json")
    with _client(context) as flux0:
        import anyio  # noqa: PLC0415 - slow

        from flux0.cli.mcp_server import (  # noqa: PLC0415 - an extra
            create_server,
            serve_http,
            serve_stdio,
        )

        flux0.agents.list()  # Fail at once if the server cannot be reached.
        server = create_server(flux0, show_errors=show_errors)
        if http:
            serve_http(server, host, port)
        else:
            anyio.run(serve_stdio, server)


def _query(group: typer.Typer, name: str) -> Callable[[Callable[..., Listed]], None]:
    """Return a decorator that adds a command to `group`.

    The command calls the decorated function, and shows the models that the function returns. It has
    the common options, and the function's parameters except `flux0`.
    """

    def register(get: Callable[..., Listed]) -> None:
        def command(context: typer.Context, **arguments: Any) -> None:
            *_, as_json = context.obj
            with _client(context, partial(describe_error, ids=arguments)) as flux0:
                from flux0.cli.listing import show  # noqa: PLC0415 - loads rich
                from flux0.cli.output import Output  # noqa: PLC0415

                model = get(flux0, **arguments)
                if as_json:
                    Output().json(to_dict(model), indent=2)
                else:
                    show(Output(), model)

        signature = inspect.signature(get, eval_str=True)
        command.__doc__ = get.__doc__
        vars(command)["__signature__"] = signature
        kinds = {each.annotation for each in signature.parameters.values()}
        settings = _SETTINGS_FOR_IDS if kinds & {AgentId, SessionId} else None
        group.command(name, context_settings=settings)(with_common_options(command))

    return register


_EVENT_TYPE = "List only events of this type; may be repeated."
_SOURCE = "List only events from this source."
_TURN = "List only events with this correlation id, from one turn."
_FROM = "List only events with this offset or a higher one."


@_query(app, "events")
def events(
    flux0: Flux0,
    session: SessionId,
    *,
    types: Annotated[list[EventType] | None, option("--type", "TYPE", _EVENT_TYPE)] = None,
    source: Annotated[EventSource | None, option("--source", "SOURCE", _SOURCE)] = None,
    correlation_id: Annotated[str | None, option("--correlation-id", "ID", _TURN)] = None,
    min_offset: Annotated[int | None, option("--min-offset", "N", _FROM, min=0)] = None,
) -> Listed:
    """List the events that the server has stored for a session, grouped by turn.

    Examples:
    flux0-client events qH-klmX3cz
    flux0-client events qH-klmX3cz --type message --type tool --json
    """
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


@_query(agents, "create")
def create_agent(
    flux0: Flux0,
    name: Annotated[str, argument("NAME", "Name of the agent for people.")],
    type_: Annotated[str, argument("TYPE", "Type of the agent; the server must have it.")],
    *,
    description: Annotated[str | None, option("--description", "TEXT", _PURPOSE)] = None,
) -> Listed:
    """Create an agent.

    Example:
    flux0-client agents create Drizzle weather --description "Knows the weather"
    """
    return flux0.agents.create(name=name, type_=type_, description=description)


@_query(sessions, "list")
def list_sessions(
    flux0: Flux0,
    *,
    agent: Annotated[
        str | None, option("--agent", "ID", "List only sessions with this agent.")
    ] = None,
) -> Listed:
    """List the user's sessions."""
    return flux0.sessions.list(agent_id=agent)


@_query(sessions, "get")
def get_session(flux0: Flux0, session: SessionId) -> Listed:
    """Show one session."""
    return flux0.sessions.retrieve(session_id=session)


@_query(sessions, "create")
def create_session(
    flux0: Flux0,
    agent: AgentId,
    *,
    title: Annotated[str | None, option("--title", "TEXT", "Topic of the session.")] = None,
) -> Listed:
    """Create a session with an agent.

    Example:
    flux0-client sessions create f1KizRKqjY --title "The weather"
    """
    return flux0.sessions.create(agent_id=agent, title=title)


@contextmanager
def _client(
    context: typer.Context,
    explain: Callable[[Flux0Error], str] = describe_error,
    idle_timeout: int | None = None,
    *,
    demo: bool = False,
) -> Generator[Flux0, None, None]:
    """Open a client with the command's common options."""
    server, user, timeout, header, _ = context.obj
    with (
        _exit_codes(explain),
        Flux0(
            server,
            transport=_demo_transport() if demo else None,
            timeout_ms=None if timeout is None else timeout * 1000,
            stream_idle_timeout_ms=None if idle_timeout is None else idle_timeout * 1000,
            headers=_headers(user, header),
        ) as client,
    ):
        yield client


@contextmanager
def _exit_codes(explain: Callable[[Flux0Error], str]) -> Generator[None, None, None]:
    """Print each error in the `with` block to standard error, and exit with an exit code."""
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


def _headers(user: str | None, options: list[str]) -> Mapping[str, str]:
    """Return the header fields to send. Repeated fields are joined (RFC 9110, section 5.3)."""
    fields = {} if user is None else dict(arguments.user("user", user))
    for text in options:
        name, colon, value = map(str.strip, text.partition(":"))
        if not colon:
            raise InvalidArgument("headers", "must have the form 'NAME: VALUE'")
        name, separator = name.lower(), "; " if name.lower() == "cookie" else ", "
        fields[name] = f"{fields[name]}{separator}{value}" if name in fields else value
    return fields


def _demo_transport() -> FakeTransport:
    from flux0.cli.demo_agent import demo_transport  # noqa: PLC0415 - only the demo needs it
    from flux0.testing import FakeClock  # noqa: PLC0415

    return demo_transport(FakeClock(time.time(), sleep=time.sleep))
