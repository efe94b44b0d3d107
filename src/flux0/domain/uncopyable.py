"""The base class of objects that cannot be pickled or copied."""

from __future__ import annotations

from typing import NoReturn


class Uncopyable:
    """The base class of objects that use the connections and locks of a client.

    Pickling or copying such an object raises `TypeError`.
    """

    def __reduce__(self) -> NoReturn:
        problem = "cannot be pickled or copied, because it uses the connections of its client"
        advice = "create a Flux0 client in each process, and pass ids instead of objects"
        raise TypeError(f"{type(self).__name__} {problem}: {advice}")
