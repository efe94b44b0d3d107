"""An MCP server that offers each agent of a flux0 server as a tool for assistants."""

from __future__ import annotations

import errno
import logging
import os
import re
import select
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable
from itertools import count
from threading import Thread
from typing import Any, Final, TypeAlias
from unicodedata import normalize

import anyio
import typer
from attrs import frozen

from flux0 import Agent, AsyncConversation, Flux0, Flux0Error, __version__, models
from flux0.cli.descriptions import describe_data, items_of, to_text
from flux0.domain import arguments
from flux0.relay_format import general_text
from flux0.runtime.event_loop import start_task

try:
    import uvicorn
    from mcp import MCPError, types
    from mcp.server import Server, ServerRequestContext as Context
    from mcp.server.stdio import stdio_server
except ModuleNotFoundError as _error:
    raise models.MissingDependency(
        f"the MCP server needs the package {_error.name}: pip install 'flux0-client[mcp]'"
    ) from _error


def _schema(required: Iterable[str], **properties: str) -> dict[str, Any]:
    strings = {name: {"type": "string", "description": text} for name, text in properties.items()}
    return {"type": "object", "properties": strings, "required": [*required]}


_INPUT = _schema(
    ["message"],
    message="The text to send to the agent.",
    session_id="The session to continue, from an earlier result. Default: a new session.",
)
_OUTPUT = _schema(
    ["text", "session_id"], text="The agent's answer.", session_id="The session to continue."
)
_SCHEMAS: dict[str, Any] = {"input_schema": _INPUT, "output_schema": _OUTPUT}

_SENT: Final = {
    "no": "The message was not sent.",
    "maybe": "The agent may have received the message.",
    "yes": "The agent has received the message.",
}

Report: TypeAlias = Callable[[str | None], Awaitable[None]]


def tool_names(agents: Iterable[Agent]) -> dict[str, Agent]:
    """Map the name of each tool to its agent.

    A tool has the name of its agent, without accents, and with underscores for other characters
    that MCP does not allow. The id is appended if an older agent has the same name, or if only
    underscores remain.
    """
    tools: dict[str, Agent] = {}
    for agent in agents:
        # MCP assistants accept tool names of up to 64 characters. The agent's name is limited to 53
        # characters, because an underscore and an id with 10 characters can be appended.
        name = _allowed(agent.name)[:53] or f"agent_{_allowed(agent.id)}"
        while name in tools:
            name = f"{name}_{_allowed(agent.id)}"
        tools[name] = agent
    return tools


def _allowed(text: str) -> str:
    without_accents = re.sub("[\u0300-\u036f]", "", normalize("NFKD", text))
    return re.sub(r"[^a-zA-Z0-9_-]+", "_", without_accents).strip("_")


