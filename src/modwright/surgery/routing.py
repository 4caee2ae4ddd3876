"""A live model whose MLPs are split into experts: how tokens are routed, and how that is changed.

Nothing here makes a new model. What is set stands in the model's config too, so it is saved.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn
from transformers import TrainerCallback

from modwright.anatomy import Anatomy
from modwright.anatomy.views import Sublayer
from modwright.calibration.expert_usage import NONE_SPLIT, ExpertUsage, expert_usage
from modwright.core.errors import InvalidInputError, refusing
from modwright.nn import ExpertFeedForward
from modwright.nn.channel_mixers.expert_feed_forward import expert_parts
from modwright.nn.channel_mixers.feed_forward import FeedForwardShape

__all__ = ["ExpertUsage", "TieKeys", "expert_usage", "set_routing", "set_top_k", "tie_keys"]


def _experts(model: nn.Module) -> list[tuple[Sublayer, ExpertFeedForward]]:
    parts = (part for block in Anatomy.of(model).blocks for _, part in block.sublayers())
    found = [(part, part.routed) for part in parts if part.routed is not None]
    if not found:
        raise InvalidInputError(NONE_SPLIT)
    return found


def set_routing(model: nn.Module, **changes: Any) -> None:
    """Changes, in place, how tokens are routed in every split MLP.

    ``changes`` are fields of :class:`modwright.nn.ExpertShape` that say how experts are chosen and
    run: top_k, score, selection, mode, normalize_keys, weigh_keys, capacity.

    Raises:
        InvalidInputError: no MLP is split, or one cannot be routed so; then nothing is changed.

    Example:
        >>> import modwright
        >>> from modwright.surgery import make_method
        >>> method = make_method("emoe", {"num_experts": 8, "top_k": 2})
        >>> model = modwright.apply(modwright.open("preset:tiny-llama"), method).model
        >>> set_routing(model, score="avg_key", mode="dispatch")
        >>> modwright.Anatomy.of(model).blocks[2].mlp.experts.describe()
        '8 experts of 12, top 2 by avg_key, dispatched'
    """
    fixed = {field.name for field in dataclasses.fields(FeedForwardShape)} | {"num_experts"}
    parts = _experts(model)
    valid = {field.name for field in dataclasses.fields(parts[0][1].shape)} - fixed
    for name in changes:
        if name not in valid:
            raise InvalidInputError(f"routing has no {name!r}; it has {', '.join(sorted(valid))}")
    shapes = []
    for mlp, part in parts:
        with refusing(mlp.address):
            shapes.append(dataclasses.replace(part.shape, **changes))
    config: Any = model.config
    for (mlp, part), shape in zip(parts, shapes):
        part.reroute(shape)
        for edit in config.edits:
            if edit["path"] == mlp.address:
                edit["kwargs"] = shape.to_dict()


def set_top_k(model: nn.Module, k: int, selection: str = "top") -> None:
    """Sets, in place, how many experts are "top", "bottom", or left out ("not_top")."""
    set_routing(model, top_k=k, selection=selection)


def tie_keys(model: nn.Module, momentum: float = 0.0) -> None:
    """Lets stored mean keys follow the weights, in place; to be called after an optimizer step.

    A ``momentum`` m in [0, 1) gives m times the old mean keys plus 1 - m times the present ones.
    """
    if not 0 <= momentum < 1:
        raise InvalidInputError(f"momentum {momentum} must lie in [0, 1)")
    parts = expert_parts(model)
    if not parts:
        raise InvalidInputError(NONE_SPLIT)
    for part in parts:
        part.tie_keys(momentum)


class TieKeys(TrainerCallback):
    """Keeps stored mean keys tied to the weights under ``transformers.Trainer``."""

    def __init__(self, momentum: float = 0.0) -> None:
        self.momentum = momentum

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for part in expert_parts(kwargs["model"]):  # perhaps in wrappers of trainers and adapters
            part.tie_keys(self.momentum)
