"""A set and a mapping that do not keep their values in memory."""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import Final, Generic, TypeVar
from weakref import ref

K = TypeVar("K")
V = TypeVar("V")

_MIN_LIMIT: Final = 64


class WeakObjects(Generic[V]):
    """A set with weak references, for several threads.

    Iterating over a `weakref.WeakSet` fails if another thread changes the set meanwhile. This class
    uses only single operations of a set, which are atomic, also without the GIL.
    """

    def __init__(self) -> None:
        self._references: set[ref[V]] = set()

    def add(self, value: V) -> None:
        self._references.add(ref(value, self._references.discard))

    def values(self) -> tuple[V, ...]:
        values = [reference() for reference in self._references.copy()]
        return tuple(value for value in values if value is not None)


class WeakValues(Generic[K, V]):
    """A mapping with weak references to its values, for several threads.

    `weakref.WeakValueDictionary` calls Python code when a value is freed. If a signal handler
    raises an exception in this code, Python prints the exception, and the interrupted call
    continues. This class removes the keys of freed values later, when the number of keys has
    doubled.
    """

    def __init__(self) -> None:
        self._references: dict[K, ref[V]] = {}
        self._limit = _MIN_LIMIT
        # The lock is reentrant, because a signal handler can send a message in a thread that holds
        # the lock. With a normal lock, this thread waits forever.
        self._lock = RLock()

    def get(self, key: K) -> V | None:
        reference = self._references.get(key)
        return None if reference is None else reference()

    def set(self, key: K, value: V) -> None:
        with self._lock:
            self._references[key] = ref(value)
            self._limit_keys()

    def setdefault(self, key: K, create: Callable[[], V]) -> V:
        with self._lock:
            value = self.get(key)
            if value is not None:
                return value
            # A signal handler can set the same key at each moment. Its value has priority.
            reference = ref(created := create())
            while (value := self._references.setdefault(key, reference)()) is None:
                self._remove(key)
            del created
            self._limit_keys()
            return value

    def values(self) -> tuple[V, ...]:
        values = (reference() for reference in self._references.copy().values())
        return tuple(value for value in values if value is not None)

    def _limit_keys(self) -> None:
        if len(self._references) > self._limit:
            for key, reference in self._references.copy().items():
                if reference() is None:
                    self._remove(key)
            self._limit = max(2 * len(self._references), _MIN_LIMIT)

    def _remove(self, key: K) -> None:
        """Remove the key of a freed value, unless a signal handler has set the key meanwhile."""
        removed = self._references.pop(key, None)
        if removed is not None and removed() is not None:
            self._references.setdefault(key, removed)
