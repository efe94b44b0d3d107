"""The commands, their options and their help."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from flux0 import EventSource, EventType, Flux0, Flux0Error, __version__, to_dict
from flux0.client.conversation import user_headers
from flux0.client.flux0 import DEFAULT_SERVER_URL
from flux0.models import InvalidArgument

if TYPE_CHECKING:
    from flux0.cli.listing import Listed
    from flux0.ports import Transport

_FAILED = 1
_WRONG_USE = 2
_INTERRUPTED = 130

_DEMO_MESSAGE = "What's the weather like in San Francisco?"

# The server makes up ids that may begin with a hyphen, and then look like options.
_TAKES_AN_ID = {"ignore_unknown_options": True}

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
agents = typer.Typer(no_args_is_help=True, help="List the server's agents, or create one.")
sessions = typer.Typer(no_args_is_help=True, help="List your sessions, or create one.")

ServerUrl = Annotated[
    str,
    typer.Option(
        "--server-url", metavar="URL", envvar="FLUX0_SERVER_URL", help="Where the server is."
    ),
]
User = Annotated[
    str | None,
    typer.Option(
        "--user",
        metavar="NAME",
        help="Who you are; sessions belong to their users. Without it, everybody is one"
        " anonymous user.",
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document, in the server's form."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flux0-client {__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """Talk to the agents of a flux0 server, and look at what it keeps.

    flux0 demo                       See a turn, with no server at all.
    flux0 chat "What's the weather?" Send one message.
    flux0 chat                       Have a conversation.
    flux0 events qH-klmX3cz          See what the server has stored of it.
    """


@app.command()
def chat(
    message: Annotated[
        str | None,
        typer.Argument(metavar="MESSAGE", help="What to say; without it, you are asked."),
    ] = None,
    *,
    server_url: ServerUrl = DEFAULT_SERVER_URL,
    agent: Annotated[
        str | None,
        typer.Option(
            "--agent", metavar="ID", help="The agent to talk to; by default the only one."
        ),
    ] = None,
    agent_type: Annotated[
        str | None,
        typer.Option(
            "--agent-type",
            metavar="TYPE",
            help="Talk to the first agent of this type, which is created if there is none.",
        ),
    ] = None,
    session: Annotated[
        str | None,
        typer.Option("--session", metavar="ID", help="Go on with this session."),
    ] = None,
    user: User = None,
    idle_timeout: Annotated[
        int | None,
        typer.Option(
            "--idle-timeout",
            metavar="SECONDS",
            min=1,
            help="Give up when the agent is silent for so long; by default 600.",
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Talk to a demo agent in memory, without a server.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print each event as one line of JSON; needs a MESSAGE."),
    ] = False,
) -> None:
    """Talk to an agent: one turn for a MESSAGE, or a conversation.

    Text is shown as it comes, with reasoning, statuses and tool calls.

    In a conversation Ctrl-C ends a turn; a second one leaves, as do Ctrl-D
    and "exit". With --session it begins with what was said so far.

    Examples:
    flux0 chat "What's the weather in SF?"
    flux0 chat --agent-type weather
    flux0 chat --session qH-klmX3cz "And tomorrow?"
    """
    if sum(choice is not None for choice in (agent, agent_type, session)) > 1:
        raise typer.BadParameter("--agent, --agent-type and --session exclude each other.")
    if as_json and message is None:
        raise typer.BadParameter("needs a MESSAGE.", param_hint="--json")
    with _client(server_url, user, idle_timeout=idle_timeout, demo=demo) as flux0:
        from flux0.cli.chat import Chat, begin  # noqa: PLC0415 - not for --help

        conversation = begin(
            flux0, agent_id=agent, agent_type=agent_type, session_id=session, quiet=as_json
        )
        talk = Chat(flux0, conversation, server_url)
        if message is None:
            if session is not None:
                talk.show_history()
            went_well = talk.converse()
        else:
            went_well = talk.say_in_json(message) if as_json else talk.say(message)
        if not went_well:
            raise typer.Exit(_FAILED)


@app.command()
def demo() -> None:
    """Show a turn with reasoning, a tool call and an answer.

    The agent is in memory, so no server is needed. To talk to it yourself:
    flux0 chat --demo
    """
    with _client(DEFAULT_SERVER_URL, demo=True) as flux0:
        from flux0.cli.chat import Chat  # noqa: PLC0415 - not for --help

        conversation = flux0.conversation(agent=flux0.agents.list()[0])
        Chat(flux0, conversation, DEFAULT_SERVER_URL).demonstrate(_DEMO_MESSAGE)


@app.command(context_settings=_TAKES_AN_ID)
def events(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="The session's id.")],
    *,
    types: Annotated[
        list[EventType] | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Only message, tool, status or custom events; may be repeated.",
        ),
    ] = None,
    source: Annotated[
        EventSource | None,
        typer.Option(
            "--source",
            metavar="SOURCE",
            help="Only events of the user, the ai_agent or the system.",
        ),
    ] = None,
    correlation_id: Annotated[
        str | None, typer.Option("--correlation-id", metavar="ID", help="Only events of this turn.")
    ] = None,
    min_offset: Annotated[
        int | None,
        typer.Option("--min-offset", metavar="N", min=0, help="Only events from this offset on."),
    ] = None,
    server_url: ServerUrl = DEFAULT_SERVER_URL,
    user: User = None,
    as_json: Json = False,
) -> None:
    """List the events that the server has stored of a session, turn by turn.

    Examples:
    flux0 events qH-klmX3cz
    flux0 events qH-klmX3cz --type message --type tool --json
    """
    with _client(server_url, user) as flux0:
        listed = flux0.sessions.list_events(
            session_id=session,
            types=types or None,
            source=source,
            correlation_id=correlation_id,
            min_offset=min_offset,
        )
        _show(listed, as_json=as_json)


@agents.command("list")
def list_agents(server_url: ServerUrl = DEFAULT_SERVER_URL, *, as_json: Json = False) -> None:
    """List all agents of the server."""
    with _client(server_url) as flux0:
        _show(flux0.agents.list(), as_json=as_json)


@agents.command("create")
def create_agent(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people call it.")],
    type_: Annotated[
        str, typer.Argument(metavar="TYPE", help="The code that runs it; the server must have it.")
    ],
    *,
    description: Annotated[
        str | None, typer.Option("--description", metavar="TEXT", help="What it is for.")
    ] = None,
    server_url: ServerUrl = DEFAULT_SERVER_URL,
    as_json: Json = False,
) -> None:
    """Create an agent.

    Example:
    flux0 agents create Drizzle weather --description "Knows the weather"
    """
    with _client(server_url) as flux0:
        created = flux0.agents.create(name=name, type_=type_, description=description)
        _show(created, as_json=as_json)


@sessions.command("list")
def list_sessions(
    *,
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="ID", help="Only sessions with this agent.")
    ] = None,
    server_url: ServerUrl = DEFAULT_SERVER_URL,
    user: User = None,
    as_json: Json = False,
) -> None:
    """List your sessions."""
    with _client(server_url, user) as flux0:
        _show(flux0.sessions.list(agent_id=agent), as_json=as_json)


@sessions.command("create", context_settings=_TAKES_AN_ID)
def create_session(
    agent_id: Annotated[str, typer.Argument(metavar="AGENT_ID", help="The agent to talk to.")],
    *,
    title: Annotated[
        str | None, typer.Option("--title", metavar="TEXT", help="What it is about.")
    ] = None,
    server_url: ServerUrl = DEFAULT_SERVER_URL,
    user: User = None,
    as_json: Json = False,
) -> None:
    """Open a session with an agent.

    Example:
    flux0 sessions create f1KizRKqjY --title "The weather"
    """
    with _client(server_url, user) as flux0:
        _show(flux0.sessions.create(agent_id=agent_id, title=title), as_json=as_json)


app.add_typer(agents, name="agents")
app.add_typer(sessions, name="sessions")


@contextmanager
def _client(
    server_url: str,
    user: str | None = None,
    *,
    idle_timeout: int | None = None,
    demo: bool = False,
) -> Generator[Flux0, None, None]:
    """Give out a client; what goes wrong ends as a line on standard error and an exit code."""
    from flux0.cli.output import escape_unencodable, print_problem  # noqa: PLC0415 - loads rich
    from flux0.cli.wording import error_in_words  # noqa: PLC0415

    escape_unencodable()
    try:
        with Flux0(
            server_url,
            transport=_demo_transport() if demo else None,
            stream_idle_timeout_ms=None if idle_timeout is None else idle_timeout * 1000,
            headers=user_headers(user),
        ) as client:
            yield client
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    except Flux0Error as error:
        print_problem(error_in_words(error, server_url))
        code = _WRONG_USE if isinstance(error, InvalidArgument) else _FAILED
        raise typer.Exit(code) from error


def _demo_transport() -> Transport:
    from flux0.cli.demo_agent import demo_transport  # noqa: PLC0415 - not for a real server

    return demo_transport(sleep=time.sleep, start=time.time())


def _show(model: Listed, *, as_json: bool) -> None:
    from flux0.cli.listing import show  # noqa: PLC0415 - loads rich
    from flux0.cli.output import Output  # noqa: PLC0415

    if as_json:
        Output().json(to_dict(model), indent=2)
    else:
        show(Output(), model)
