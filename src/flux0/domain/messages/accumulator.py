"""Building the messages of a turn from its chunk events."""

from __future__ import annotations

from typing import Any, cast

from attrs import frozen

from flux0.domain.messages.finalizing import REASONING, TurnMessage, finalize, is_stored
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
    """An operation that could not be applied. Later operations in its chunk are skipped.

    Attributes:
        event_id: the id of the message to which the operation belongs.
        seq: the member `seq` of the chunk event with the operation.
        index: the operation's index in the chunk event; the first is 0.
        operation: the operation that could not be applied.
        reason: the reason why the operation could not be applied.
    """

    event_id: str
    seq: int
    index: int
    operation: JSONPatchOperation
    reason: str


class MessageAccumulator:
    """Builds the message and tool events of one turn from its stream, as the server does.

    Chunks are applied in the order of the `feed` calls; `seq` is ignored. A stream does not show
    which messages the server stores. The accumulator assumes that the agent reports the status
    `ready` once for each message, in the order in which the messages start. It also assumes that
    the server applies each chunk completely.

    Args:
        max_turn_bytes: the memory limit for all messages together. Each character counts as 1 byte,
            and each JSON value as 64 additional bytes. Exception: if all chunks of a message append
            strings to a list, these strings do not count 64 bytes. An operation is not applied, but
            recorded in `problems`, if its result exceeds the limit or has values that are nested
            more than 200 levels deep.
    """

    def __init__(self, *, max_turn_bytes: int = DEFAULT_MAX_TURN_BYTES) -> None:
        self._builders: dict[str, _MessageBuilder] = {}
        self._budget = MemoryBudget(max_turn_bytes)
        self._problems: list[PatchProblem] = []
        self._problem_bytes = 0

    def feed(self, event: StreamEvent) -> str:
        """Apply one event, and return the text that the event appends to the answer.

        If a chunk appends strings to a message, the result is these strings, joined. If a chunk
        replaces a message's whole text, or the last text of its list, with a longer text that
        starts with the old text, the result is the added text. For all other events, such as
        reasoning and other replaced text, the result is "". It is also "" for a message whose first
        chunk does not name the agent, because the server does not store this message.

        The cost depends on the event's size, not on the message's length. The docstring of
        `apply_operation` lists the exceptions.

        If an operation cannot be applied, it is recorded in `problems`. As on the server, the
        chunk's preceding operations remain applied. If an operation is not a valid JSON Patch
        operation, no operation of its chunk is applied.
        """
        if not isinstance(event, ChunkEvent):
            return ""
        builder = self._builders.get(event.event_id)
        if builder is not None and (text := builder.append(event.patches)) is not None:
            return text
        text, index = "", 0
        try:
            for index, operation in enumerate(event.patches):  # noqa: B007 - read in the except clause
                check_operation(operation)
            index = 0
            if builder is None:
                builder = self._add_builder(event)
            for index, operation in enumerate(event.patches):  # noqa: B007 - read in the except clause
                text += builder.apply(operation)
        except PatchError as error:
            self._record_problem(event, index, str(error))
        return text

    @property
    def messages(self) -> tuple[TurnMessage, ...]:
        """The messages so far, in the order in which they started.

        A message is left out if the server cannot store its present content. But a tool call with
        incomplete arguments is included, with the arguments' text in `args`.

        Only messages that changed since the last access are built again, at a cost proportional to
        the added text. If you keep a reference to the last result, the cost is proportional to the
        whole text, because Python must copy the text.
        """
        messages = (builder.message() for builder in self._builders.values())
        return tuple(message for message in messages if message is not None)

    def message(self, event_id: str, *, partial: bool = False) -> TurnMessage | None:
        """Return the event that the server stores for one message; None if it stores no event.

        Each call builds a new object. If `partial` is True, a message is returned even if it has
        tool calls with incomplete arguments.
        """
        builder = self._builders.get(event_id)
        return None if builder is None else builder.finalized(partial=partial)

    @property
    def first_chunks(self) -> tuple[ChunkEvent, ...]:
        """The first chunk event of each message, in the order in which the messages started."""
        return tuple(builder.first for builder in self._builders.values())

    @property
    def problems(self) -> tuple[PatchProblem, ...]:
        """The operations that could not be applied, oldest first.

        Recording stops when the recorded operations are larger than `max_turn_bytes` in total.
        """
        return tuple(self._problems)

    def finish(self, *, partial: bool = False) -> tuple[TurnMessage, ...]:
        """Return the events that the server stores for the turn, in the order of `messages`.

        Each call returns new objects. If `partial` is True, the result equals `messages`: tool
        calls with incomplete arguments are included.
        """
        messages = (builder.finalized(partial=partial) for builder in self._builders.values())
        return tuple(message for message in messages if message is not None)

    def _add_builder(self, first: ChunkEvent) -> _MessageBuilder:
        head: Any = [first.event_id, first.correlation_id, dict(first.metadata)]
        self._budget.charge(measure(head)[0])
        builder = self._builders[first.event_id] = _MessageBuilder(first, self._budget)
        return builder

    def _record_problem(self, event: ChunkEvent, index: int, reason: str) -> None:
        # A chunk without operations fails if its metadata exceed the memory limit. Do not record
        # this failure, because a `PatchProblem` needs an operation.
        if not event.patches:
            return
        operation = event.patches[index]
        if self._problem_bytes < self._budget.limit:
            self._problem_bytes += measure([operation.value, operation.path])[0]
            problem = PatchProblem(event.event_id, event.seq, index, operation, reason)
            self._problems.append(problem)


