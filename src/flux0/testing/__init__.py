"""For tests of code that uses flux0; nothing here is loaded by `import flux0`."""

from flux0.testing.cassettes.cassette import CassetteError
from flux0.testing.cassettes.recording import RecordingTransport
from flux0.testing.cassettes.replaying import CassetteMode, ReplayTransport, cassette
from flux0.testing.fake.agents import Reply, UserMessage
from flux0.testing.fake.calls import Call, CallAnswer, ExpectedCall
from flux0.testing.fake.clock import ClockStandsStill, FakeClock
from flux0.testing.fake.faults import Delay, Drop, Fault, Refuse, Respond, Split, Stall, Truncate
from flux0.testing.fake.steps import (
    AgentStep,
    CallTool,
    Fail,
    FallSilent,
    Gate,
    GiveResult,
    LangChain,
    Pause,
    Reason,
    Report,
    Say,
    SendChunk,
)
from flux0.testing.fake.transport import FakeTransport

__all__ = [
    "AgentStep",
    "Call",
    "CallAnswer",
    "CallTool",
    "CassetteError",
    "CassetteMode",
    "ClockStandsStill",
    "Delay",
    "Drop",
    "ExpectedCall",
    "Fail",
    "FakeClock",
    "FakeTransport",
    "FallSilent",
    "Fault",
    "Gate",
    "GiveResult",
    "LangChain",
    "Pause",
    "Reason",
    "RecordingTransport",
    "Refuse",
    "ReplayTransport",
    "Reply",
    "Report",
    "Respond",
    "Say",
    "SendChunk",
    "Split",
    "Stall",
    "Truncate",
    "UserMessage",
    "cassette",
]
