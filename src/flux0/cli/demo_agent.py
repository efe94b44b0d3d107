"""An agent to show what a turn looks like: it thinks, asks for the weather, and tells it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from flux0 import SessionStatus
from flux0.testing import (
    AgentStep,
    CallTool,
    FakeClock,
    FakeTransport,
    GiveResult,
    Pause,
    Reason,
    Report,
    Say,
    UserMessage,
)

_PIECE = 4  # Characters, about as many as a token of a language model.
_PACE = 0.03  # Seconds between pieces.
_THINKING = 0.5
_TOOL = 0.8

_NAME = r"[^\Wa-z\d_]\w*"  # A word that begins with a capital.
_PLACE = re.compile(rf"\bin ({_NAME}(?:[ '-]{_NAME})*)")


def weather_agent(message: UserMessage) -> Iterator[AgentStep]:
    """Answer as a friendly agent does that knows of nothing but the weather."""
    named = _PLACE.search(message.content)
    place = named[1] if named else "San Francisco"
    yield Report(SessionStatus.PROCESSING, {"detail": "Thinking"})
    yield Pause(_THINKING)
    yield _at_a_pace(Reason, f"They want to know about {place}. I had better look it up.")
    call = CallTool("get_weather", {"location": place}, id=f"call-{message.correlation_id[-10:]}")
    yield call
    yield Pause(_TOOL)
    yield GiveResult(call, {"celsius": 16, "sky": "foggy"})
    yield Report(SessionStatus.TYPING)
    yield _at_a_pace(
        Say,
        f"It is 16 °C and foggy in {place} right now. Take a jacket, and enjoy the view "
        "once the fog has gone!",
    )


def demo_transport(
    *, sleep: Callable[[float], object] | None = None, start: float | None = None
) -> FakeTransport:
    """Return a fake with this agent.

    Args:
        sleep: `time.sleep`, to have its pauses take real time; by default they take none.
        start: the time at which the fake's clock begins, in seconds since 1970.
    """
    clock = FakeClock(sleep=sleep) if start is None else FakeClock(start, sleep=sleep)
    return FakeTransport(weather_agent, agent_name="Drizzle", agent_types=("weather",), clock=clock)


def _at_a_pace(step: type[Say | Reason], text: str) -> AgentStep:
    return step(text, pieces=-(-len(text) // _PIECE), pause=_PACE)
