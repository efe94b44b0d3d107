"""The options and arguments that several commands have."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flux0.client.flux0 import DEFAULT_SERVER_URL


def option(name: str, metavar: str | None, help: str, **more: Any) -> Any:
    """Return an option for typer. `metavar` is the name of its value, or None for a flag."""
    return typer.Option(name, metavar=metavar, help=help, **more)


def argument(metavar: str, help: str) -> Any:
    """Return a positional argument for typer."""
    return typer.Argument(metavar=metavar, help=help)


_SERVER = f"URL of the server. Default: FLUX0_SERVER_URL, or {DEFAULT_SERVER_URL}."
_USER = "Name of the user who owns the sessions. Default: the anonymous user."
_HEADER = "Header field to send; may be repeated. FLUX0_TOKEN is sent as a bearer token."
_TIMEOUT = "Longest time for a request with all its retries, or for the start of a turn."

# The options of all commands that connect to a server, written before or after the command.
Server = Annotated[str | None, option("--server-url", "URL", _SERVER)]
User = Annotated[str | None, option("--user", "NAME", _USER)]
Header = Annotated[list[str] | None, option("--header", "'NAME: VALUE'", _HEADER)]
Timeout = Annotated[float | None, option("--timeout", "SECONDS", _TIMEOUT, min=0.001)]
Json = Annotated[bool, option("--json", None, "Print JSON in the format of the server.")]

AgentId = Annotated[str, argument("AGENT", "Id of the agent.")]
SessionId = Annotated[str, argument("SESSION", "Id of the session.")]


def store_options(
    context: typer.Context,
    server: Server = None,
    user: User = None,
    header: Header = None,
    timeout: Timeout = None,
    *,
    as_json: Json = False,
) -> None:
    """Store the common options in `context.obj`.

    If an option is passed before and after the command, the second value is used. The header
    fields of both places are sent.
    """
    before = context.obj or (None, None, None, (), False)
    context.obj = (
        before[0] if server is None else server,
        before[1] if user is None else user,
        before[2] if timeout is None else timeout,
        [*before[3], *(header or ())],
        as_json or before[4],
    )
