"""The base class of models, which keeps the JSON members that this version does not know."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from attrs import field, frozen


@frozen
class Extensible:
    """A model that keeps JSON members which this version of flux0 does not know.

    Members that are nested more than 200 levels deep are left out. `==` ignores `extra`, because a
    stored message may have more members than the same message in a stream.

    Attributes:
        extra: the members that this version of flux0 does not know, as plain JSON; usually empty.
    """

    extra: Mapping[str, Any] = field(
        default=MappingProxyType[str, Any]({}), kw_only=True, eq=False, repr=False
    )


def with_extra(data: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    return {**data, **extra, **data} if extra else data


class _OptionalSlot:
    """A descriptor for `extra` that returns an empty dict if the slot was never set.

    If a model has no unknown members, the decoder does not set the slot, because that is faster.
    """

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


# `setattr` replaces the slot `extra`. Type checkers ignore `setattr`, so they still see `extra` as
# an attrs field.
setattr(Extensible, "extra", _OptionalSlot(vars(Extensible)["extra"]))  # noqa: B010
