"""The base class of models: keeps the members of JSON objects that this version does not know."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from attrs import field, frozen


@frozen
class Extensible:
    """A model that keeps members which the server sent and this version of flux0 does not know.

    Attributes:
        extra: these members, as plain JSON; usually empty. Members that are nested more than 200
            levels deep are left out. `==` does not compare `extra`, because a stored message may
            have members that it does not have in a stream.
    """

    extra: Mapping[str, Any] = field(
        default=MappingProxyType[str, Any]({}), kw_only=True, eq=False, repr=False
    )


def with_extra(data: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of a model with the members of `extra`, after its own members."""
    return {**data, **extra, **data} if extra else data


class _OptionalSlot:
    """A slot that is not set if its value is empty, so that decoding need not set it."""

    def __init__(self, slot: Any) -> None:
        self._slot = slot

    def __get__(self, model: object, kind: type) -> Any:
        if model is None:
            return self
        try:
            return self._slot.__get__(model, kind)
        except AttributeError:
            return {}

    def __set__(self, model: object, value: Mapping[str, Any]) -> None:
        if value:
            self._slot.__set__(model, value)


# Type checkers do not see this assignment: for them, it is the field.
setattr(Extensible, "extra", _OptionalSlot(vars(Extensible)["extra"]))  # noqa: B010
