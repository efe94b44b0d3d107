"""The options and arguments that several commands have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from flux0.client.flux0 import DEFAULT_SERVER_URL


def option(name: str, metavar: str | None, help: str, **more: Any) -> Any:
    """Return an option for typer. `metavar` is the name of its value, or None for a flag."""
    return typer.Option(name, metavar=metavar, help=help, **more)


def argument(metavar: str, help: str) -> Any:
    """Return a positional argument for typer."""
    return typer.Argument(metavar=metavar, help=help)


_SERVER = f"Server URL. Default: FLUX0_SERVER_URL, or {DEFAULT_SERVER_URL}."
_USER = "Name of the user who owns the sessions. Default: the anonymous user."
_HEADER = "Header field to send; may be repeated. FLUX0_TOKEN is sent as a bearer token."
_TIMEOUT = "Longest time for a request with all its retries, or for the start of a turn."
_JSON = "Print JSON in the server's format; for a turn, one line for each event."

# The options of all commands that connect to a server, written before or after the command.
Server = Annotated[str | None, option("--server-url", "URL", _SERVER)]
User = Annotated[str | None, option("--user", "NAME", _USER)]
Header = Annotated[list[str] | None, option("--header", "'NAME: VALUE'", _HEADER)]
Timeout = Annotated[float | None, option("--timeout", "SECONDS", _TIMEOUT, min=0.001)]
Json = Annotated[bool, option("--json", None, _JSON)]

_PORT = "Port to listen on; 0 selects a free port."

Port = Annotated[int, option("--port", "N", _PORT, min=0, max=65535)]
AgentId = Annotated[str, argument("AGENT", "Id of the agent.")]
SessionId = Annotated[str, argument("SESSION", "Id of the session.")]


def with_common_options(run: Callable[..., None]) -> Callable[..., None]:
    """Return a command that has the parameters of `run` and the common options.

    The command stores the common options in `context.obj`, and then calls `run` with the context.
    If an option is passed before and after the command, the second value is used. The header
    fields of both places are sent.
    """

    def command(
        context: typer.Context,
        *,
        server: Server = None,
        user: User = None,
        header: Header = None,
        timeout: Timeout = None,
        as_json: Json = False,
        **own: Any,
    ) -> None:
        before = context.obj or (None, None, None, (), False)
        context.obj = (
            before[0] if server is None else server,
            before[1] if user is None else user,
            before[2] if timeout is None else timeout,
            [*before[3], *(header or ())],
            as_json or before[4],
        )
        run(context, **own)

    signature = inspect.signature(command, eval_str=True)
    context, *common, _ = signature.parameters.values()
    _, *own = inspect.signature(run, eval_str=True).parameters.values()
    command.__doc__ = run.__doc__
    vars(command)["__signature__"] = signature.replace(parameters=[context, *own, *common])
    return command
