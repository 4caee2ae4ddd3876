"""The canonical form of an edited model: a stock config, and one edit per address that differs.

Edits describe a state, not a history. Removing whole blocks is a smaller ``num_hidden_layers``; a
width that all layers share is a smaller ``intermediate_size``. What the stock config can say is
not an edit, so a model that needs none is *plain*: stock transformers loads it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError, unknown_name
from modwright.edits.edit import (
    FORMAT,
    Edit,
    Remove,
    ReorderBlocks,
    Replace,
    RevertEdit,
    State,
    split_address,
)
from modwright.edits.remodeled import (
    base_class,
    edits_of,
    register_models,
    remodeled,
    remodeled_config,
)
from modwright.edits.stock_parts import is_fulfilled, may_be_stock

__all__ = ["Target", "target_of"]


@dataclass(frozen=True)
class Target:
    """What a model will be: class, config (with its edits), and where its blocks come from."""

    model_class: type[PreTrainedModel]
    config: Any
    blocks: tuple[int, ...]
    """Source index of each block that stays."""

    @property
    def tied(self) -> bool:
        """The head shares the token table."""
        return bool(getattr(self.config, "tie_word_embeddings", False))

    def skeleton(self) -> PreTrainedModel:
        """The model on the meta device: its structure without weights."""
        with torch.device("meta"):
            return self.model_class(self.config)


def target_of(anatomy: Anatomy, edits: Sequence[Edit]) -> Target:
    """Merges new edits into those that the model carries already."""
    merged = {edit.path: edit for edit in edits_of(anatomy.config)}
    _check_apart(edits)
    kept = _order(anatomy, edits)
    for edit in sorted(edits, key=lambda e: e.path.count(".")):
        if isinstance(edit, ReorderBlocks):
            continue
        role = _check_there(anatomy, edit)
        if not role:
            continue
        for path in [p for p in merged if _overruled(anatomy, p, edit)]:
            del merged[path]
        if not isinstance(edit, RevertEdit):
            merged[edit.path] = edit
    renumbered = _renumber(merged.values(), kept)
    config = _stock_config(anatomy, kept)
    if any(edit.path == "head" for edit in renumbered):
        config.tie_word_embeddings = False  # the head has a table of its own
    plain = Target(base_class(type(anatomy.model)), config, kept)
    return _simplest(
        anatomy, plain, renumbered + _bound_to_their_number(anatomy, plain, renumbered)
    )


def _order(anatomy: Anatomy, edits: Sequence[Edit]) -> tuple[int, ...]:
    """Source index of each block of the result."""
    for edit in edits:
        if isinstance(edit, ReorderBlocks):
            for index in edit.order:
                anatomy.block(index)
            return edit.order
    gone = {index for index, role in (split_address(e.path) for e in edits) if not role}
    kept = tuple(i for i in range(len(anatomy.blocks)) if i not in gone)
    if not kept:
        raise InvalidInputError("all blocks would go; at least one must stay")
    return kept


def _overruled(anatomy: Anatomy, path: str, edit: State | RevertEdit) -> bool:
    """An edit at ``path`` means nothing any more once ``edit`` is made."""
    if path == edit.path or path.startswith(edit.path + "."):
        return True
    if not isinstance(edit, Remove) or path != f"{edit.path}_norm":
        return False
    placed = anatomy.family.place_absent(split_address(edit.path)[1], edit.drop_norm)
    norm = anatomy.family.block.get(split_address(path)[1])
    return norm in {where for where, _, _ in placed}


def _check_apart(edits: Sequence[Edit]) -> None:
    """No place is edited twice, and nothing is edited inside what goes."""
    if len(edits) > 1 and any(isinstance(edit, ReorderBlocks) for edit in edits):
        raise InvalidInputError(
            "an arrangement of blocks is a plan of its own; other edits go into another"
        )
    paths = [edit.path for edit in edits]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise InvalidInputError(f"{twice} is edited twice in one plan")
    for removed in (edit.path for edit in edits if isinstance(edit, Remove)):
        inside = next((path for path in paths if path.startswith(removed + ".")), None)
        if inside is not None:
            raise InvalidInputError(f"{inside} is edited in a plan that removes {removed}")


def _check_there(anatomy: Anatomy, edit: State | RevertEdit) -> str:
    """The role of what is edited, which is there."""
    index, role = split_address(edit.path)
    if index is None:
        if role not in anatomy.outer:
            raise unknown_name("part outside the blocks", role, anatomy.outer)
        return role
    block = anatomy.block(index)
    outer = role.partition(".")[0]
    if role in block.norms and not isinstance(edit, Remove):
        return role
    if outer not in ("", "attention", "mlp"):
        raise unknown_name("part of a block", role, ("attention", "mlp"))
    if outer and outer not in anatomy.family.block:
        raise InvalidInputError(f"{edit.path}: {anatomy.family.name} blocks have no {outer}")
    if outer and block.at(outer) is None:
        verb = "removed already" if isinstance(edit, Remove) else "removed, so it cannot be edited"
        raise InvalidInputError(f"{edit.path}: the {outer} of block {index} was {verb}")
    return role


def _renumber(edits: Iterable[State], kept: tuple[int, ...]) -> tuple[State, ...]:
    moved: list[State] = []
    for edit in edits:
        index, role = split_address(edit.path)
        if index is None:
            moved.append(edit)
        for new in (new for new, old in enumerate(kept) if old == index):
            moved.append(dataclasses.replace(edit, path=f"blocks.{new}.{role}"))
    return tuple(sorted(moved, key=_place_in_model))


def _place_in_model(edit: State) -> tuple[int, str]:
    index, role = split_address(edit.path)
    return (-1 if index is None else index, role)


def _bound_to_their_number(
    anatomy: Anatomy, plain: Target, edits: tuple[State, ...]
) -> tuple[State, ...]:
    """Edits that keep the old shape of attentions that depend on their number, as GPT-2's may."""
    if plain.blocks == tuple(range(len(plain.blocks))):
        return ()
    replaced = {edit.path for edit in edits}
    bound = []
    for block, old in zip(Anatomy.of(plain.skeleton()).blocks, plain.blocks):
        path, before = f"{block.address}.attention", anatomy.blocks[old].attention
        if before is None or path in replaced or block.attention is None:
            continue
        if block.attention.shape != before.shape:
            bound.append(Replace(path, "attention", before.shape.to_dict()))
    return tuple(bound)


