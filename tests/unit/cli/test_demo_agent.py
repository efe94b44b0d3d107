"""The demo agent."""

from __future__ import annotations

import pytest

from flux0 import Flux0
from flux0.cli.demo_agent import demo_transport
from flux0.models import (
    MessageData,
    ToolData,
)
from flux0.testing import (
    FakeClock,
)


@pytest.mark.parametrize(
    ("question", "place"),
    [
        ("What's the weather in New York?", "New York"),
        ("Is it warm in Rome today?", "Rome"),
        ("Is it windy in Saint-Étienne?", "Saint-Étienne"),
        ("Hello", "San Francisco"),
    ],
)
def test_demo_agent_calls_the_weather_tool(question: str, place: str) -> None:
    slept: list[float] = []
    fake = demo_transport(FakeClock(1_000_000_000, sleep=slept.append))
    with Flux0(transport=fake) as flux0:
        stream = flux0.conversation(agent=fake.agent_id).send(question)
        pieces = list(stream.text())
        (call,) = stream.tool_calls
        said = [type(message.data) for message in stream.messages]
    assert call.args == {"location": place}
    assert len(pieces) > 10
    assert f"in {place}" in "".join(pieces)
    assert said == [MessageData, MessageData, ToolData, MessageData]
    assert 1 < sum(slept) < 5
