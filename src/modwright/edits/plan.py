"""A plan: what will be edited, with which values, and why. It can be saved and printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from modwright.anatomy import Anatomy
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.core.files import whole_directory, write_file
from modwright.core.formatting import share_text
from modwright.core.reading import read_json, require_regular
from modwright.edits.change import Change
from modwright.edits.edit import FORMAT, Edit, Remove, ReorderBlocks, RevertEdit, edits_from_list
from modwright.edits.masks import pack, unpack
from modwright.edits.stock_parts import shape_of

__all__ = ["Plan", "structure_of"]


def structure_of(anatomy: Anatomy) -> dict[str, Any]:
    """What a plan must find again in the model it is applied to: family and widths."""
    blocks = []
    for block in anatomy.blocks:
        attention, mlp = block.attention, block.mlp
        told: dict[str, Any] = {
            "attention": None if attention is None else attention.shape.to_dict(),
            "mlp": None if mlp is None else mlp.intermediate_size,
        }
        if mlp is not None and mlp.experts:
            told["mlp"] = {"width": mlp.intermediate_size, "experts": mlp.num_experts}
        told |= {place: type(part.module).__name__ for place, part in block.others.items()}
        if block.scales:
            told["gains"] = sorted(block.scales)
        blocks.append(told)
    return {"family": anatomy.family.name, "hidden_size": anatomy.hidden_size, "blocks": blocks}


@dataclass(frozen=True)
class Plan:
    """Edits, new tensors and reasons.

    Attributes:
        method: name of the method that decided, with its ``options``.
        structure: that the plan was made for.
        tensors: new values by parameter address.
        masks: by parameter address, true where a number stays; the others become zero.
        reasons: scores, ranks, predicted errors, as JSON values.
        notes: sentences for the user: warnings and remarks.
    """

    method: str
    options: Mapping[str, Any]
    structure: Mapping[str, Any]
    edits: tuple[Edit, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    reasons: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    masks: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        anatomy: Anatomy,
        method: str,
        change: Change,
        options: Mapping[str, Any] | None = None,
        reasons: Mapping[str, Any] | None = None,
        notes: tuple[str, ...] = (),
    ) -> Plan:
        """A plan for this anatomy from a change."""
        told, why = dict(options or {}), dict(reasons or {})
        edits, tensors, masks = change.edits, change.tensors, change.masks
        return cls(method, told, structure_of(anatomy), edits, tensors, why, notes, masks)

    @classmethod
    def from_given(cls, anatomy: Anatomy, given: Any) -> Plan:
        """The plan that is given, or one for this anatomy from a change or several."""
        if isinstance(given, Plan):
            return given
        changes = list(given) if isinstance(given, list | tuple) else [given]
        odd = next((one for one in changes if not isinstance(one, Change)), None)
        if odd is None and changes:
            return cls.of(anatomy, "by hand", sum(changes, Change()))
        said = "an empty list" if odd is None else type(odd).__name__
        raise InvalidInputError(
            f"expected a plan or a change, such as edits.remove makes, not {said}"
        )

    def check_fits(self, anatomy: Anatomy) -> None:
        """Refuses a model whose structure is not the one planned for."""
        found, wanted = structure_of(anatomy), self.structure
        if found == wanted:
            return
        for name in ("family", "hidden_size"):
            if found[name] != wanted[name]:
                raise InvalidInputError(
                    f"the plan was made for {name} {wanted[name]}, the model has {found[name]}"
                )
        blocks, planned = found["blocks"], wanted["blocks"]
        if len(blocks) != len(planned):
            raise InvalidInputError(
                f"the plan was made for {len(planned)} blocks, the model has {len(blocks)}"
            )
        at = next(i for i, (a, b) in enumerate(zip(blocks, planned)) if a != b)
        raise InvalidInputError(
            f"the plan does not fit: block {at} is {blocks[at]}, planned for {planned[at]}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors."""
        fields = {n: value for n, value in vars(self).items() if n not in ("tensors", "masks")}
        edits = [edit.to_dict() for edit in self.edits]
        told = {"format": FORMAT, **fields, "edits": edits, "notes": list(self.notes)}
        if self.masks:  # older versions would overlook them
            shapes = {address: list(keep.shape) for address, keep in self.masks.items()}
            told |= {"format": FORMAT + 1, "masks": shapes}
        return told

    def save(self, directory: str | Path, *, force: bool = False) -> Path:
        """Writes plan.json and plan.safetensors into a new directory; whole or not at all.

        Raises:
            CheckpointError: something stands there already, and ``force`` does not say to replace
                it.
            WriteFailed: the disk is full.
        """
        from safetensors.torch import save_file

        with whole_directory(directory, force=force) as folder:
            tensors = _apart(self.tensors) | pack(self.masks)
            write_file(folder / "plan.safetensors", lambda partial: save_file(tensors, partial))
            write_file(folder / "plan.json", json.dumps(self.to_dict(), indent=1) + "\n")
        return Path(directory)

    @classmethod
    def load(cls, directory: str | Path) -> Plan:
        """Reads a saved plan.

        Raises:
            CheckpointError: no plan stands there, or it is of a newer format.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = Path(directory)
        unreadable = f"{path} holds no readable plan"
        try:
            stored = read_json(path / "plan.json")
            require_regular(path / "plan.safetensors")
            tensors = load_file(path / "plan.safetensors")
        except (OSError, ValueError, SafetensorError, CheckpointError) as error:
            told = str(error).split("\n")[0]
            raise CheckpointError(f"{unreadable}: {told}") from None
        if not isinstance(stored, dict) or not isinstance(stored.get("format", 0), int):
            raise CheckpointError(f"{unreadable}: it is no mapping with a format")
        if stored.get("format", 0) > FORMAT + 1:
            raise CheckpointError(f"{path} has format {stored['format']}; known up to {FORMAT + 1}")
        for key in ("options", "structure", "reasons", "masks"):
            if not isinstance(stored.get(key, {}), dict):
                raise CheckpointError(f"{unreadable}: {key} is no mapping")
        try:
            edits, notes = edits_from_list(stored["edits"]), tuple(stored["notes"])
            named = {key: stored[key] for key in ("method", "options", "structure", "reasons")}
            masks, tensors = unpack(tensors, stored.get("masks", {}))
            return cls(**named, edits=edits, tensors=tensors, notes=notes, masks=masks)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{unreadable}: {error!r}") from None

    def summary(self) -> list[tuple[str, str]]:
        """One line per edited address: what stood there and what will; then new values alone."""
        paths = tuple(f"{edit.path}." for edit in self.edits)
        values = (address for address in self.tensors if not f"{address}.".startswith(paths))
        return [
            *((edit.path, _describe(edit)) for edit in self.edits),
            *((address, "changed") for address in values),
            *(
                (a, f"masked, {share_text(1 - float(m.float().mean()))}")
                for a, m in self.masks.items()
            ),
        ]

    def _repr_html_(self) -> str:
        """The edits as a table, for notebooks."""
        rows = "".join(
            f"<tr><td><code>{escape(path)}</code></td><td>{escape(what)}</td></tr>"
            for path, what in self.summary()
        )
        head = "<tr><th>where</th><th>what will stand there</th></tr>"
        return f"<div><b>{escape(repr(self))}</b><table>{head}{rows}</table></div>"

    def __repr__(self) -> str:
        masks = f", {len(self.masks)} masks" if self.masks else ""
        edits, tensors = len(self.edits), len(self.tensors)
        return f"Plan({self.method}: {edits} edits, {tensors} new tensors{masks})"


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As a file holds them: contiguous, and none on the numbers of another."""
    held: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        where = tensor.untyped_storage().data_ptr()
        apart[name] = (tensor.clone() if where in held else tensor).contiguous()
        held.add(where)
    return apart


def _describe(edit: Edit) -> str:
    if isinstance(edit, ReorderBlocks):
        return f"in the order {', '.join(map(str, edit.order))}"
    if isinstance(edit, Remove | RevertEdit):
        return "removed" if isinstance(edit, Remove) else "the family's own again"
    part, kwargs = edit.part, edit.kwargs
    if (told := shape_of(edit)) is not None and hasattr(told, "describe"):
        return str(told.describe())
    if {"in_features", "out_features"} <= kwargs.keys():
        rank = f" through rank {kwargs['rank']}" if "rank" in kwargs else ""
        return f"{part} {kwargs['in_features']} -> {kwargs['out_features']}{rank}"
    return part
