"""Fakes and cassettes for tests of code that uses flux0. Not loaded by `import flux0`."""

from flux0.testing.cassettes.cassette import CassetteError
from flux0.testing.cassettes.recording import RecordingTransport
from flux0.testing.cassettes.replaying import (
    CassetteMode,
    NotRecorded,
    ReplayTransport,
    cassette,
)
from flux0.testing.fake.calls import Call, CallResponse
from flux0.testing.fake.clock import ClockStandsStill, FakeClock
from flux0.testing.fake.faults import (
    Delay,
    Drop,
    Fault,
    Refuse,
    Respond,
    Split,
    Stall,
    Truncate,
)
from flux0.testing.fake.steps import (
    AgentReply,
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
    UserMessage,
)
from flux0.testing.fake.transport import FakeTransport

__all__ = [
    "AgentReply",
    "AgentStep",
    "Call",
    "CallResponse",
    "CallTool",
    "CassetteError",
    "CassetteMode",
    "ClockStandsStill",
    "Delay",
    "Drop",
    "Fail",
    "FakeClock",
    "FakeTransport",
    "FallSilent",
    "Fault",
    "Gate",
    "GiveResult",
    "LangChain",
    "NotRecorded",
    "Pause",
    "Reason",
    "RecordingTransport",
    "Refuse",
    "ReplayTransport",
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
