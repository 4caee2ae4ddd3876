"""The canonical form of an edited model: a stock config, and one edit per address that differs.

Edits describe a state, not a history. Removing whole blocks is a smaller ``num_hidden_layers``; a
width that all layers share is a smaller ``intermediate_size``. What the stock config can say is
not an edit, so a model that needs none is *plain*: stock transformers loads it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from modwright.anatomy import Anatomy, MixtureOfExperts, Mlp
from modwright.anatomy.views import Attention, Sublayer
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
    base_config_class,
    edits_of,
    is_plain,
    register_models,
    remodeled,
    remodeled_config,
)
from modwright.nn import AttentionShape, FeedForwardShape, MixtureShape

__all__ = ["Target", "target_of"]


@dataclass(frozen=True)
class Target:
    """What a model will be: class, config (with its edits), and where its blocks come from."""

    model_class: type[PreTrainedModel]
    config: Any
    edits: tuple[State, ...]
    blocks: tuple[int, ...]
    """Source index of each block that stays."""

    @property
    def plain(self) -> bool:
        """Stock transformers loads what is saved of it."""
        return not self.edits and is_plain(self.model_class)

    @property
    def tied(self) -> bool:
        """The head shares the token table."""
        return bool(getattr(self.config, "tie_word_embeddings", False))

    def skeleton(self) -> PreTrainedModel:
        """The model on the meta device: its structure without weights."""
        return _skeleton(self.model_class, self.config)


def target_of(anatomy: Anatomy, edits: Sequence[Edit]) -> Target:
    """Merges new edits into those that the model carries already.

    Raises:
        InvalidInputError: an edit of something that is not there, two edits of one place, or no
            block left.
    """
    merged = {edit.path: edit for edit in edits_of(anatomy.config)}
    _check_apart(edits)
    kept = _order(anatomy, edits)
    for edit in sorted(edits, key=lambda e: e.path.count(".")):
        if isinstance(edit, ReorderBlocks):
            continue
        index, role = split_address(edit.path)
        _check_there(anatomy, index, role, edit)
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
    stock = base_class(type(anatomy.model))
    renumbered += _bound_to_their_number(anatomy, stock, config, renumbered, kept)
    return _simplest(anatomy, stock, config, renumbered, kept)


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


def _check_there(anatomy: Anatomy, index: int | None, role: str, edit: State | RevertEdit) -> None:
    if index is None:
        if role not in anatomy.outer:
            raise unknown_name("part outside the blocks", role, anatomy.outer)
        return
    block = anatomy.block(index)
    outer = role.partition(".")[0]
    if role in block.norms and isinstance(edit, Replace | RevertEdit):
        return
    if outer not in ("", "attention", "mlp"):
        raise unknown_name("part of a block", role, ("attention", "mlp"))
    if outer and block.at(outer) is None:
        verb = "removed already" if isinstance(edit, Remove) else "removed, so it cannot be edited"
        raise InvalidInputError(f"{edit.path}: the {outer} of block {index} was {verb}")


def _renumber(edits: Iterable[State], kept: tuple[int, ...]) -> tuple[State, ...]:
    moved: list[State] = []
    for edit in edits:
        index, role = split_address(edit.path)
        if index is None:
            moved.append(edit)
            continue
        for new in (new for new, old in enumerate(kept) if old == index):
            moved.append(dataclasses.replace(edit, path=f"blocks.{new}.{role}"))
    return tuple(sorted(moved, key=_place_in_model))


def _place_in_model(edit: State) -> tuple[int, str]:
    index, role = split_address(edit.path)
    return (-1 if index is None else index, role)


def _bound_to_their_number(
    anatomy: Anatomy,
    stock: type[PreTrainedModel],
    config: Any,
    edits: tuple[State, ...],
    kept: tuple[int, ...],
) -> tuple[State, ...]:
    """Edits for attentions that the stock class would build differently at their new number.

    GPT-2, for one, may divide the scores by it. They become attentions with their old shape.
    """
    if kept == tuple(range(len(kept))):
        return ()
    replaced = {edit.path for edit in edits}
    bound = []
    for block, old in zip(Anatomy.of(_skeleton(stock, config)).blocks, kept):
        path, before = f"{block.address}.attention", anatomy.blocks[old].attention
        if before is None or path in replaced or block.attention is None:
            continue
        if block.attention.shape != before.shape:
            bound.append(Replace(path, "attention", before.shape.to_dict()))
    return tuple(bound)


def _stock_config(anatomy: Anatomy, kept: tuple[int, ...]) -> Any:
    """A copy of the model's config as its stock class, with the blocks that stay."""
    config = copy.deepcopy(anatomy.config)
    stock = base_config_class(type(config))
    # What a config was loaded with, its type among it, would stand before what its class says.
    for name in ("edits", "modwright_format", "model_type"):
        config.__dict__.pop(name, None)
    config.__class__ = stock
    anatomy.family.keep_blocks(config, kept)
    return config