class _MessageBuilder:
    __slots__ = ("_budget", "_is_answer", "_message", "_root", "_stale", "first")

    def __init__(self, first: ChunkEvent, budget: MemoryBudget) -> None:
        self.first = first
        self._is_answer = is_stored(first) and first.metadata.get("kind") != REASONING
        self._budget = budget
        # `_root` is the JSON document that the message's patches have built so far, or a `TextList`
        # if all operations have appended strings.
        self._root: JSON | TextList = None
        self._message: TurnMessage | None = None
        self._stale = False

    def append(self, operations: tuple[JSONPatchOperation, ...]) -> str | None:
        """Apply a chunk that only appends one string, which is the most frequent kind of chunk.

        Return the text that was added to the answer. If the chunk has other operations or exceeds
        the turn's memory limit, change nothing and return None. This method is faster than `apply`.
        """
        root = self._root
        if type(root) is not TextList or len(operations) != 1:
            return None
        operation = operations[0]
        text = operation.value
        if operation.path != "/-" or operation.op != "add" or type(text) is not str:
            return None
        budget, length = self._budget, len(text)
        if length > budget.remaining:
            return None
        budget.remaining -= length
        root.append(text)
        self._stale = True
        return text if self._is_answer else ""

    def apply(self, operation: JSONPatchOperation) -> str:
        self._stale = True
        root, value, length = self._root, operation.value, _list_length(self._root)
        last: JSON = None
        appends = operation.op == "add" and length >= 0 and operation.path in {"/-", f"/{length}"}
        if appends and type(value) is str and (length == 0 or isinstance(root, TextList)):
            self._append_text(value)
        else:
            document = self._as_json()
            # `apply_operation` may change the list `document`, so read its last item before.
            if operation.op == "replace" and length > 0 and operation.path == f"/{length - 1}":
                last = cast("list[JSON]", document)[-1]
            self._root = apply_operation(document, operation, self._budget)
        added = value if appends and isinstance(value, str) else ""
        if isinstance(last, str) and isinstance(value, str) and value.startswith(last):
            added = value[len(last) :]
        if operation.path == "" and operation.op in {"add", "replace"}:
            before, after = _text(root), _text(self._root)
            added = after[len(before) :] if after.startswith(before) else ""
        return added if self._is_answer else ""

    def message(self) -> TurnMessage | None:
        if self._stale:
            # Drop the old message before the new message is built: CPython appends to a string
            # without copying the string only if there is no other reference to the string.
            self._message = None
            self._message = self.finalized(partial=True)
            self._stale = False
        return self._message

    def finalized(self, *, partial: bool) -> TurnMessage | None:
        root = self._root
        if isinstance(root, list) and root and all(type(item) is str for item in root):
            # Convert the list `root` into a `TextList`. `TextList.text` keeps the joined text, so
            # the next call of `finalized` joins only the strings that were added meanwhile.
            self._root = root = TextList(cast("list[str]", root))
            self._budget.remaining += VALUE_SIZE * len(root)
        document = [root.text()] if isinstance(root, TextList) else root
        return finalize(self.first, cast("JSON", document), partial=partial)

    def _append_text(self, text: str) -> None:
        root = self._root
        self._budget.charge(len(text) + (VALUE_SIZE if root is None else 0))
        if not isinstance(root, TextList):
            self._root = root = TextList()
        root.append(text)

    def _as_json(self) -> JSON:
        root = self._root
        if isinstance(root, TextList):
            self._budget.charge(VALUE_SIZE * len(root))
            self._root = root = cast("JSON", root.texts())
        return root


def _list_length(root: JSON | TextList) -> int:
    if root is None:
        return 0
    return len(root) if isinstance(root, (list, TextList)) else -1


def _text(root: JSON | TextList) -> str:
    if isinstance(root, TextList):
        return root.text()
    if isinstance(root, list):
        return "".join(item for item in root if isinstance(item, str))
    return root if isinstance(root, str) else ""
