"""An agent to show what a turn looks like: it thinks, asks for the weather, and tells it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from flux0 import SessionStatus, testing

_PIECE = 4  # Characters, about as many as a token of a language model.
_PACE = 0.02  # Seconds between pieces.
_THINKING = 0.3
_TOOL = 0.5

_NAME = r"[^\Wa-z\d_]\w*"  # A word that begins with a capital.
_PLACE = re.compile(rf"\bin ({_NAME}(?:[ '-]{_NAME})*)")


def weather_agent(message: testing.UserMessage) -> Iterator[testing.AgentStep]:
    """Answer as a friendly agent does that knows of nothing but the weather."""
    named = _PLACE.search(message.content)
    place = named[1] if named else "San Francisco"
    yield testing.Report(SessionStatus.PROCESSING, {"detail": "Thinking"})
    yield testing.Pause(_THINKING)
    yield _at_a_pace(testing.Reason, f"They want to know about {place}. I had better look it up.")
    call = testing.CallTool(
        "get_weather", {"location": place}, id=f"call-{message.correlation_id[-10:]}"
    )
    yield call
    yield testing.Pause(_TOOL)
    yield testing.GiveResult(call, {"celsius": 16, "sky": "foggy"})
    yield testing.Report(SessionStatus.TYPING)
    yield _at_a_pace(
        testing.Say,
        f"It is 16 °C and foggy in {place} right now. Take a jacket, and enjoy the view "
        "once the fog has gone!",
    )


def demo_transport(
    *, sleep: Callable[[float], object] | None = None, start: float | None = None
) -> testing.FakeTransport:
    """Return a fake with this agent.

    Args:
        sleep: `time.sleep`, to have its pauses take real time; by default they take none.
        start: the time at which the fake's clock begins, in seconds since 1970.
    """
    clock = testing.FakeClock(*(() if start is None else (start,)), sleep=sleep)
    return testing.FakeTransport(
        weather_agent, agent_name="Drizzle", agent_types=("weather",), clock=clock
    )


def _at_a_pace(step: type[testing.Say | testing.Reason], text: str) -> testing.AgentStep:
    return step(text, pieces=-(-len(text) // _PIECE), pause=_PACE)
