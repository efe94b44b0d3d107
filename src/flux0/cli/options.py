"""The options and arguments that several commands have."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, NamedTuple, TypeAlias, get_type_hints

import typer
from typer.core import TyperCommand

from flux0 import Flux0, Flux0Error, RetryConfig
from flux0.cli.descriptions import ID_LENGTH
from flux0.client.flux0 import DEFAULT_SERVER_URL
from flux0.domain import arguments
from flux0.models import InvalidArgument

# The timeout of a request for shell completions, in milliseconds. The timeout is short, because the
# user's shell waits for the response.
_COMPLETION_MS = 2_000
MAX_SECONDS: Final = (2**31 - 1) // 1000  # The largest value of `timeout_ms`, in seconds.
_SAFE = re.compile(r"[\w.-]+")  # Matches text without characters that a shell interprets.
_HYPHEN_ID = re.compile(rf"-[\w-]{{{ID_LENGTH - 1}}}", re.ASCII)


def option(names: str, metavar: str | None, help: str, **more: Any) -> Any:
    return typer.Option(*names.split(), metavar=metavar, help=help, **more)


def argument(metavar: str, help: str, **more: Any) -> Any:
    return typer.Argument(metavar=metavar, help=help, **more)


Complete: TypeAlias = "Callable[..., list[tuple[str, str]]]"


def _completion(kind: str, label: str, *, has_names: bool = False) -> Complete:
    """Return a function that completes ids of agents or sessions in a shell.

    `label` is the attribute that the shell shows next to an id, such as `title`. If `has_names` is
    True, the function also completes the values of this attribute.
    """

    def complete(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        limits = {"timeout_ms": _COMPLETION_MS, "retry_config": RetryConfig("none")}
        try:
            with common_options(context).client(**limits) as flux0:
                models = getattr(flux0, kind).list()
        except Flux0Error:
            return []
        listed = [(each.id, getattr(each, label) or "") for each in models]
        if has_names:
            listed += [(name, id_) for id_, name in listed]
        return [
            (value, " ".join(_SAFE.findall(description)))
            for value, description in listed
            if value.startswith(incomplete) and _SAFE.fullmatch(value)
        ]

    return complete


complete_agents: Complete = _completion("agents", "name", has_names=True)
complete_sessions: Complete = _completion("sessions", "title")

_SERVER = f"Server URL. Default: FLUX0_SERVER_URL, or {DEFAULT_SERVER_URL}."
_USER = "Name of the user who owns the sessions. Default: the anonymous user."
_HEADER = "Header field to send; may be repeated. FLUX0_TOKEN is sent as a bearer token."
_TIMEOUT = "Longest time for a request with all its retries, or for the start of a turn."
_JSON = "Print JSON in the server's format; for a turn, one line for each event."

# Each command that connects to a server has options such as `--server-url` and `--user`. The user
# can write these options before or after the command.
Server = Annotated[str | None, option("--server-url", "URL", _SERVER)]
User = Annotated[str | None, option("--user -u", "NAME", _USER)]
Header = Annotated[list[str] | None, option("--header", "'NAME: VALUE'", _HEADER)]
Timeout = Annotated[
    float | None, option("--timeout", "SECONDS", _TIMEOUT, min=0.001, max=MAX_SECONDS)
]
Json = Annotated[bool, option("--json", None, _JSON)]

_PORT = "Port to listen on; 0 selects a free port."

Port = Annotated[int, option("--port", "N", _PORT, min=0, max=65535)]
_complete_ids = _completion("agents", "name")
AgentId = Annotated[str, argument("AGENT", "Id of the agent.", autocompletion=_complete_ids)]
SessionId = Annotated[
    str, argument("SESSION", "Id of the session.", autocompletion=complete_sessions)
]


class CommonOptions(NamedTuple):
    server: Server = None
    user: User = None
    header: Header = None
    timeout: Timeout = None
    as_json: Json = False

    def client(self, **more: Any) -> Flux0:
        more = {"timeout_ms": self.timeout and self.timeout * 1000, **more}
        return Flux0(self.server, headers=self._header_fields(), **more)

    def _header_fields(self) -> Mapping[str, str]:
        fields = {} if self.user is None else dict(arguments.user("user", self.user))
        for text in self.header or ():
            name, colon, value = map(str.strip, text.partition(":"))
            if not colon:
                raise InvalidArgument("headers", "must have the form 'NAME: VALUE'")
            name, separator = name.lower(), "; " if name.lower() == "cookie" else ", "
            fields[name] = f"{fields[name]}{separator}{value}" if name in fields else value
        return fields


def common_options(context: Any) -> CommonOptions:
    """Return the common options, such as `--user`, that are written before and after a command.

    If an option is written in both places, the second value is used. The header fields of both
    places are returned.
    """
    before = CommonOptions() if context.parent is None else common_options(context.parent)
    values = {name: context.params.get(name) for name in CommonOptions._fields}
    after = {name: value for name, value in values.items() if value not in (None, False)}
    headers = [*(before.header or ()), *(after.get("header") or ())]
    return before._replace(**{**after, "header": headers})


def with_common_options(run: Callable[..., None]) -> Callable[..., None]:
    """Return a typer command with the parameters of `run` and the options of `CommonOptions`.

    The command passes only the context and the parameters of `run` to `run`, which can get the
    other options from `common_options(context)`.
    """

    def command(context: typer.Context, **values: Any) -> None:
        own = values.keys() - set(CommonOptions._fields)
        run(context, **{name: values[name] for name in own})

    context, _ = inspect.signature(command, eval_str=True).parameters.values()
    _, *own = inspect.signature(run, eval_str=True).parameters.values()
    hints = get_type_hints(CommonOptions, include_extras=True)
    fields = inspect.signature(CommonOptions).parameters.values()
    common = (each.replace(kind=each.KEYWORD_ONLY, annotation=hints[each.name]) for each in fields)
    command.__doc__ = run.__doc__
    vars(command)["__signature__"] = inspect.Signature([context, *own, *common])
    return command


class CommandWithId(TyperCommand):
    """A command whose only positional argument is an id. The id may begin with a hyphen."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and _HYPHEN_ID.fullmatch(args[0]):
            args = [*args[1:], "--", args[0]]
        return super().parse_args(ctx, args)


def examples(*commands: str) -> str:
    # In a help text, typer keeps the line breaks of a paragraph that begins with the character
    # "\b".
    return "\n".join(("\b", "Examples:", *(f"  flux0-client {command}" for command in commands)))