@frozen
class AgentTools:
    """The handlers of the MCP server. Each request lists the agents of the flux0 server again.

    If `show_errors` is False, an assistant gets a general sentence for an error of the agent or the
    flux0 server. The log gets the complete error.
    """

    _client: Flux0
    _show_errors: bool
    _progress_seconds: float

    async def list_tools(self, _: Context, __: object) -> types.ListToolsResult:
        try:
            agents = await self._client.agents.list_async()
        except Flux0Error as error:
            raise MCPError(types.INTERNAL_ERROR, self._logged("tools/list", error)) from error
        tools = tool_names(agents).items()
        return types.ListToolsResult(tools=[_tool(name, agent) for name, agent in tools])

    async def call_tool(
        self, context: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        """Run one turn. If the assistant cancels the call, closing the stream stops the agent."""
        given, session = params.arguments or {}, list[types.TextContent]()
        numbers = count(1)

        async def report(message: str | None) -> None:
            await context.session.report_progress(next(numbers), message=message)

        async def report_regularly() -> None:
            while True:
                await anyio.sleep(self._progress_seconds)
                await report(None)

        stop_reporting = start_task(report_regularly)
        try:
            agent = tool_names(await self._client.agents.list_async()).get(params.name)
            if agent is None:
                raise MCPError(types.INVALID_PARAMS, f"unknown tool: {params.name!r}")
            message = arguments.text("message", _argument(given, "message"))
            conversation = await self._conversation(agent, given)
            session.append(_text(f"session_id: {conversation.session_id}"))
            text = await self._run(report, conversation, message)
        except Flux0Error as error:
            problem = self._logged(params.name, error)
            failure = _text(f"{problem}. {_SENT[error.sent if session else 'no']}")
            return types.CallToolResult(content=[failure, *session], is_error=True)
        finally:
            stop_reporting()
        data = {"text": text, "session_id": conversation.session_id}
        return types.CallToolResult(content=[_text(text), *session], structured_content=data)

    def _logged(self, name: str, error: Flux0Error) -> str:
        logging.getLogger("flux0").error("MCP: %s failed: %s", ascii(name), error)
        if self._show_errors or isinstance(error, models.InvalidArgument):
            return error.problem
        return general_text(error)

    async def _conversation(self, agent: Agent, given: dict[str, Any]) -> AsyncConversation:
        target: dict[str, Any] = {"agent": agent}
        if (session_id := given.get("session_id")) is not None:
            # Accept only a session in the user's list, because the flux0 server lets any client
            # that knows a session's id continue the session.
            sessions = await self._client.sessions.list_async(agent_id=agent.id)
            found = [session for session in sessions if session.id == session_id]
            if not found:
                problem = f"{session_id} is not a session of this user with {agent.name}"
                raise models.InvalidArgument("session_id", problem)
            target = {"session": found[0]}
        return await self._client.conversation_async(**target)

    async def _run(self, report: Report, conversation: AsyncConversation, message: str) -> str:
        begun = set[str]()
        async with conversation.send(message) as stream:
            async for event in stream:
                if isinstance(event, models.ChunkEvent) and event.event_id not in begun:
                    begun.add(event.event_id)
                    await report(f"message {len(begun)}")
                # Do not report the status `error` as progress: if the assistant is allowed to see
                # the data of this status, the tool's result contains the data.
                elif (
                    isinstance(event, models.StatusEvent)
                    and event.status != models.SessionStatus.ERROR
                ):
                    await report(_utf8(describe_data(event.data)))
            messages = await stream.final_messages()
        parts = (part for message in messages for part in items_of(message.data))
        texts = (to_text(part.content) for part in parts if isinstance(part, models.ContentPart))
        return _utf8("\n".join(texts))


def _argument(given: dict[str, Any], name: str) -> Any:
    if name in given:
        return given[name]
    unknown = ", ".join(f"{each!r:.50}" for each in given.keys() - _INPUT["properties"].keys())
    known = " and ".join(_INPUT["properties"])
    problem = f"is missing: the arguments are {known}{unknown and f', not {unknown}'}"
    raise models.InvalidArgument(name, problem)


def _tool(name: str, agent: Agent) -> types.Tool:
    description = _utf8(agent.description or f"Send a message to the agent {agent.name}.")
    return types.Tool(name=name, title=_utf8(agent.name), description=description, **_SCHEMAS)


def _utf8(text: str) -> str:
    """Join each pair of surrogates in `text`, and replace lone surrogates.

    Agents may send lone surrogates, because the JSON of the flux0 server escapes them. MCP uses
    UTF-8, which cannot encode them: sending such text ends the MCP server.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _text(text: str) -> types.TextContent:
    return types.TextContent(type="text", text=_utf8(text))


def create_server(client: Flux0, show_errors: bool = False, progress_seconds: float = 15) -> Server:
    """Return an MCP server for the agents of the client's flux0 server.

    While a tool runs, progress is reported at least each `progress_seconds`, because some
    assistants cancel a call after 60 s without progress.
    """
    tools = AgentTools(client, show_errors, progress_seconds)
    return Server(
        "flux0", version=__version__, on_list_tools=tools.list_tools, on_call_tool=tools.call_tool
    )


async def serve_stdio(server: Server) -> None:
    # Ctrl-C ends the process, because the thread that reads standard input cannot be interrupted.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(select, "poll"):
        # Watch a duplicate of standard output, because `stdio_server` redirects the original.
        pipe = os.dup(sys.stdout.fileno())
        Thread(target=_exit_when_closed, args=(pipe,), daemon=True).start()
    async with stdio_server() as (reader, writer):
        await server.run(reader, writer, server.create_initialization_options())


def _exit_when_closed(pipe: int) -> None:
    poll = select.poll()
    # Register `pipe` for no events (0), because `poll` always reports errors and closed pipes.
    poll.register(pipe, 0)
    poll.poll()
    os._exit(141)  # pragma: no cover - the process ends without saving the coverage


def serve_http(server: Server, host: str, port: int) -> None:
    # Reject an empty host: with an empty host, the system listens on all addresses.
    arguments.text("host", host)
    is_ipv6 = ":" in host
    try:
        family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        is_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
        name, value = ("port", port) if is_port else ("host", host)
        raise models.InvalidArgument(name, f"cannot be {value}: {error.strerror}") from error
    with listener:
        shown = f"[{host}]" if is_ipv6 else host
        typer.echo(f"http://{shown}:{listener.getsockname()[1]}/mcp")
        app = server.streamable_http_app(host=host)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run([listener])
