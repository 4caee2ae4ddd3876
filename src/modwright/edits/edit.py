"""What an edit says: at this address stands this registered part, or nothing.

Edits are plain JSON. They state structure only; values travel as ordinary tensors. Addresses are
those of the anatomy, the same for every family: ``blocks.3``, ``blocks.3.attention``,
``blocks.3.mlp.up``, ``embed``, ``final_norm`` and the like outside the blocks, and
``between.1.norm``, ``between.1.map`` on the way into stage 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from operator import index
from typing import Any, ClassVar

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.edits.old_parts import converted

__all__ = ["FORMAT", "Edit", "Remove", "ReorderBlocks", "Replace", "RevertEdit", "State"]
__all__ += ["edits_from_list", "split_address", "state_from_list"]

FORMAT = 1
"""Version of the edits in a saved config."""

MOST_BLOCKS = 1024
"""As many as an arrangement may have: each is built, filled and verified."""

_NAME = "[a-z_][a-z0-9_]*"
_INSIDE = re.compile(rf"^blocks\.(\d+)(?:\.({_NAME}(?:\.{_NAME})?))?$")
_OUTSIDE = re.compile(rf"^(?:(?!blocks$|between$){_NAME}|between\.\d+\.{_NAME})$")


def split_address(path: str) -> tuple[int | None, str]:
    """("blocks.3.mlp.up") -> (3, "mlp.up"); the role is empty for a whole block.

    What stands outside the blocks has no index: "final_norm" -> (None, "final_norm"), and what
    stands on the way into stage 1: "between.1.norm" -> (None, "between.1.norm").
    """
    if _OUTSIDE.match(path):
        return None, path
    match = _INSIDE.match(path)
    if match is None:
        raise InvalidInputError(
            f"{path!r} is no address of a part; valid: blocks.N, blocks.N.attention, blocks.N.mlp, "
            "blocks.N.mlp.up, blocks.N.mlp_norm, between.N.norm, final_norm, embed and the like"
        )
    return int(match[1]), match[2] or ""


@dataclass(frozen=True)
class _Told:
    op: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON; what is False is left out."""
        fields = {name: value for name, value in asdict(self).items() if value is not False}
        return {"op": self.op, **fields}


@dataclass(frozen=True)
class Remove(_Told):
    """Nothing stands at ``path`` any more: a block, its attention or its MLP.

    ``drop_norm`` matters for post-norm blocks only: without it the norm stays, so the block
    computes norm(h); with it, h.
    """

    path: str
    drop_norm: bool = False
    op: ClassVar[str] = "remove"

    def __post_init__(self) -> None:
        if split_address(self.path)[0] is None:
            raise InvalidInputError(
                f"{self.path} stands outside the blocks: it can be replaced, not removed"
            )


@dataclass(frozen=True)
class Replace(_Told):
    """At ``path`` stands the registered part ``part``, built with ``kwargs`` (JSON values)."""

    path: str
    part: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    op: ClassVar[str] = "replace"

    def __post_init__(self) -> None:
        if not split_address(self.path)[1]:
            raise InvalidInputError(f"{self.path}: a whole block can be removed but not replaced")


@dataclass(frozen=True)
class RevertEdit(_Told):
    """At ``path`` stands what the family builds there, whatever an earlier edit put in its place.

    It takes an edit back, so it leaves no trace in a config.
    """

    path: str
    op: ClassVar[str] = "restore"

    def __post_init__(self) -> None:
        if not split_address(self.path)[1]:
            raise InvalidInputError(f"{self.path}: a whole block that was removed cannot come back")


@dataclass(frozen=True)
class ReorderBlocks(_Told):
    """The blocks stand in this order; one may stand more than once, one left out is gone.

    It moves blocks and says nothing of what is in them, so it leaves no trace in a config: the
    result has as many layers as ``order`` has entries. Copies are copies, not shared weights.
    """

    order: tuple[int, ...]
    op: ClassVar[str] = "arrange"
    path: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        try:
            numbers = [index(i) for i in self.order]
        except TypeError:
            numbers = None
        if numbers is None or any(isinstance(i, bool) for i in self.order):
            raise InvalidInputError(
                f"an arrangement is a list of block numbers, not {self.order!r}"
            )
        if not numbers:
            raise InvalidInputError("an arrangement without blocks; at least one must stay")
        if len(numbers) > MOST_BLOCKS:
            raise InvalidInputError(
                f"an arrangement of {len(numbers):,} blocks; at most {MOST_BLOCKS} can stand"
            )
        object.__setattr__(self, "order", tuple(numbers))

    def to_dict(self) -> dict[str, Any]:
        return {"op": self.op, "order": list(self.order)}


State = Remove | Replace
"""An edit that a config can carry: it says what stands at one address."""

Edit = State | RevertEdit | ReorderBlocks
_KINDS: dict[str, Any] = {kind.op: kind for kind in (Remove, Replace, RevertEdit, ReorderBlocks)}


def edits_from_list(items: Iterable[dict[str, Any]]) -> tuple[Edit, ...]:
    """Reads edits back.

    Raises:
        InvalidInputError: an unknown operation or field.

    Example:
        >>> edits_from_list([{"op": "remove", "path": "blocks.1.attention"}])
        (Remove(path='blocks.1.attention', drop_norm=False),)
    """
    edits: list[Edit] = []
    for item in items:
        fields = dict(item)
        op = fields.pop("op", None)
        if str(op) not in _KINDS:
            raise unknown_name("edit operation", op, _KINDS)
        if "part" in fields:
            fields["part"], told = converted(fields["part"], fields.get("kwargs", {}))
            fields |= {"kwargs": told} if told or "kwargs" in fields else {}
        try:
            edits.append(_KINDS[str(op)](**fields))
        except TypeError as error:
            raise InvalidInputError(f"edit {item}: {error}") from None
    return tuple(edits)


def state_from_list(items: Iterable[dict[str, Any]]) -> tuple[State, ...]:
    """Reads the edits of a config."""
    state: list[State] = []
    for edit in edits_from_list(items):
        if not isinstance(edit, State):
            what = "an arrangement of blocks" if edit.op == "arrange" else f"{edit.op!r}"
            raise InvalidInputError(f"{what} belongs into a plan, not into a config")
        state.append(edit)
    return tuple(state)
