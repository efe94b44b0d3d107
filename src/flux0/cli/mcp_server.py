"""An MCP server that offers each agent of a flux0 server as a tool for assistants."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterable
from typing import Any

import typer
from attrs import frozen

from flux0 import Agent, AsyncConversation, Flux0, Flux0Error, StatusEvent, __version__
from flux0.cli.descriptions import describe_data, items_of, to_text
from flux0.domain import arguments
from flux0.models import ContentPart, InvalidArgument, MissingDependency

try:
    import uvicorn
    from mcp import MCPError, types
    from mcp.server import Server, ServerRequestContext as Context
    from mcp.server.stdio import stdio_server
except ModuleNotFoundError as _error:
    raise MissingDependency(
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


def tool_names(agents: Iterable[Agent]) -> dict[str, Agent]:
    """Map the name of each tool to its agent.

    A tool has the name of its agent, with underscores for characters that MCP does not allow. If
    an older agent has the same name, the id is appended.
    """
    tools: dict[str, Agent] = {}
    for agent in agents:
        # Assistants accept names of up to 64 characters. An id with 10 characters may be appended.
        name = _allowed(agent.name)[:53] or "agent"
        while name in tools:
            name = f"{name}_{_allowed(agent.id)}"
        tools[name] = agent
    return tools


def _allowed(text: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_-]+", "_", text).strip("_")


@frozen
class AgentTools:
    """The handlers of the MCP server. Each request lists the agents of the flux0 server again."""

    _client: Flux0

    async def list_tools(self, _: Context, __: object) -> types.ListToolsResult:
        """Return a tool for each agent."""
        try:
            agents = await self._client.agents.list_async()
        except Flux0Error as error:
            raise MCPError(types.INTERNAL_ERROR, str(error)) from error
        return types.ListToolsResult(
            tools=[
                types.Tool(
                    name=name,
                    title=agent.name,
                    description=agent.description or f"Send a message to the agent {agent.name}.",
                    input_schema=_INPUT,
                    output_schema=_OUTPUT,
                )
                for name, agent in tool_names(agents).items()
            ]
        )

    async def call_tool(
        self, context: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        """Run one turn. If the assistant cancels the call, closing the stream stops the agent."""
        given, session = params.arguments or {}, list[types.TextContent]()
        try:
            agent = tool_names(await self._client.agents.list_async()).get(params.name)
            if agent is None:
                raise MCPError(types.INVALID_PARAMS, f"unknown tool: {params.name!r}")
            message = arguments.text("message", given.get("message"))
            conversation = await self._conversation(agent, given)
            session.append(_text(f"session_id: {conversation.session_id}"))
            text = await self._run(context, conversation, message)
        except Flux0Error as error:
            return types.CallToolResult(content=[_text(str(error)), *session], is_error=True)
        return types.CallToolResult(
            content=[_text(text), *session],
            structured_content={"text": text, "session_id": conversation.session_id},
        )

    async def _conversation(self, agent: Agent, given: dict[str, Any]) -> AsyncConversation:
        target: dict[str, Any] = {"agent": agent}
        if (session_id := given.get("session_id")) is not None:
            # The server continues a session for everybody who knows its id, but lists the session
            # only for its user.
            sessions = await self._client.sessions.list_async(agent_id=agent.id)
            found = [session for session in sessions if session.id == session_id]
            if not found:
                problem = f"{session_id} is not a session of this user with {agent.name}"
                raise InvalidArgument("session_id", problem)
            target = {"session": found[0]}
        return await self._client.conversation_async(**target)

    async def _run(self, context: Context, conversation: AsyncConversation, message: str) -> str:
        statuses = 0
        async with conversation.send(message) as stream:
            async for event in stream:
                if isinstance(event, StatusEvent):
                    statuses += 1
                    await context.session.report_progress(
                        statuses, message=_utf8(describe_data(event.data))
                    )
            messages = await stream.final_messages()
        parts = (part for message in messages for part in items_of(message.data))
        text = "\n".join(to_text(part.content) for part in parts if isinstance(part, ContentPart))
        return _utf8(text)


def _utf8(text: str) -> str:
    """Join each pair of surrogates, and replace lone surrogates, which end an MCP server.

    Agents may send them: the JSON of the flux0 server escapes them, and MCP uses UTF-8.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _text(text: str) -> types.TextContent:
    return types.TextContent(type="text", text=text)


def create_server(client: Flux0) -> Server:
    """Return an MCP server for the agents of the client's flux0 server."""
    tools = AgentTools(client)
    return Server(
        "flux0", version=__version__, on_list_tools=tools.list_tools, on_call_tool=tools.call_tool
    )


async def serve_stdio(client: Flux0) -> None:
    """Serve an assistant over standard input and output, until the input ends."""
    # Ctrl-C ends the process: the thread that reads standard input cannot be interrupted.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    server = create_server(client)
    async with stdio_server() as (reader, writer):
        await server.run(reader, writer, server.create_initialization_options())


def serve_http(client: Flux0, host: str, port: int) -> None:
    """Serve assistants over streamable HTTP until Ctrl-C, and print the URL."""
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise InvalidArgument("port", f"cannot be {port}: {error.strerror}") from error
    with listener:
        typer.echo(f"http://{host}:{listener.getsockname()[1]}/mcp")
        app = create_server(client).streamable_http_app(host=host)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run([listener])
