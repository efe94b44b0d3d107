"""Rebuilding a turn's messages from the chunks of its stream."""

from __future__ import annotations

from typing import Any, cast

from attrs import frozen

from flux0.domain.messages.finalizing import REASONING, TurnMessage, finalize
from flux0.domain.messages.json_patch import (
    JSON,
    VALUE_SIZE,
    MemoryBudget,
    PatchError,
    apply_operation,
    check_operation,
    measure,
)
from flux0.domain.messages.text_list import TextList
from flux0.domain.stream_events import ChunkEvent, JSONPatchOperation, StreamEvent

DEFAULT_MAX_TURN_BYTES = 64 * 1024 * 1024


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
    chunks that it has applied. Some things do not show in a stream, so this takes for granted that
    the agent called each message ready, once, in the order in which they began, and that the server
    applied each chunk to its end.

    Args:
        max_turn_bytes: how much the messages may hold together, which is a limit to what a stream
            can make this process remember. Each character counts for a byte, and each value in a
            list or object for 64 more, except the texts of a list that only grew at its end.
            What goes past the limit does not apply, and is noted in `problems`. So is what would
            put more than 200 lists and objects within each other.
    """

    def __init__(self, *, max_turn_bytes: int = DEFAULT_MAX_TURN_BYTES) -> None:
        self._drafts: dict[str, _MessageBuilder] = {}
        self._budget = MemoryBudget(max_turn_bytes)
        self._problems: list[PatchProblem] = []
        self._problem_bytes = 0

    def feed(self, event: StreamEvent) -> str:
        """Take in one event, and return the text that it added at the end of the answer.

        This concerns messages that are not reasoning. The text is that of each text appended to the
        document's list; or, where the whole document is replaced and the new text begins with the
        old, what follows the old. Any other change, structured content and all other events give
        "". The cost is that of the event, however long the message is; `apply_operation` names the
        operations that cost more.

        A chunk that does not apply is noted in `problems`. As on the server, its operations up to
        that point stand; but if one of them is no JSON Patch operation at all, none is applied.
        """
        if not isinstance(event, ChunkEvent):
            return ""
        draft = self._drafts.get(event.event_id)
        if draft is not None and (text := draft.append(event.patches)) is not None:
            return text
        text, index = "", 0
        try:
            for index, operation in enumerate(event.patches):  # noqa: B007 - read where it fails
                check_operation(operation)
            index = 0
            if draft is None:
                draft = self._begin(event)
            for index, operation in enumerate(event.patches):  # noqa: B007 - read where it fails
                text += draft.apply(operation)
        except PatchError as error:
            self._note(event, index, str(error))
        return text

    @property
    def messages(self) -> tuple[TurnMessage, ...]:
        """The messages as they stand now, in the order in which they began.

        A message shows up once the server would store something of it; a tool call already while
        its arguments are on their way, as text. Only messages that changed since the last time are
        built anew. A list of texts costs what is new of it, as long as the message of the last time
        is not kept; all else costs its size.
        """
        return tuple(
            message for draft in self._drafts.values() if (message := draft.message()) is not None
        )

    @property
    def problems(self) -> tuple[PatchProblem, ...]:
        """The operations that could not be applied, oldest first.

        Once their values hold more than `max_turn_bytes` together, no more are noted.
        """
        return tuple(self._problems)

    def finish(self) -> tuple[TurnMessage, ...]:
        """Return the events that the server stores for what was fed, in the order they began."""
        return tuple(
            message for draft in self._drafts.values() if (message := draft.finish()) is not None
        )

    def _begin(self, first: ChunkEvent) -> _MessageBuilder:
        head: Any = [first.event_id, first.correlation_id, dict(first.metadata)]
        self._budget.take(measure(head)[0])
        draft = self._drafts[first.event_id] = _MessageBuilder(first, self._budget)
        return draft

    def _note(self, event: ChunkEvent, index: int, reason: str) -> None:
        if not event.patches:  # There is no budget for the message itself.
            return
        operation = event.patches[index]
        if self._problem_bytes < self._budget.limit:
            self._problem_bytes += measure([operation.value, operation.path])[0]
            problem = PatchProblem(event.event_id, event.seq, index, operation, reason)
            self._problems.append(problem)


class _MessageBuilder:
    """One message in the making."""

    __slots__ = ("_budget", "_first", "_is_reasoning", "_message", "_root", "_stale")

    def __init__(self, first: ChunkEvent, budget: MemoryBudget) -> None:
        self._first = first
        self._is_reasoning = first.metadata.get("kind") == REASONING
        self._budget = budget
        # The document; a `TextList` as long as it is a list of texts that grows at its end.
        self._root: JSON | TextList = None
        self._message: TurnMessage | None = None
        self._stale = False

    def append(self, operations: tuple[JSONPatchOperation, ...]) -> str | None:
        """Add one text at the end of a list as `apply` does, or return None if this is not that.

        Nearly every chunk of a long answer is that, so nothing else is looked for.
        """
        operation, root = operations[0] if len(operations) == 1 else None, self._root
        if (
            operation is None
            or operation.path != "/-"
            or operation.op != "add"
            or type(operation.value) is not str
            or type(root) is not TextList
        ):
            return None
        text, budget = operation.value, self._budget
        if len(text) > budget.left:
            return None
        budget.left -= len(text)
        root.append(text)
        self._stale = True
        return "" if self._is_reasoning else text

    def apply(self, operation: JSONPatchOperation) -> str:
        """Apply one operation, and return the text that it added at the end of the answer."""
        self._stale = True
        root, value, length = self._root, operation.value, _length(self._root)
        if operation.op == "add" and length >= 0 and operation.path in {"/-", f"/{length}"}:
            if type(value) is str and (length == 0 or isinstance(root, TextList)):
                self._append_text(value)
            else:
                self._root = apply_operation(self._opened(), operation, self._budget)
            return value if isinstance(value, str) and not self._is_reasoning else ""
        if operation.path or operation.op not in {"add", "replace"}:
            self._root = apply_operation(self._opened(), operation, self._budget)
            return ""
        self._replace(operation)
        before, after = _text(root), _text(self._root)
        return after[len(before) :] if after.startswith(before) and not self._is_reasoning else ""

    def message(self) -> TurnMessage | None:
        """Return the message as it stands now."""
        if self._stale:
            self._stale = False
            self._message = None  # As long as it holds the text, that cannot grow in place.
            self._message = self._finalized(partial=True)
        return self._message

    def finish(self) -> TurnMessage | None:
        """Return the event that the server stores."""
        return self._finalized(partial=False)

    def _finalized(self, *, partial: bool) -> TurnMessage | None:
        root = self._root
        if isinstance(root, list) and root and all(type(item) is str for item in root):
            # Done once, so that the next look costs what is new until then.
            self._root = root = TextList(cast("list[str]", root))
            self._budget.left += VALUE_SIZE * len(root)
        return finalize(
            self._first, [root.text()] if isinstance(root, TextList) else root, partial=partial
        )

    def _append_text(self, text: str) -> None:
        root = self._root
        if isinstance(root, TextList):
            self._budget.take(len(text))
        else:
            self._budget.take(len(text) + (VALUE_SIZE if root is None else 0))
            self._root = root = TextList()
        root.append(text)

    def _opened(self) -> JSON:
        """Return the document, in which each text of a list is a value of its own from now on."""
        root = self._root
        if isinstance(root, TextList):
            self._budget.take(VALUE_SIZE * len(root))
            self._root = root = cast("JSON", root.texts())
        return root

    def _replace(self, operation: JSONPatchOperation) -> None:
        """Apply an operation that replaces the whole document."""
        root, budget = self._root, self._budget
        if not isinstance(root, TextList):
            self._root = apply_operation(root, operation, budget)
            return
        size = VALUE_SIZE + root.characters
        budget.left += size
        try:
            self._root = apply_operation(None, operation, budget)
        except PatchError:
            budget.left -= size
            raise


def _length(root: JSON | TextList) -> int:
    """Return how many items the list has that the document is, or will be; -1 if it is no list."""
    if root is None:
        return 0
    return len(root) if isinstance(root, (list, TextList)) else -1


def _text(root: JSON | TextList) -> str:
    if isinstance(root, TextList):
        return root.text()
    if isinstance(root, list):
        return "".join(item for item in root if isinstance(item, str))
    return root if isinstance(root, str) else ""
