"""An example agent that runs in memory. It reasons, calls a weather tool, and answers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flux0 import SessionStatus, testing

# The demo agent sends text in pieces with this number of characters, which is the typical length of
# a language model's token.
_PIECE_LENGTH = 4
_PIECE_SECONDS = 0.02  # The pause between two pieces of text, in seconds.
_THINKING_SECONDS = 0.3
_TOOL_SECONDS = 0.5

# The pattern `_NAME` matches one word of a place name. The word begins with a capital letter.
_NAME = r"[^\Wa-z\d_]\w*"
_PLACE = re.compile(rf"\bin ({_NAME}(?:[ '-]{_NAME})*)")


def weather_agent(message: testing.UserMessage) -> Iterator[testing.AgentStep]:
    match = _PLACE.search(message.content)
    place = match[1] if match else "San Francisco"
    yield testing.Report(SessionStatus.PROCESSING, {"detail": "Thinking"})
    yield testing.Pause(_THINKING_SECONDS)
    yield _in_pieces(testing.Reason, f"They want to know about {place}. I had better look it up.")
    call_id = f"call-{message.correlation_id[-10:]}"
    call = testing.CallTool("get_weather", {"location": place}, id=call_id)
    yield call
    yield testing.Pause(_TOOL_SECONDS)
    yield testing.GiveResult(call, {"celsius": 16, "sky": "foggy"})
    yield testing.Report(SessionStatus.TYPING)
    yield _in_pieces(
        testing.Say,
        f"It is 16 °C and foggy in {place} right now. Take a jacket, and enjoy the view "
        "once the fog has gone!",
    )


def demo_transport(clock: testing.FakeClock | None = None) -> testing.FakeTransport:
    return testing.FakeTransport(
        weather_agent, agent_name="Drizzle", agent_types=("weather",), clock=clock
    )


def _in_pieces(step: type[testing.Say | testing.Reason], text: str) -> testing.AgentStep:
    return step(text, pieces=-(-len(text) // _PIECE_LENGTH), pause=_PIECE_SECONDS)
