"""An agent in memory, to try the application without a flux0 server."""

import time
from collections.abc import Iterator

from flux0.testing import (
    AgentStep,
    CallTool,
    Fail,
    FakeClock,
    FakeTransport,
    GiveResult,
    Reason,
    Report,
    Say,
    UserMessage,
)


def reply(message: UserMessage) -> Iterator[AgentStep]:
    """Return a long story, fail, or look up the weather."""
    text = message.content.lower()
    yield Report("processing")
    if "story" in text:
        yield say("Once upon a time, " + "and then, " * 200 + "the end.")
    elif "fail" in text:
        yield say("I will try.")
        yield Fail("the language model is not available")
    else:
        city = "Paris" if "paris" in text else "San Francisco"
        yield Reason(f"They want to know the weather in {city}.")
        tool = CallTool("get_weather", {"city": city})
        yield tool
        yield GiveResult(tool, {"celsius": 16, "sky": "foggy"})
        yield say(f"It is **16 °C** and foggy in {city}.")


def say(text: str) -> Say:
    """Return a message that is streamed in pieces, like the tokens of a language model."""
    return Say(text, pieces=-(-len(text) // 5), pause=0.05)


def in_memory_server() -> FakeTransport:
    """Return a flux0 server in memory, whose agent takes real time."""
    return FakeTransport(
        reply, agent_name="Drizzle", clock=FakeClock(time.time(), sleep=time.sleep)
    )
