"""The bytes and the stored events of a fake agent's steps."""

from __future__ import annotations

import json

from flux0.models import StatusEvent
from flux0.testing import AgentStep, Fail, FakeTransport, Report, Say, SendChunk
from support.fakes import begin, kinds, turn


def test_streamed_bytes_are_the_same_as_from_the_server() -> None:
    statuses = Report("typing", {"x": "é"}, event_id="e1"), Report("new", acknowledged_offset=2)
    _, _, body = begin([*statuses, Say("é")])
    assert list(body) == [
        b"event: status\nid: e1\ndata: "
        b'{"id": "e1", "source": "ai_agent", "type": "status", '
        b'"correlation_id": "RID(r000000001)::t000000001", '
        b'"data": {"type": "status", "status": "typing", "data": {"x": "\\u00e9"}}, '
        b'"metadata": null}\n\n',
        b"event: status\nid: \ndata: "
        b'{"id": "", "source": "ai_agent", "type": "status", '
        b'"correlation_id": "RID(r000000001)::t000000001", '
        b'"data": {"type": "status", "status": "new", "acknowledged_offset": 2}, '
        b'"metadata": null}\n\n',
        b"event: chunk\ndata: "
        b'{"correlation_id": "RID(r000000001)::t000000001", "event_id": "m000000001", "seq": 0, '
        b'"patches": [{"op": "add", "path": "/-", "value": "\\u00e9"}], '
        b'"metadata": {"agent_id": "a000000001", "agent_name": "Fake"}, '
        b'"timestamp": 1767225600.0}\n\n',
    ]


def test_statuses_are_streamed_and_stored() -> None:
    steps: list[AgentStep] = [Report("typing", [1], acknowledged_offset=3), Fail("x"), Fail()]
    events, stored = turn(FakeTransport(steps))
    said = [event.data for event in events if isinstance(event, StatusEvent)]
    assert [event.data for event in stored] == said
    assert [(data.status, data.data) for data in said] == [
        ("typing", [1]),
        ("error", "x"),
        ("error", None),
    ]


def test_status_with_a_lone_surrogate_in_its_id_ends_the_stream() -> None:
    fake, session_id, body = begin([Report("typing", event_id="\ud800"), Report("processing")])
    assert list(body) == []
    assert kinds(fake, session_id) == ["message", "typing"]
    fake.assert_nothing_unexpected()


def test_chunk_has_no_metadata_whose_value_is_none() -> None:
    patch = {"op": "add", "path": "/-", "value": "x"}
    _, _, body = begin([SendChunk("e", [patch], metadata={"agent_id": None, "mood": "good"})])
    sent = json.loads(next(body).split(b"data: ")[1])
    assert sent["metadata"] == {"agent_name": "Fake", "mood": "good"}
