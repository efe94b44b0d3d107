"""The commands, their options and their help."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flux0 import EventSource, EventType, Flux0, Flux0Error, __version__, to_dict
from flux0.cli.wording import Listed, describe_error
from flux0.client.conversation import user_headers
from flux0.client.flux0 import DEFAULT_SERVER_URL
from flux0.domain import arguments
from flux0.models import InvalidArgument

if TYPE_CHECKING:
    from flux0.testing import FakeTransport

_FAILED, _WRONG_USE, _INTERRUPTED = 1, 2, 130  # The exit codes.

# The server makes up ids that may begin with a hyphen, and then look like options.
_TAKES_AN_ID = {"ignore_unknown_options": True}


def _option(name: str, metavar: str | None, help: str, **more: Any) -> Any:
    return typer.Option(name, metavar=metavar, help=help, **more)


def _argument(metavar: str, help: str) -> Any:
    return typer.Argument(metavar=metavar, help=help)


_WHERE = f"Where the server is; by default FLUX0_SERVER_URL, else {DEFAULT_SERVER_URL}."
_WHO = "Who you are: sessions belong to users. By default the one anonymous user."
_FIELD = "Send this header field; may be repeated. FLUX0_TOKEN is sent as a bearer token."

# The options of every command that asks a server, which may stand before it too.
Server = Annotated[str | None, _option("--server-url", "URL", _WHERE)]
User = Annotated[str | None, _option("--user", "NAME", _WHO)]
Header = Annotated[list[str] | None, _option("--header", "'NAME: VALUE'", _FIELD)]
Json = Annotated[bool, _option("--json", None, "Print JSON, in the server's form.")]

AgentId = Annotated[str, _argument("AGENT", "The agent's id.")]
SessionId = Annotated[str, _argument("SESSION", "The session's id.")]


def _take(
    context: typer.Context,
    server: Server = None,
    user: User = None,
    header: Header = None,
    *,
    as_json: Json = False,
) -> None:
    """Take what stands before the command, or behind it, which counts; header fields add up."""
    before = context.obj or (None, None, (), False)
    context.obj = (
        server or before[0],
        user or before[1],
        [*before[2], *(header or ())],
        as_json or before[3],
    )


app: typer.Typer = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
_group = partial(typer.Typer, no_args_is_help=True, callback=_take)
agents: typer.Typer = _group(help="List the server's agents, show or create one.")
sessions: typer.Typer = _group(help="List your sessions, show or create one.")
app.add_typer(agents, name="agents")
app.add_typer(sessions, name="sessions")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flux0-client {__version__}")
        raise typer.Exit


_VERSION = _option("--version", None, "Print the version.", callback=_print_version, is_eager=True)


@app.callback()
def root(
    context: typer.Context,
    server: Server = None,
    user: User = None,
    header: Header = None,
    *,
    as_json: Json = False,
    _version: Annotated[bool, _VERSION] = False,
) -> None:
    """Talk to the agents of a flux0 server, and look at what it keeps.

    flux0-client demo                       See a turn, with no server at all.
    flux0-client chat "What's the weather?" Send one message.
    flux0-client chat                       Have a conversation.
    flux0-client events qH-klmX3cz          See what the server has stored of it.
    """
    _take(context, server, user, header, as_json=as_json)


_SAID = "What to say; by default what is piped in, else you are asked."
_TYPE = "Talk to the first agent of this type, which is created if there is none."
_IDLE = "Give up when the agent is silent for so long; by default 600."


@app.command()
def chat(
    context: typer.Context,
    message: Annotated[str | None, _argument("MESSAGE", _SAID)] = None,
    *,
    agent: Annotated[str | None, _option("--agent", "ID", "By default the only one.")] = None,
    agent_type: Annotated[str | None, _option("--agent-type", "TYPE", _TYPE)] = None,
    session: Annotated[str | None, _option("--session", "ID", "Go on with this session.")] = None,
    lines: Annotated[bool, _option("--lines", None, "Each line piped in is a message.")] = False,
    idle_timeout: Annotated[int | None, _option("--idle-timeout", "SECONDS", _IDLE, min=1)] = None,
    as_json: Annotated[bool, _option("--json", None, "Print events as lines of JSON.")] = False,
    demo: Annotated[bool, _option("--demo", None, "Talk to a demo agent, with no server.")] = False,
    server: Server = None,
    user: User = None,
    header: Header = None,
) -> None:
    """Talk to an agent: one turn for a MESSAGE, or a conversation.

    A terminal shows all of a turn as it comes. Output that is piped is the answer's text alone;
    all else goes to standard error. What is piped in is the message, or the context of MESSAGE.

    In a conversation Ctrl-C ends a turn; a second one leaves, as do Ctrl-D and "exit".

    Examples:
    flux0-client chat "What's the weather in SF?"
    flux0-client chat "Summarize this." < report.txt > summary.txt
    flux0-client chat --session qH-klmX3cz "And tomorrow?"
    """
    if sum(choice is not None for choice in (agent, agent_type, session)) > 1:
        raise typer.BadParameter("--agent, --agent-type and --session exclude each other.")
    if lines and message is not None:
        raise typer.BadParameter("takes the messages from standard input.", param_hint="--lines")
    _take(context, server, user, header, as_json=as_json)
    *_, as_json = context.obj
    explain = partial(describe_error, ids={"agent": agent, "session": session})
    with _client(context, explain, idle_timeout, demo=demo) as flux0:
        from flux0.cli.chat import Chat, begin, messages_to_send, standard_input  # noqa: PLC0415 - slow

        interactive = message is None and standard_input().isatty()
        if as_json and interactive:
            raise typer.BadParameter("needs a MESSAGE.", param_hint="--json")
        messages = None if interactive else messages_to_send(message, lines=lines)
        conversation = begin(flux0, agent_id=agent, agent_type=agent_type, session_id=session)
        talk = Chat(conversation, explain, as_json=as_json)
        if not (talk.converse() if messages is None else talk.say_all(messages)):
            raise typer.Exit(_FAILED)


@app.command()
def demo(context: typer.Context) -> None:
    """Show a turn with reasoning, a tool call and an answer.

    The agent is in memory, so no server is needed. To talk to it yourself:
    flux0-client chat --demo
    """
    with _client(context, demo=True) as flux0:
        from flux0.cli.chat import Chat  # noqa: PLC0415 - slow

        conversation = flux0.conversation(agent=flux0.agents.list()[0])
        Chat(conversation).demonstrate("What's the weather like in San Francisco?")


@app.command()
def serve_demo(
    *,
    port: Annotated[int, _option("--port", "N", "0 takes a free one.", min=0, max=65535)] = 8080,
) -> None:
    """Serve the demo agent on 127.0.0.1, and print the URL. Ctrl-C ends it."""
    with _exit_codes(describe_error):
        try:
            with _demo_transport().serve(port) as url:
                typer.echo(url)
                Event().wait()
        except OSError as error:
            raise InvalidArgument("port", f"cannot be {port}: {error.strerror}") from error


def _shows(group: typer.Typer, name: str) -> Callable[[Callable[..., Listed]], None]:
    """Make a command of a function: it shows what the function gets from the server.

    The command takes the function's parameters but the client, and the options of every command.
    """

    def register(get: Callable[..., Listed]) -> None:
        def command(
            context: typer.Context,
            *,
            as_json: Json = False,
            server: Server = None,
            user: User = None,
            header: Header = None,
            **given: Any,
        ) -> None:
            _take(context, server, user, header, as_json=as_json)
            *_, as_json = context.obj
            with _client(context, partial(describe_error, ids=given)) as flux0:
                from flux0.cli.listing import show  # noqa: PLC0415 - loads rich
                from flux0.cli.output import Output  # noqa: PLC0415

                model = get(flux0, **given)
                if as_json:
                    Output().json(to_dict(model), indent=2)
                else:
                    show(Output(), model)

        _, *own = inspect.signature(get, eval_str=True).parameters.values()
        signature = inspect.signature(command, eval_str=True)
        context, *added, _ = signature.parameters.values()
        command.__doc__ = get.__doc__
        vars(command)["__signature__"] = signature.replace(parameters=[context, *own, *added])
        takes_an_id = any(parameter.annotation in {AgentId, SessionId} for parameter in own)
        group.command(name, context_settings=_TAKES_AN_ID if takes_an_id else None)(command)

    return register


_KIND = "Only message, tool, status or custom events; may be repeated."
_SOURCE = "Only events of the user, the ai_agent or the system."
_TURN = "Only events of this turn."
_FROM = "Only events from this offset on."


@_shows(app, "events")
def events(
    flux0: Flux0,
    session: SessionId,
    *,
    types: Annotated[list[EventType] | None, _option("--type", "TYPE", _KIND)] = None,
    source: Annotated[EventSource | None, _option("--source", "SOURCE", _SOURCE)] = None,
    correlation_id: Annotated[str | None, _option("--correlation-id", "ID", _TURN)] = None,
    min_offset: Annotated[int | None, _option("--min-offset", "N", _FROM, min=0)] = None,
) -> Listed:
    """List the events that the server has stored of a session, turn by turn.

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


