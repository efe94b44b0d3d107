"""Fakes for tests of code that uses flux0. Not loaded by `import flux0`."""

from flux0.testing.fake.calls import CallResponse as CallResponse, ReceivedCall as ReceivedCall
from flux0.testing.fake.clock import ClockStandsStill as ClockStandsStill, FakeClock as FakeClock
from flux0.testing.fake.faults import (
    Delay as Delay,
    Drop as Drop,
    Fault as Fault,
    Refuse as Refuse,
    Respond as Respond,
    Split as Split,
    Stall as Stall,
    Truncate as Truncate,
)
from flux0.testing.fake.steps import (
    AgentReply as AgentReply,
    AgentStep as AgentStep,
    CallTool as CallTool,
    Fail as Fail,
    FallSilent as FallSilent,
    Gate as Gate,
    GiveResult as GiveResult,
    LangChain as LangChain,
    Pause as Pause,
    Reason as Reason,
    Report as Report,
    Say as Say,
    SendChunk as SendChunk,
    UserMessage as UserMessage,
)
from flux0.testing.fake.transport import FakeTransport as FakeTransport
