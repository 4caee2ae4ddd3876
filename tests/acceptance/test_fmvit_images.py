"""FMViT (arXiv 2311.05707) on real images: what is shipped is what was trained; its parts.

Without MODWRIGHT_FIGURES briefly, on digits; with it on Fashion-MNIST too, with three seeds, and
the figures are written down.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

import pytest
import torch
from clothes import FOLDER, clothes, needs_clothes
from figures import FULL, note
from torch import Tensor, nn
from torch.nn import functional as F

from labeled_images import digits, first, pixels
from modwright.analysis import Spectrum, map_spectra
from modwright.cost import forward_macs
from modwright.models import create_model
from modwright.models.reparameterize import reparameterize
from modwright.nn.block import FrequencyPair
from modwright.nn.multi_group_conv import MultiGroupConv
from modwright.training import Settings, accuracy, fit

pytestmark = pytest.mark.slow

figures_only = pytest.mark.skipif(not FULL, reason="measured where MODWRIGHT_FIGURES is set")
ON_CLOTHES = FULL and FOLDER.is_dir()
# At 2e-3 in batches of 64 less was learned: 83 % of Fashion-MNIST from 30,000 images.
RECIPE: dict[str, Any] = {"epochs": 1, "batch_size": 32, "learning_rate": 1e-3}
SEEDS = (0, 1, 2) if FULL else (0,)


def nano(**fields: Any) -> Any:
    return create_model("fmvit_nano", num_classes=10, **{"image_size": 32, **fields})


def pairs(model: nn.Module) -> dict[str, FrequencyPair]:
    return {n: m for n, m in model.named_modules() if isinstance(m, FrequencyPair)}


@torch.no_grad()
def settle(model: nn.Module, images: Tensor) -> None:
    """Takes the norms' statistics anew, with the weights as they are now."""
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    model.train()
    for batch in images.split(128):
        model(batch)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


@pytest.fixture(scope="module")
def briefly() -> Any:
    """50 steps on digits. Running means are far behind weights that move so fast: 11 % right."""
    data = digits()
    torch.manual_seed(0)
    model = nano()
    settings = Settings(batch_size=64, learning_rate=1e-3, more={"max_steps": 50})
    behind = fit(model, data, None, settings).accuracy
    settle(model, pixels(data.train))
    settled = accuracy(model, data.test)
    note("fmvit-50-steps", behind=behind, settled=settled)
    assert settled >= 0.5
    return model


# What is shipped


def test_after_training_the_fused_model_gives_the_same_logits(briefly: Any) -> None:
    data = digits()
    model = briefly
    twin = reparameterize(model)
    images = torch.cat((pixels(data.test), pixels(data.train)[:500]))
    with torch.no_grad():
        logits, fused = (
            torch.cat([part(batch).logits for batch in images.split(250)]) for part in (model, twin)
        )
    off = float((fused - logits).abs().max())
    costs = {
        what: {
            "parameters": sum(p.numel() for p in part.parameters()),
            "macs": forward_macs(part, 1, 3, 32, 32),
            "layers": sum(isinstance(m, nn.Conv2d | nn.Linear) for m in part.modules()),
            "norms": sum(isinstance(m, nn.BatchNorm2d) for m in part.modules()),
        }
        for what, part in (("trained", model), ("fused", twin))
    }
    note("fmvit-fused", off=off, largest=float(logits.abs().max()), **costs)
    assert logits.argmax(1).unique().numel() == 10
    assert off <= 1e-4
    assert fused.argmax(1).equal(logits.argmax(1))
    assert costs["fused"]["norms"] == 0 < costs["trained"]["norms"]
    assert costs["fused"]["parameters"] < costs["trained"]["parameters"]
    assert costs["fused"]["macs"] < costs["trained"]["macs"]


# Which frequencies the halves hold


def larger(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, size=(side, side), mode="bilinear")


def halves(model: nn.Module) -> list[str]:
    """What each half of the mixing blocks gives, and what its mixer alone adds."""
    parts = ("low", "high", "low.blocks.0.mixer", "high.blocks.0.mixer")
    return [f"{name}.{part}" for name in pairs(model) for part in parts]


def shares(found: dict[str, Spectrum]) -> dict[str, list[float]]:
    """Of high frequencies, block by block."""
    parts: dict[str, list[float]] = {"low": [], "high": [], "low mixer": [], "high mixer": []}
    for name, spectrum in found.items():
        half = name.removesuffix(".blocks.0.mixer")
        kind = half.rpartition(".")[2] + (" mixer" if half != name else "")
        parts[kind].append(spectrum.high_share)
    return parts


def test_attention_adds_less_of_high_frequencies_than_convolution(briefly: Any) -> None:
    """At 128 pixels the last mixing block has 4 x 4 places; at 32 a single one."""
    found = shares(map_spectra(briefly, larger(pixels(digits().test)[:50], 128), halves(briefly)))
    note("fmvit-spectrum-after-50-steps", **found)
    assert sum(a < b for a, b in zip(found["low mixer"], found["high mixer"])) >= 2, found


# What the parts are worth


@figures_only
@needs_clothes
def test_the_small_model_learns_fashion_mnist() -> None:
    data = first(clothes(), 40_000, 10_000)
    torch.manual_seed(0)
    model = nano()
    fitted = fit(model, data, None, Settings(seed=0, **RECIPE))
    settle(model, pixels(data.train)[:5000])
    settled = accuracy(model, data.test)
    note(
        "fmvit-nano",
        running=fitted.accuracy,
        settled=settled,
        parameters=fitted.parameters,
        seconds=fitted.seconds,
    )
    images = larger(pixels(data.test)[:100], 128)
    spectra = shares(map_spectra(model, images, halves(model)))
    note("fmvit-nano-at-128", **spectra)
    assert sum(a < b for a, b in zip(spectra["low"], spectra["high"])) >= 2, spectra
    # 88 is wanted of at most 4 minutes: 85.2 was seen with running statistics as they were.
    assert settled >= 0.83


def without_convolution(model: nn.Module) -> None:
    """The halves for high frequencies keep their channels, which no place is mixed in."""
    for pair in pairs(model).values():
        pair.high.blocks = nn.ModuleList()


def without_attention(model: nn.Module) -> None:
    for pair in pairs(model).values():
        pair.low.blocks = nn.ModuleList()


def one_branch(model: nn.Module) -> None:
    """Of every sum of branches the first is left."""
    for part in model.modules():
        if isinstance(part, MultiGroupConv):
            part.convs, part.norms, part.identity = part.convs[:1], part.norms[:1], None


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "whole": lambda model: None,
    "no convolution": without_convolution,
    "no attention": without_attention,
    "one branch": one_branch,
}


def changed(name: str, **fields: Any) -> Any:
    model = nano(**fields)
    CHANGES[name](model)
    return model


@figures_only
@needs_clothes
def test_what_halves_and_branches_are_worth() -> None:
    """A thinner one, so that twelve trainings are short; the variant would leave a single key."""
    data = first(clothes(), 3000, 2000)
    thin = {"depths": [1, 1, 1, 1], "stem_widths": [32, 16, 32, 64], "reductions": [8, 2, 1, 1]}
    found = {}
    for name in CHANGES:
        each = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            model = changed(name, **thin)
            fit(model, data.train, None, Settings(**{**RECIPE, "seed": seed, "epochs": 2}))
            settle(model, pixels(data.train))
            each.append(100 * accuracy(model, data.test))
        parameters = sum(p.numel() for p in model.parameters())
        note(f"fmvit-{name}", mean=mean(each), each=each, parameters=parameters)
        found[name] = mean(each)
    assert min(found.values()) >= 50