def _stock_config(anatomy: Anatomy, kept: tuple[int, ...]) -> Any:
    """A copy of the model's config as its stock class, with the blocks that stay."""
    config = copy.deepcopy(anatomy.config)
    stock = base_class(type(config))
    # What a config was loaded with, its type among it, would stand before what its class says.
    for name in ("edits", "modwright_format", "model_type"):
        config.__dict__.pop(name, None)
    config.__class__ = stock
    anatomy.family.keep_blocks(config, kept)
    return config


def _edited(plain: Target, edits: tuple[State, ...]) -> Target:
    if not edits:
        return plain
    config = copy.deepcopy(plain.config)
    stock: Any = plain.model_class
    config_class: Any = remodeled_config(config.__class__)
    config.__class__ = config_class
    config.edits = [edit.to_dict() for edit in edits]
    config.modwright_format = FORMAT
    register_models(config_class)
    return Target(remodeled(stock), config, plain.blocks)


def _simplest(anatomy: Anatomy, plain: Target, edits: tuple[State, ...]) -> Target:
    """Moves what all layers share from the edits into the stock config."""
    best, fewest, edited = plain, edits, _edited(plain, edits)
    if not edits:
        return plain
    shared = _with_shared_widths(anatomy, plain.config, Anatomy.of(edited.skeleton()))
    for candidate in (plain, dataclasses.replace(plain, config=shared)):
        needed = None if candidate.config is None else _needed(candidate, edits)
        if needed is None or len(needed) >= len(fewest):
            continue
        if _outside_sublayers(candidate) == _outside_sublayers(plain):
            best, fewest = candidate, needed
    return edited if fewest is edits else _edited(best, fewest)


def _with_shared_widths(anatomy: Anatomy, config: Any, whole: Anatomy) -> Any | None:
    """The stock config with the widths that all layers of ``whole`` share; None without any."""
    family = anatomy.family
    wanted: dict[str, int] = {}
    mlps = [block.mlp for block in whole.blocks]
    widths = {None if mlp is None else mlp.intermediate_size for mlp in mlps}
    width = widths.pop() if len(widths) == 1 else None
    counts = {(mlp.neurons.num_experts or 0) if mlp else 0 for mlp in mlps}
    # Grouped products over stacked experts want rows that start at multiples of 16 bytes.
    if width is not None and not (any(counts) and width % 8):
        wanted["intermediate_size"] = width
    if len(counts) == 1 and 0 not in counts:
        wanted["num_experts"] = counts.pop()
    shapes = {None if b.attention is None else b.attention.shape for b in whole.blocks}
    shape = shapes.pop() if len(shapes) == 1 else None
    # Gathered rotary channels are taken from the angles of the width that the config names, and
    # which key/value head a query head reads is no field of any config.
    if (
        shape
        and shape.qk_head_dim == shape.v_head_dim
        and not (shape.rotary_gather or shape.kv_map)
    ):
        words = {"num_heads": shape.num_heads, "num_kv_heads": shape.num_kv_heads}
        words["head_dim"] = shape.qk_head_dim
        if all(family.get(word) is not None for word in words):
            wanted |= words
    if not wanted:
        return None
    candidate = copy.deepcopy(config)
    for word, value in wanted.items():
        family.put(candidate, word, value)
    return candidate


def _outside_sublayers(target: Target) -> dict[str, torch.Size]:
    """Shapes of parameters that no edit is about, though a field may say their width, too."""
    model, inside = target.skeleton(), set()
    for block in Anatomy.of(model).blocks:
        for _, sublayer in block.sublayers():
            stored = (sublayer.stored_at(name) for name in sublayer.parameters())
            inside |= {id(getattr(module, leaf)) for module, leaf in stored}
    return {name: p.shape for name, p in model.named_parameters() if id(p) not in inside}


def _needed(plain: Target, edits: tuple[State, ...]) -> tuple[State, ...] | None:
    """The edits that the stock model does not fulfil already; None if there is no such model."""
    if not any(map(may_be_stock, edits)):
        return edits
    try:
        plain.config.validate()
        stock = plain.skeleton()
    except (ValueError, StrictDataclassError):  # for numbers that do not go together
        return None
    built = Anatomy.of(stock)
    inside = {edit.path for edit in edits}  # what is edited in an edited part is not stock's
    return tuple(
        edit
        for edit in edits
        if edit.path.rpartition(".")[0] in inside or not is_fulfilled(edit, built)
    )
