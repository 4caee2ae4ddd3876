"""Which layers lose what, as configs of LLM-Drop's reference implementation say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modwright.anatomy import Anatomy
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.core.reading import read_json

__all__ = ["DropLists", "read_lists"]


@dataclass(frozen=True)
class DropLists:
    """Which layers lose what, in the terms of the reference implementation's config.

    A block stands in both lists there.
    """

    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], layers: int | None = None) -> DropLists:
        """Reads ``drop_attn_list`` and ``drop_mlp_list``: indices, or one boolean per layer.

        Args:
            config: holds at least one of the two keys.
            layers: of the model, where it is known: that many booleans must stand in a list.

        Raises:
            InvalidInputError: neither key is there, an entry is neither an index nor a boolean, or
                booleans are not one per layer.

        Example:
            >>> DropLists.from_config({"drop_attn_list": [False, True], "drop_mlp_list": []})
            DropLists(attention=(1,), mlp=())
        """
        keys = ("drop_attn_list", "drop_mlp_list")
        if not any(key in config for key in keys):
            raise InvalidInputError(f"no drop lists: the config has neither of {', '.join(keys)}")
        return cls(*(_indices(key, config.get(key) or [], layers) for key in keys))

    def to_config(self) -> dict[str, list[int]]:
        """The two keys, as indices."""
        return {"drop_attn_list": sorted(self.attention), "drop_mlp_list": sorted(self.mlp)}


def _indices(key: str, entries: Any, layers: int | None) -> tuple[int, ...]:
    listed = isinstance(entries, list | tuple)
    if listed and entries and all(isinstance(entry, bool) for entry in entries):
        if layers not in (None, len(entries)):
            raise InvalidInputError(
                f"{key} has {len(entries)} booleans; the model has {layers} layers"
            )
        return tuple(i for i, gone in enumerate(entries) if gone)
    if not listed or not all(
        isinstance(entry, int) and not isinstance(entry, bool) for entry in entries
    ):
        raise InvalidInputError(f"{key} must hold layer indices, or one boolean per layer")
    return tuple(entries)


def read_lists(path: str, anatomy: Anatomy) -> list[tuple[str, int]]:
    """What a config says to drop: kinds and layers, blocks first."""
    try:
        config = read_json(Path(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: no readable config: {error}") from None
    lists = DropLists.from_config(config, len(anatomy.blocks))
    for index in (*lists.attention, *lists.mlp):
        anatomy.block(index)
    for name, column in (("attention", lists.attention), ("mlp", lists.mlp)):
        if len(set(column)) != len(column):
            raise InvalidInputError(f"the {name} list names a layer twice: {list(column)}")
    both = set(lists.attention) & set(lists.mlp)
    return [
        *(("block", i) for i in sorted(both)),
        *(("attention", i) for i in lists.attention if i not in both),
        *(("mlp", i) for i in lists.mlp if i not in both),
    ]
