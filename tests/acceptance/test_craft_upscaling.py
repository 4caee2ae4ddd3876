"""CRAFT (arXiv 2308.05022) on real photos: against bicubic, and what its branches are worth.

A model of two groups learns to double pieces of two photos; the left of both is held out. Rate
and start were chosen on pieces of the middle, so what is measured here was not chosen on.
With MODWRIGHT_FIGURES every structure is trained with several seeds and the spectra of their errors
are written down; without it one training has to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from figures import FULL, note
from torch import Tensor, nn

from modwright.analysis import radial_spectrum
from modwright.data.super_resolution import SuperResolutionDataset, bicubic, sample_image_pairs
from modwright.metrics.psnr import psnr, ssim
from modwright.models import create_model
from modwright.nn.cross_refinement import CrossRefinementBlock, HighFrequencyBlock
from modwright.training import L1Loss, Settings, fit

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2) if FULL else (0,)
STEPS, BATCH = 300, 16
RINGS = 24
SIZES: dict[str, Any] = {"hidden_size": 32, "depths": [1, 1], "num_heads": [4, 4]}


class OneBranch(nn.Module):
    """In the place of a fusion: takes one of both branches, and leaves the other one out."""

    def __init__(self, fusion: Any, place: int) -> None:
        super().__init__()
        self.norm2, self.mlp, self.place = fusion.norm2, fusion.mlp, place

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        x = (low, high)[self.place]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def _parts(model: nn.Module, kind: type) -> list[Any]:
    return [part for part in model.modules() if isinstance(part, kind)]


def no_pool(model: nn.Module) -> None:
    """The second half of the channels goes to its 1 x 1 convolution as it is."""
    for part in _parts(model, HighFrequencyBlock):
        part.pool = nn.Identity()


def windows_alone(model: nn.Module) -> None:
    for block in _parts(model, CrossRefinementBlock):
        block.fusion, block.high = OneBranch(block.fusion, 0), nn.Identity()


def convolutions_alone(model: nn.Module) -> None:
    for block in _parts(model, CrossRefinementBlock):
        block.fusion, block.low = OneBranch(block.fusion, 1), nn.Module()
        block.low.forward = lambda x, grid: x  # tokens as they are


def cubic_weights() -> Tensor:
    """(2, 3): a pixel of the upper and one of the lower half of a small one, from it and both
    neighbors: cubic convolution (a = -1/2), whose fourth weight goes to the others."""
    distances = torch.tensor([1.25, 0.25, 0.75])
    near = 1.5 * distances**3 - 2.5 * distances**2 + 1
    far = -0.5 * distances**3 + 2.5 * distances**2 - 4 * distances + 2
    weights = torch.where(distances <= 1, near, far)
    weights = weights / weights.sum()
    return torch.stack((weights.flip(0), weights))


@torch.no_grad()
def begin_as_cubic(model: Any) -> None:
    """The path around the groups interpolates, nearly as bicubic, and the groups add nothing yet.

    From random weights the few steps of a test go into finding out that a large image looks like
    the small one; the authors take 500,000 steps.
    """
    cubic = cubic_weights()
    for conv in (model.conv, model.up.conv):
        conv.weight.zero_()
        conv.bias.zero_()
    stem, up, scale = model.stem.conv0, model.up.conv, model.config.upscale
    for color in range(3):
        stem.weight[color] = 0
        stem.bias[color] = 0
        stem.weight[color, color, 1, 1] = 1
        kernels = torch.einsum("ay,bx->abyx", cubic, cubic).flatten(0, 1)
        up.weight[scale**2 * color : scale**2 * (color + 1), color] = kernels


STRUCTURES: dict[str, Callable[[nn.Module], None]] = {
    "both": lambda model: None,
    "no-max-pool": no_pool,
    "windows-alone": windows_alone,
    "convolutions-alone": convolutions_alone,
}


@dataclass(frozen=True)
class Found:
    """How near images come to those they should be, and where in the spectrum they are off."""

    psnr: float
    ssim: float
    fine: float  # mean square of the error above half of the finest frequency, of 255 squared
    spectrum: tuple[float, ...]


def measured(large: Tensor, pairs: SuperResolutionDataset) -> Found:
    crop = pairs.scale
    inside = (large - pairs.large)[..., crop:-crop, crop:-crop].double() * 255
    rings = radial_spectrum(inside, bins=RINGS).tolist()
    return Found(
        psnr(large, pairs.large, crop),
        ssim(large, pairs.large, crop),
        sum(rings[RINGS // 2 :]),
        tuple(rings),
    )


def trained(name: str, cubic: bool = True, rate: float = 1e-3) -> float:
    """Mean PSNR of one structure, trained from scratch once per seed."""
    found = []
    for seed in SEEDS:
        train, test = sample_image_pairs(train=STEPS * BATCH, seed=seed, where="left")
        torch.manual_seed(seed)
        model = create_model("craft_x2", **SIZES)
        STRUCTURES[name](model)
        if cubic:
            begin_as_cubic(model)
        settings = Settings(
            epochs=1,
            batch_size=BATCH,
            learning_rate=rate,
            weight_decay=0,
            seed=seed,
            more={"adam_beta2": 0.99},  # as the authors
        )
        fitted = fit(model, train, settings=settings, objective=L1Loss())
        assert fitted.steps == STEPS
        with torch.no_grad():
            parts = [model(small).reconstruction for small in test.small.split(4)]
        found.append(measured(torch.cat(parts), test))
    note(
        f"craft-{name}" if cubic else f"craft-{name}-from-noise",
        steps=STEPS,
        parameters=fitted.parameters,
        psnr=mean(f.psnr for f in found),
        spread=stdev(f.psnr for f in found) if len(found) > 1 else 0.0,
        ssim=mean(f.ssim for f in found),
        fine_error=mean(f.fine for f in found),
        spectrum=[mean(ring) for ring in zip(*(f.spectrum for f in found))],
        each=[f.psnr for f in found],
        seconds_of_a_training=fitted.seconds,
    )
    return mean(f.psnr for f in found)


def test_fault_C1_it_beats_bicubic_on_held_out_pieces() -> None:
    _, test = sample_image_pairs(train=1, where="left")
    plain = measured(bicubic(test.small, 2), test)
    note("craft-bicubic", psnr=plain.psnr, ssim=plain.ssim, fine_error=plain.fine,
         spectrum=list(plain.spectrum))  # fmt: skip
    margin = trained("both") - plain.psnr
    if FULL:  # reported only
        for name in ("no-max-pool", "windows-alone", "convolutions-alone"):
            trained(name)
        trained("both", cubic=False, rate=5e-3)
    assert margin >= 0.3, margin
