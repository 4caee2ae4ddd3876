"""What several packages' tests need to say about a model in one line."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modwright.calibration import CalibrationData, from_tensors
from modwright.data.text import from_sequences
from modwright.edits import Applied, Change, Plan, apply
from modwright.edits.verify import probe_batch

__all__ = ["batch_of", "edit", "outputs", "random_data", "snapshot", "unchanged", "worst"]


def batch_of(model: Any) -> dict[str, Tensor]:
    """Inputs that a model takes: two rows of tokens, one left-padded, or two images."""
    return probe_batch(model)


def random_data(
    model: Any, count: int = 8, length: int = 24, batch_size: int = 4, seed: int = 0
) -> CalibrationData:
    """Calibration data of what a model reads: rows of tokens without padding, or images."""
    from modwright.anatomy import Anatomy

    generator = torch.Generator().manual_seed(seed)
    reads = Anatomy.of(model).family.inputs()
    if reads.is_text:
        rows = [torch.randint(3, 128, (length,), generator=generator) for _ in range(count)]
        return from_sequences(rows, 0, batch_size=batch_size)
    images = reads.random(count, length, generator)["pixel_values"].split(batch_size)
    return from_tensors([{"pixel_values": part} for part in images], name="noise")


@torch.no_grad()
def outputs(model: Any, batch: dict[str, Tensor] | None = None) -> Tensor:
    """The first output (logits, or hidden states), with zeros where a token is padding."""
    batch = batch_of(model) if batch is None else batch
    out: Tensor = model(**batch, return_dict=True)[0]
    mask = batch.get("attention_mask")
    if mask is not None and out.shape[:2] == mask.shape:
        out = out * mask.unsqueeze(-1)
    return out


def worst(a: Tensor, b: Tensor) -> float:
    """The largest difference."""
    return float((a.float() - b.float()).abs().max())


def edit(model: Any, change: Change, check: bool = True) -> Applied:
    """Applies a change to a model."""
    from modwright.anatomy import Anatomy

    return apply(model, Plan.of(Anatomy.of(model), "test", change), check=check)


def snapshot(model: Any) -> dict[str, Tensor]:
    """A copy of everything a model stores."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: t.detach().clone() for name, t in tensors.items()}


def unchanged(model: Any, before: dict[str, Tensor]) -> bool:
    """The model stores, bit for bit, what it did when the snapshot was taken."""
    now = snapshot(model)
    return now.keys() == before.keys() and all(torch.equal(now[n], before[n]) for n in now)


def number_of_hooks(model: Any) -> int:
    """Compare it with an earlier count: transformers keeps hooks once hidden states were asked."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
