"""Stock checkpoints: every tool that takes the base family takes them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modwright.anatomy import Anatomy
from modwright.checkpoint.classes import auto_classes
from modwright.checkpoint.export.comparing import (
    ParityReport,
    compare_in_new_process,
    rounding,
)
from modwright.checkpoint.export.serving import differences
from modwright.checkpoint.export.target import Target, register_target
from modwright.checkpoint.opening import Checkpoint
from modwright.checkpoint.saving import save
from modwright.core.progress import Progress
from modwright.edits.canonical import target_of
from modwright.edits.edit import RevertEdit
from modwright.edits.remodeled import edits_of, is_plain

__all__ = ["Plain", "stock_model"]


@register_target("plain")
@dataclass(frozen=True)
class Plain(Target):
    """A stock checkpoint: every tool that takes the base family takes it.

    Only for a model that needs no edits: whole blocks gone, widths that all layers share; or where
    components compute what the stock parts do, from the same tensors.
    """

    def refusal(self, model: Any) -> str | None:
        if not auto_classes(model):
            return f"no Auto class of transformers builds a {type(model).__name__}"
        return self._why_not(model)

    def _why_not(self, model: Any) -> str | None:
        found = differences(model)
        if not found:
            return None
        return (
            f"layers differ from the stock architecture ({'; '.join(found)}); "
            "--to standalone writes a checkpoint that loads without modwright"
        )

    def _has_code(self, work: Checkpoint) -> bool:
        return False

    def write(self, work: Checkpoint, folder: Path, progress: Progress) -> None:
        save(work.model if is_plain(work.model) else stock_model(work.model), folder)

    def compare(self, work: Checkpoint, folder: Path) -> ParityReport:
        auto, model = next(iter(auto_classes(work.model))), work.model
        code = self._has_code(work)
        # Other modules compute the same but for rounding.
        tolerance = 0.0 if code or is_plain(model) else rounding(model)
        return compare_in_new_process(work, folder, auto, trust=code, tolerance=tolerance)

    def opening(self, work: Checkpoint) -> str:
        auto = next(iter(auto_classes(work.model)))
        trust = ", trust_remote_code=True" if self._has_code(work) else ""
        return f'from transformers import {auto}\n\nmodel = {auto}.from_pretrained("."{trust})'


def stock_model(model: Any) -> Any:
    """The stock model in place of one whose components have the stock tensors, to be written.

    What they kept in float32 is in the type of the other weights, where no digit is lost by that.
    """
    reverted = [RevertEdit(edit.path) for edit in edits_of(model.config)]
    stock = target_of(Anatomy.of(model), reverted).skeleton()
    state = {name: _narrowed(tensor, model.dtype) for name, tensor in model.state_dict().items()}
    stock.load_state_dict(state, assign=True)
    stock.tie_weights()
    stock.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
    return stock


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    narrow = tensor.to(dtype)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor
