"""Rebuilding a turn's messages from the chunks of its stream."""

from __future__ import annotations

from attrs import frozen

from flux0.domain.messages.finalizing import REASONING, TurnMessage, finalize
from flux0.domain.messages.json_patch import (
    JSON,
    PatchError,
    apply_operation,
    check_operation,
    copied,
)
from flux0.domain.stream_events import ChunkEvent, JSONPatchOperation, StreamEvent


@frozen
class PatchProblem:
    """An operation that could not be applied; the rest of its chunk was left out with it.

    `seq` is the chunk's, `index` the operation's place in the chunk.
    """

    event_id: str
    seq: int
    index: int
    operation: JSONPatchOperation
    reason: str


class MessageAccumulator:
    """Rebuilds the message and tool events of one turn from its stream, as the server does.

    Chunks apply in the order in which they are fed, whatever their `seq`: the server sends only
    chunks that it has applied. What the stream does not tell is taken for granted: that the agent
    called each message ready, once, and in the order in which they began. Nor does it show what a
    chunk did that the server dropped halfway.
    """

    def __init__(self) -> None:
        self._drafts: dict[str, _Draft] = {}
        self._problems: list[PatchProblem] = []

    def feed(self, event: StreamEvent) -> str:
        """Take in one event, and return the text that it added at the end of the answer.

        That is, of a message that is not reasoning: each text appended to the document's list;
        and, where the whole document is replaced, what the new text says beyond the one before,
        if it begins with that. Any other change, structured content and all other events give
        "". The cost is that of the event, however long the message is; `apply_operation` names the
        operations that cost more.

        A chunk that does not apply is noted in `problems`. As on the server, its operations up to
        that point stand, except where one is no JSON Patch operation at all: then none is applied.
        """
        if not isinstance(event, ChunkEvent):
            return ""
        draft = self._drafts.get(event.event_id)
        if draft is None:
            draft = self._drafts[event.event_id] = _Draft(event)
        elif (text := draft.append(event.patches)) is not None:
            return text
        text = ""
        index = 0
        try:
            for index, operation in enumerate(event.patches):  # noqa: B007 - read where it fails
                check_operation(operation)
            for index, operation in enumerate(event.patches):  # noqa: B007 - read where it fails
                text += draft.apply(operation)
        except PatchError as error:
            self._problems.append(
                PatchProblem(event.event_id, event.seq, index, event.patches[index], str(error))
            )
        return text

    @property
    def messages(self) -> tuple[TurnMessage, ...]:
        """The messages as they stand now, in the order in which they began.

        A message shows up once the server would store something of it, a tool call already while
        its arguments are on their way, as text. Only messages that changed since the last time are
        built anew: text by joining what is new, all else at the cost of its size.
        """
        return tuple(
            message for draft in self._drafts.values() if (message := draft.message()) is not None
        )

    @property
    def problems(self) -> tuple[PatchProblem, ...]:
        """The operations that could not be applied, oldest first."""
        return tuple(self._problems)

    def finish(self) -> tuple[TurnMessage, ...]:
        """Return the events that the server stores for what was fed, in the order they began."""
        return tuple(
            message for draft in self._drafts.values() if (message := draft.finish()) is not None
        )


class _Draft:
    """One message in the making."""

    __slots__ = ("_first", "_is_reasoning", "_joined", "_message", "_root", "_stale", "_text")

    def __init__(self, first: ChunkEvent) -> None:
        self._first = first
        self._is_reasoning = first.metadata.get("kind") == REASONING
        self._root: JSON = None
        # The root's first `_joined` items, all of them texts, joined; for a root that is a list.
        self._text = ""
        self._joined = 0
        self._message: TurnMessage | None = None
        self._stale = False

    def append(self, operations: tuple[JSONPatchOperation, ...]) -> str | None:
        """Do as `apply` does if this is one text for the end of a list; else return None.

        Nearly every chunk of a long answer is that, so it is spared all checks for what else it
        may be.
        """
        operation, root = operations[0] if len(operations) == 1 else None, self._root
        if (
            operation is None
            or operation.path != "/-"
            or operation.op != "add"
            or type(operation.value) is not str
            or type(root) is not list
        ):
            return None
        root.append(operation.value)
        self._stale = True
        return "" if self._is_reasoning else operation.value

    def apply(self, operation: JSONPatchOperation) -> str:
        """Apply one operation, and return the text that it added at the end of the answer."""
        self._stale = True
        before, value = self._root, operation.value
        if _appends(operation, before):
            if isinstance(before, list):
                before.append(copied(value))
            else:
                self._root = apply_operation(before, operation)
            return value if isinstance(value, str) and not self._is_reasoning else ""
        self._text, self._joined = "", 0
        self._root = apply_operation(before, operation)
        if operation.path or operation.op not in {"add", "replace"} or self._is_reasoning:
            return ""
        shown, text = _texts(before), _texts(self._root)
        return text[len(shown) :] if text.startswith(shown) else ""

    def message(self) -> TurnMessage | None:
        """Return the message as it stands now."""
        if self._stale:
            self._message = finalize(self._first, self._root, self._joined_text(), partial=True)
            self._stale = False
        return self._message

    def finish(self) -> TurnMessage | None:
        """Return the event that the server stores."""
        return finalize(self._first, self._root, self._joined_text())

    def _joined_text(self) -> str | None:
        """Return the texts joined that the root is a list of, or None where it is not."""
        if not isinstance(self._root, list):
            return None
        new = self._root[self._joined :]
        texts = [item for item in new if isinstance(item, str)]
        if len(texts) < len(new):
            return None
        self._text += "".join(texts)
        self._joined += len(texts)
        return self._text


def _appends(operation: JSONPatchOperation, root: JSON) -> bool:
    """Whether this is an `add` behind the last item of a root that is, or will be, a list."""
    if operation.op != "add" or not (root is None or isinstance(root, list)):
        return False
    return operation.path == "/-" or operation.path == f"/{len(root or ())}"


def _texts(root: JSON) -> str:
    if isinstance(root, list):
        return "".join(item for item in root if isinstance(item, str))
    return root if isinstance(root, str) else ""