def _edited(stock: Any, config: Any, edits: tuple[State, ...]) -> tuple[type[PreTrainedModel], Any]:
    if not edits:
        return stock, config
    config = copy.deepcopy(config)
    stock_config: Any = config.__class__
    config_class: Any = remodeled_config(stock_config)
    config.__class__ = config_class
    config.edits = [edit.to_dict() for edit in edits]
    config.modwright_format = FORMAT
    register_models(config_class)
    return remodeled(stock), config


def _skeleton(model_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        return model_class(config)


def _simplest(
    anatomy: Anatomy,
    stock: type[PreTrainedModel],
    config: Any,
    edits: tuple[State, ...],
    kept: tuple[int, ...],
) -> Target:
    """Moves what all layers share from the edits into the stock config."""
    model_class, edited_config = _edited(stock, config, edits)
    if edits:
        whole = Anatomy.of(_skeleton(model_class, edited_config))
        best, fewest = config, edits
        for candidate in (config, _with_shared_widths(anatomy, config, whole)):
            needed = None if candidate is None else _needed(stock, candidate, edits)
            if needed is None or len(needed) >= len(fewest):
                continue
            if _outside_sublayers(stock, candidate) == _outside_sublayers(stock, config):
                best, fewest = candidate, needed
        if len(fewest) < len(edits):
            config, edits = best, fewest
            model_class, edited_config = _edited(stock, config, edits)
    return Target(model_class, edited_config if edits else config, edits, kept)


def _with_shared_widths(anatomy: Anatomy, config: Any, whole: Anatomy) -> Any | None:
    """The stock config with the widths that all layers of ``whole`` share; None without any."""
    family = anatomy.family
    wanted: dict[str, int] = {}
    mlps = [block.mlp for block in whole.blocks]
    widths = {mlp.intermediate_size if mlp is not None else None for mlp in mlps}
    if len(widths) == 1 and None not in widths and all(map(_stock_multiplies, mlps)):
        wanted["intermediate_size"] = widths.pop() or 0
    counts = {mlp.num_experts if isinstance(mlp, MixtureOfExperts) else 0 for mlp in mlps}
    if len(counts) == 1 and 0 not in counts:
        wanted["num_experts"] = counts.pop()
    shapes = {None if b.attention is None else b.attention.shape for b in whole.blocks}
    shape = next(iter(shapes)) if len(shapes) == 1 else None
    # Gathered rotary channels are taken from the angles of the width that the config names, and
    # which key/value head a query head reads is no field of any config.
    same = shape is not None and shape.qk_head_dim == shape.v_head_dim
    if shape is not None and same and not shape.rotary_gather and not shape.kv_map:
        words = {
            "num_heads": shape.num_heads,
            "num_kv_heads": shape.num_kv_heads,
            "head_dim": shape.qk_head_dim,
        }
        if all(family.get(word) is not None for word in words):
            wanted.update(words)
    if not wanted:
        return None
    candidate = copy.deepcopy(config)
    for word, value in wanted.items():
        family.put(candidate, word, value)
    return candidate


def _outside_sublayers(stock: type[PreTrainedModel], config: Any) -> dict[str, torch.Size]:
    """Shapes of all parameters outside attentions and MLPs of blocks.

    No edit is about them. A field may say more widths than one, such as that of a second stream.
    """
    model, inside = _skeleton(stock, config), set()
    for block in Anatomy.of(model).blocks:
        for _, sublayer in block.sublayers():
            stored = (sublayer.stored_at(name) for name in sublayer.parameters())
            inside |= {id(getattr(module, leaf)) for module, leaf in stored}
    return {name: p.shape for name, p in model.named_parameters() if id(p) not in inside}


def _stock_multiplies(mlp: Mlp | MixtureOfExperts | None) -> bool:
    """Grouped products over stacked experts want rows that start at multiples of 16 bytes."""
    return not isinstance(mlp, MixtureOfExperts) or mlp.intermediate_size % 8 == 0


def _needed(
    stock: type[PreTrainedModel], config: Any, edits: tuple[State, ...]
) -> tuple[State, ...] | None:
    """The edits that a stock model of this config does not fulfil already; None if it cannot be."""
    if not any(_check_of(edit) for edit in edits):
        return edits
    built = _buildable(stock, config)
    if built is None:
        return None
    plain = Anatomy.of(built)
    inside = {edit.path for edit in edits}  # what is edited in an edited part is not stock's
    return tuple(
        edit
        for edit in edits
        if edit.path.rpartition(".")[0] in inside or not _fulfilled(plain, edit)
    )


def _buildable(stock: type[PreTrainedModel], config: Any) -> PreTrainedModel | None:
    """The stock model of a config on the meta device; None where the config cannot say this.

    What transformers raises for numbers that do not go together counts, and nothing else: a mistake
    in a family is an error, not a reason to call a result other than plain.
    """
    try:
        config.validate()
        return _skeleton(stock, config)
    except (ValueError, StrictDataclassError):
        return None


def _check_of(edit: State) -> Callable[[Any, str, dict[str, Any]], bool] | None:
    """What compares an edit with the stock part at its place; None if none is like it."""
    role = split_address(edit.path)[1]
    return _SAME.get((role.partition(".")[0], getattr(edit, "part", "")))


def _fulfilled(plain: Anatomy, edit: State) -> bool:
    check = _check_of(edit)
    if check is None or not isinstance(edit, Replace):
        return False
    index, role = split_address(edit.path)
    return check(plain if index is None else plain.blocks[index], role, edit.kwargs)


def _same_linear(block: Any, role: str, kwargs: dict[str, Any]) -> bool:
    outer, _, inner = role.partition(".")
    sublayer: Sublayer | None = block.at(outer)
    projection = None if sublayer is None else sublayer.projections().get(inner)
    return projection is not None and kwargs == {
        "in_features": projection.in_features,
        "out_features": projection.out_features,
        "bias": projection.bias is not None,
    }


def _same_head(anatomy: Anatomy, role: str, kwargs: dict[str, Any]) -> bool:
    if "head" not in anatomy.outer:
        return False  # a bare backbone, which carries the edit along
    head = anatomy.outer["head"].parameters()
    out_features, in_features = head["weight"].shape
    return kwargs == {
        "in_features": in_features,
        "out_features": out_features,
        "bias": "bias" in head,
    }


def _same_attention(block: Any, role: str, kwargs: dict[str, Any]) -> bool:
    attention: Attention | None = block.attention
    return attention is not None and attention.shape == AttentionShape(**kwargs)


def _same_feed_forward(block: Any, role: str, kwargs: dict[str, Any]) -> bool:
    mlp = block.mlp
    return isinstance(mlp, Mlp) and mlp.shape == FeedForwardShape(**kwargs)


def _same_mixture(block: Any, role: str, kwargs: dict[str, Any]) -> bool:
    mixture = block.mlp
    return isinstance(mixture, MixtureOfExperts) and mixture.shape == MixtureShape(**kwargs)


_SAME: dict[tuple[str, str], Callable[[Any, str, dict[str, Any]], bool]] = {
    ("head", "linear"): _same_head,
    ("mlp", "feed_forward"): _same_feed_forward,
    ("mlp", "linear"): _same_linear,
    ("mlp", "mixture"): _same_mixture,
    ("attention", "linear"): _same_linear,
    ("attention", "attention"): _same_attention,
}