@_shows(agents, "list")
def list_agents(flux0: Flux0) -> Listed:
    """List all agents of the server."""
    return flux0.agents.list()


@_shows(agents, "get")
def get_agent(flux0: Flux0, agent: AgentId) -> Listed:
    """Show one agent."""
    return flux0.agents.retrieve(agent_id=agent)


@_shows(agents, "create")
def create_agent(
    flux0: Flux0,
    name: Annotated[str, _argument("NAME", "What people call it.")],
    type_: Annotated[str, _argument("TYPE", "The code that runs it; the server must have it.")],
    *,
    description: Annotated[str | None, _option("--description", "TEXT", "What it is for.")] = None,
) -> Listed:
    """Create an agent.

    Example:
    flux0-client agents create Drizzle weather --description "Knows the weather"
    """
    return flux0.agents.create(name=name, type_=type_, description=description)


@_shows(sessions, "list")
def list_sessions(
    flux0: Flux0,
    *,
    agent: Annotated[str | None, _option("--agent", "ID", "Only those with this agent.")] = None,
) -> Listed:
    """List your sessions."""
    return flux0.sessions.list(agent_id=agent)


@_shows(sessions, "get")
def get_session(flux0: Flux0, session: SessionId) -> Listed:
    """Show one session."""
    return flux0.sessions.retrieve(session_id=session)


