"""The commands of `flux0-client`, with their options and help."""

from __future__ import annotations

from functools import partial
from shutil import get_terminal_size
from threading import Event
from typing import Annotated, Any

import typer

from flux0 import __version__
from flux0.cli.client import FAILED, exit_codes, open_client, real_time_demo
from flux0.cli.descriptions import describe_error
from flux0.cli.options import (
    MAX_SECONDS,
    Json,
    Port,
    argument,
    common_options,
    complete_agents,
    complete_sessions,
    examples,
    option,
    with_common_options,
)
from flux0.cli.queries import agents, events, query, sessions
from flux0.models import InvalidArgument

app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Disable the help of rich, because rich shortens the names of options on a narrow terminal.
    rich_markup_mode=None,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "terminal_width": min(get_terminal_size().columns, 80),
    },
)


app.add_typer(agents, name="agents")
app.add_typer(sessions, name="sessions")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flux0-client {__version__}")
        raise typer.Exit


_VERSION = option("--version", None, "Print the version.", callback=_print_version, is_eager=True)


_ROOT_EXAMPLES = examples(
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
_KEEP_GOING = "If a line fails, continue with the next line."
_IDLE = "Longest time without an event, after which the turn fails. Default: 600."
_DEMO = "Use the demo agent, without a server."

_CHAT_EXAMPLES = examples(
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
    with open_client(context, explain, idle_timeout, demo=demo) as flux0:
        from flux0.cli.chat import (  # noqa: PLC0415 - slow to import
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
            raise typer.Exit(FAILED)


@app.command(epilog="To talk to the agent: flux0-client chat --demo")
def demo(context: typer.Context, *, as_json: Json = False) -> None:
    """Show a turn with reasoning, a tool call and an answer.

    The agent runs in memory, so no server is needed.
    """
    as_json = common_options(context).as_json
    with open_client(context, demo=True) as flux0:
        from flux0.cli.chat import Chat  # noqa: PLC0415 - slow to import

        conversation = flux0.conversation(agent=flux0.agents.list()[0])
        message = "What's the weather like in San Francisco?"
        Chat(conversation, as_json=as_json).show_example(message)


@app.command()
def serve_demo(context: typer.Context, *, port: Port = 8080) -> None:
    """Serve the demo agent until Ctrl-C.

    The command prints the URL when it is ready. It listens on 127.0.0.1.
    """
    _reject_json(context)
    with exit_codes(describe_error):
        try:
            with real_time_demo().serve(port) as url:
                typer.echo(url)
                Event().wait()
        except OSError as error:
            raise InvalidArgument("port", f"cannot be {port}: {error.strerror}") from error


_HTTP = "Serve streamable HTTP until Ctrl-C, and print the URL."
_ERRORS = "Send the text of errors to MCP clients. By default, they get a general sentence."


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
    with open_client(context) as flux0:
        import anyio  # noqa: PLC0415 - slow to import

        from flux0.cli.mcp_server import (  # noqa: PLC0415 - needs the extra `mcp`
            create_server,
            serve_http,
            serve_stdio,
        )

        flux0.agents.list()  # If the server cannot be reached, this call raises an error at once.
        server = create_server(flux0, show_errors=show_errors)
        if http:
            serve_http(server, host, port)
        else:
            anyio.run(serve_stdio, server)


def _reject_json(context: typer.Context) -> None:
    if common_options(context).as_json:
        raise typer.BadParameter("has no effect on this command.", param_hint="--json")


query(app, "events", "events qH-klmX3cz", "events qH-klmX3cz --type message --type tool --json")(
    events
)
