"""Models with LayerNorm before their sublayers, and the conversion in one line, for its tests."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from helpers import batch_of
from modwright.anatomy import Anatomy
from modwright.edits import Applied
from modwright.surgery import apply, make_method

__all__ = ["FORMS", "PRE_LAYER_NORM", "converted", "far", "gradients", "loss_of", "means", "stored"]

PRE_LAYER_NORM = ("tiny-gpt2", "tiny-gpt-neox", "tiny-opt", "tiny-vit")
FORMS: dict[str, dict[str, Any]] = {
    "rms": {"form": "rms"},
    "folded": {"form": "rms", "fold_affine": True},
    "training": {"form": "rms", "training": True},
    "crms": {"form": "crms"},
    "crms first": {"form": "crms", "drop_index": 0},
}


def converted(model: Any, check: bool = True, **options: Any) -> Applied:
    return apply(model, make_method("pre_rmsnorm", options), check=check)


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference, in double precision."""
    return float((a.detach().double() - b.detach().double()).abs().max())


def stored(model: Any) -> dict[str, Tensor]:
    """Every parameter by its address, as the anatomy stores it."""
    return {
        f"{address}.{name}": tensor
        for address, part in Anatomy.of(model).parts()
        for name, tensor in part.parameters().items()
    }


def gradients(model: Any) -> dict[str, Tensor]:
    """As :func:`stored`; zero where there is none."""
    twin = copy.deepcopy(model)
    for parameter, own in zip(twin.parameters(), model.parameters()):
        parameter.data = torch.zeros_like(own) if own.grad is None else own.grad
    return stored(twin)


def loss_of(model: Any) -> Tensor:
    """A loss that is not blind to any channel of the outputs."""
    out = model(**batch_of(model), return_dict=True)[0]
    weights = torch.arange(out.numel(), dtype=out.dtype).view(out.shape).sin()
    return (out * weights).mean() + out.square().mean()


def means(model: Any) -> float:
    """The largest mean, along the stream, of what the maps and tables that write to it store."""
    found = [0.0]
    for writer in Anatomy.of(model).stream.writers:
        for name, axis in writer.output_axes.items():
            if name in writer.parameters():
                found.append(float(writer.parameters()[name].mean(axis).abs().max()))
    return max(found)