@_shows(sessions, "create")
def create_session(
    flux0: Flux0,
    agent: AgentId,
    *,
    title: Annotated[str | None, _option("--title", "TEXT", "What it is about.")] = None,
) -> Listed:
    """Open a session with an agent.

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
    """Give out a client with the options that were taken."""
    server, user, header, _ = context.obj
    with (
        _exit_codes(explain),
        Flux0(
            server,
            transport=_demo_transport() if demo else None,
            stream_idle_timeout_ms=None if idle_timeout is None else idle_timeout * 1000,
            headers=_headers(user, header),
        ) as client,
    ):
        yield client


@contextmanager
def _exit_codes(explain: Callable[[Flux0Error], str]) -> Generator[None, None, None]:
    """Have what goes wrong end as a line on standard error and an exit code."""
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


def _headers(user: str | None, given: list[str]) -> Mapping[str, str]:
    """Return the header fields to send; those of the same name are joined, as HTTP has it."""
    fields = dict(user_headers(user) or {})
    for text in given:
        name, colon, value = map(str.strip, text.partition(":"))
        if not colon:
            raise InvalidArgument("headers", "must be like 'NAME: VALUE'")
        name, joint = name.lower(), "; " if name.lower() == "cookie" else ", "
        fields[name] = f"{fields[name]}{joint}{value}" if name in fields else value
    if token := os.environ.get("FLUX0_TOKEN", "").strip():
        own = arguments.headers("FLUX0_TOKEN", {"authorization": f"Bearer {token}"})
        fields = {**own, **fields}
    return fields


def _demo_transport() -> FakeTransport:
    from flux0.cli.demo_agent import demo_transport  # noqa: PLC0415 - not for a real server

    return demo_transport(sleep=time.sleep, start=time.time())
