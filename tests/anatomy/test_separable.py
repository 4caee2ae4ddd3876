"""Activations that normalize over the neurons: narrowing and splitting such an MLP is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2CLS, ACT2FN

from helpers import edit
from models.tiny import tiny as tiny_image_model
from modwright.anatomy import Anatomy
from modwright.anatomy.separable import is_separable
from modwright.core.errors import InvalidInputError
from modwright.edits import keep_neurons, replace_mlp
from modwright.edits.experts import expert_shape, keep_expert_neurons, keep_experts
from modwright.surgery.method import make_method, unsupported_reason


class PolyNorm(nn.Module):
    """A weighted sum of normalized powers (arXiv 2411.03884)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 1 / 3))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        powers = [self._normed(x**power) for power in (3, 2, 1)]
        return sum(w * p for w, p in zip(self.weight, powers)) + self.bias

    @staticmethod
    def _normed(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


class Squared(nn.Module):
    """Somebody's own, and elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) ** 2


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    new = {"poly_norm": PolyNorm, "squared": Squared, "soft": (nn.Softmax, {"dim": -1})}
    ACT2FN.update(new)
    yield
    for name in new:
        del ACT2FN[name]


@pytest.mark.parametrize("name", sorted(ACT2CLS))
def test_fault_A3_every_activation_of_transformers_is_separable(name: str) -> None:
    act = ACT2FN[name]
    assert is_separable(act, 48)
    assert is_separable(lambda x: act(x.float()).double(), 48), "by running it, too"


@pytest.mark.parametrize(
    "act",
    [
        nn.Softmax(-1),
        PolyNorm(),
        nn.LayerNorm(3000),
        nn.Sequential(nn.ReLU(), nn.RMSNorm(3000)),
        lambda x: x * x.abs().amax(-1, keepdim=True),
        lambda x: x.cumsum(-1),
        lambda x: x.sort(-1).values,
        lambda x: 1 / 0,
    ],
)
def test_fault_A3_what_mixes_neurons_is_not_separable(act: Any) -> None:
    assert not is_separable(act, 3000)


FIELDS = {"tiny-llama": "hidden_act", "tiny-gpt2": "activation_function", "tiny-bert": "hidden_act"}


@pytest.mark.parametrize("reads_text", FIELDS)
@pytest.mark.parametrize("name", ["poly_norm", "soft"])
def test_fault_A3_narrowing_and_splitting_are_refused(
    tiny: Any, reads_text: str, name: str
) -> None:
    anatomy = Anatomy.of(tiny(reads_text, **{FIELDS[reads_text]: name}))
    mlp: Any = anatomy.blocks[0].mlp
    assert not mlp.separable
    width = mlp.intermediate_size
    half = {"up": mlp.up.weight[: width // 2], "down": mlp.down.weight[:, : width // 2]}
    if mlp.gate is not None:
        half["gate"] = mlp.gate.weight[: width // 2]
    for narrow in (
        lambda: keep_neurons(mlp, range(8)),
        lambda: replace_mlp(mlp, **half),
        lambda: expert_shape(mlp, num_experts=4, top_k=1),
    ):
        with pytest.raises(InvalidInputError, match="normalizes over the neurons") as refusal:
            narrow()
        assert "\n" not in str(refusal.value)
    for method in (make_method("emoe", {"num_experts": 4, "top_k": 1}), make_method("modegpt")):
        assert "normalizes over" in str(unsupported_reason(method, anatomy))
    assert unsupported_reason(make_method("modegpt", {"pairs": ["value_output"]}), anatomy) is None


def test_fault_A3_elementwise_activations_of_others_stay_valid(tiny: Any) -> None:
    source = tiny("tiny-llama", hidden_act="squared")
    mlp: Any = Anatomy.of(source).blocks[0].mlp
    assert mlp.separable
    assert edit(source, keep_neurons(mlp, range(8))).verification is not None


def test_fault_A3_a_live_activation_counts_as_well(tiny: Any) -> None:
    model = tiny.copy("tiny-llama")
    model.model.layers[1].mlp.act_fn = PolyNorm()
    with pytest.raises(InvalidInputError, match="normalizes over the neurons"):
        keep_neurons(Anatomy.of(model).blocks[1].mlp, range(8))


def test_fault_A3_whole_experts_may_still_go(tiny: Any) -> None:
    source = tiny("tiny-mixtral", hidden_act="poly_norm")
    mixture: Any = Anatomy.of(source).blocks[0].mlp
    assert not mixture.separable
    for narrow in (
        lambda: keep_neurons(mixture, range(8)),
        lambda: keep_expert_neurons(mixture, [range(8)] * 4),
    ):
        with pytest.raises(InvalidInputError, match="normalizes over the neurons"):
            narrow()
    assert "normalizes over" in str(unsupported_reason(make_method("modegpt"), Anatomy.of(source)))
    assert len(keep_experts(mixture, [0, 2]).edits) == 1


@pytest.mark.parametrize("architecture", ["vision_transformer", "swin_transformer", "tnt"])
def test_fault_A3_image_models_alike(architecture: str) -> None:
    model = tiny_image_model(architecture)
    mlp = next(b.mlp for b in Anatomy.of(model).blocks if b.mlp is not None)
    assert mlp.separable
    mlp.module.act = PolyNorm()
    assert not mlp.separable


def test_fault_A3_every_preset_is_separable(tiny: Any, preset: str) -> None:
    assert all(block.mlp.separable for block in Anatomy.of(tiny(preset)).blocks)
