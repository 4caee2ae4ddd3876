"""Distillation on attention maps: attentions of the student look where the teacher's do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modwright.anatomy import Anatomy
from modwright.core.capture import capture_attention
from modwright.core.errors import InvalidInputError
from modwright.training.batches import Batch, inputs_of, unwrapped
from modwright.training.objectives.base import Losses, objective
from modwright.training.objectives.hidden_states import BlockObjective, paired
from modwright.training.teachers import LiveTeacher

__all__ = ["AttentionMaps", "map_divergence", "naive_map_divergence"]

_LEAST = 1e-9


def map_divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """KL(teacher || student) of attention weights (B, H, T, S) -> (B, H, T).

    Weights that are 0 in the teacher count for nothing.

    Example:
        >>> same = torch.tensor([[[[1.0, 0.0]]]])
        >>> map_divergence(same, same).tolist()
        [[[0.0]]]
    """
    ours, theirs = ours.float(), theirs.float()
    return (theirs * (theirs.clamp(min=_LEAST).log() - ours.clamp(min=_LEAST).log())).sum(-1)


def naive_map_divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """The truth: one weight at a time, in float64."""
    found = torch.zeros(theirs.shape[:-1], dtype=torch.float64)
    for where in torch.cartesian_prod(*(torch.arange(n) for n in theirs.shape)).tolist():
        p, q = (float(x[tuple(where)]) for x in (theirs.detach(), ours.detach()))
        if p > 0:
            found[tuple(where[:-1])] += p * float(torch.log(torch.tensor(p / max(q, _LEAST))))
    return found


@objective("attention_maps")
@dataclass(eq=False)
class AttentionMaps(BlockObjective):
    """The weights of attentions are those of the teacher's (arXiv 2002.10957).

    Both models run with eager attention in the step. Blocks without an attention learn nothing
    here. Maps are compared head by head; where the numbers of heads differ, their means are.

    Attributes:
        heads: "each", "mean", or "auto": the first where both have as many.

    Raises:
        InvalidInputError: a stored teacher, layers that are not there, or attentions that give no
            weights.

    Example:
        >>> import modwright
        >>> model = modwright.open("preset:tiny-llama").model
        >>> same = AttentionMaps(model)
        >>> same.prepare(model)
        >>> float(same(model, {"input_ids": torch.ones(1, 4, dtype=torch.long)})[0])
        0.0
    """

    heads: Literal["auto", "each", "mean"] = "auto"

    def prepare(self, model: Any) -> None:
        ours, theirs = Anatomy.of(model), Anatomy.of(self.teachers()[0])
        asked = paired(self.layers, len(ours.blocks), len(theirs.blocks))
        for one, other in asked.items():
            first, second = ours.blocks[one].attention, theirs.blocks[other].attention
            if first is not None and second is not None:
                self._points[one] = first.weights, second.weights
        if not self._points:
            raise InvalidInputError(
                f"no blocks of {type(model).__name__} and its teacher have attentions in these "
                "layers"
            )

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        if not self._points:
            raise InvalidInputError("call `prepare` with the model first")
        teacher = self.teachers()[0]
        asked = {i: theirs for i, (_, theirs) in self._points.items()}
        with torch.no_grad(), capture_attention(teacher, asked) as wanted:
            LiveTeacher(teacher).output(batch)
        own = {i: ours for i, (ours, _) in self._points.items()}
        with capture_attention(unwrapped(model), own, gradients=True) as seen:
            model(**inputs_of(batch))
        silent = next((i for i in own if i not in seen or i not in wanted), None)
        if silent is not None:
            raise InvalidInputError(f"the attention of block {silent} gives no weights")
        losses = [self._of_block(seen[i], wanted[i], batch) for i in own]
        total = torch.stack(losses).mean()
        return total, {"attention_maps": total.detach()}

    def _of_block(self, ours: Tensor, theirs: Tensor, batch: Batch) -> Tensor:
        alike = ours.shape[1] == theirs.shape[1]
        if self.heads == "each" and not alike:
            raise InvalidInputError(
                f"heads: each needs as many in both; {ours.shape[1]} and {theirs.shape[1]}"
            )
        if self.heads == "mean" or not alike:
            ours, theirs = (x.mean(1, keepdim=True) for x in (ours, theirs))
        each = map_divergence(ours, theirs)
        mask = batch.get("attention_mask")
        if mask is None or mask.dim() != 2 or mask.shape[-1] != each.shape[-1]:
            return each.mean()
        real = mask.bool()[:, None].expand_as(each)
        return each[real].mean()
