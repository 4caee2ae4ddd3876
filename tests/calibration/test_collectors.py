"""The statistics are what a few lines by hand compute from the model's own forward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from layerwise_cases import three_rows, walk, without_mask
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.anatomy import Anatomy
from modwright.calibration import BlockDistance, SecondMoments, Similarity


@torch.no_grad()
def tensors_of(model: Any, places: dict[str, tuple[nn.Module, str]]) -> dict[str, Tensor]:
    """Inputs ("in") or outputs ("out") of modules in the model's forward, tokens one by one."""
    activations: dict[str, list[Tensor]] = {name: [] for name in places}

    def keep(name: str, side: str) -> Callable[..., None]:
        def listener(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            value = given if side == "in" else out[0] if isinstance(out, tuple) else out
            activations[name].append(value.flatten(0, -2).clone())

        return listener

    with ExitStack() as stack:
        for name, (module, side) in places.items():
            hook = module.register_forward_hook(keep(name, side), with_kwargs=True)
            stack.callback(hook.remove)
        for batch in without_mask(three_rows(model)):
            for row in range(len(next(iter(batch.values())))):
                model.base_model(**{name: t[row : row + 1] for name, t in batch.items()})
    return {name: torch.cat(values) for name, values in activations.items()}


def mean_cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float(((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean())


# By hand, for each wiring: h is what enters the block, y what leaves it. A row gives the residual
# stream before and after attention and MLP, and what both read and return.

LAYERS = {
    "tiny-llama": ("model.layers", "self_attn", "mlp", "input_layernorm"),
    "tiny-gpt2": ("transformer.h", "attn", "mlp", "ln_1"),
    "tiny-gpt-neox": ("gpt_neox.layers", "attention", "mlp", "input_layernorm"),
}


def pre_norm_by_hand(model: Any, preset: str, index: int, parallel: bool) -> dict[str, Any]:
    path, attention, mlp, _ = LAYERS[preset]
    layer = model.get_submodule(path)[index]
    attention, mlp = layer.get_submodule(attention), layer.get_submodule(mlp)
    activations = tensors_of(
        model,
        {
            "h": (layer, "in"),
            "y": (layer, "out"),
            "attention reads": (attention, "in"),
            "attention says": (attention, "out"),
            "mlp reads": (mlp, "in"),
            "mlp says": (mlp, "out"),
        },
    )
    h = activations["h"]
    middle = h if parallel else h + activations["attention says"]
    return activations | {
        "attention": (h, h + activations["attention says"]),
        "mlp": (middle, middle + activations["mlp says"]),
    }


def post_norm_by_hand(model: Any, index: int) -> dict[str, Any]:
    layer = model.encoder.layer[index]
    activations = tensors_of(
        model,
        {
            "h": (layer, "in"),
            "y": (layer, "out"),
            "attention reads": (layer.attention.self, "in"),
            "attention says": (layer.attention.output.dense, "out"),
            "mlp reads": (layer.intermediate, "in"),
            "mlp says": (layer.output.dense, "out"),
        },
    )
    h = activations["h"]
    middle = layer.attention.output.LayerNorm(h + activations["attention says"])
    after = layer.output.LayerNorm(middle + activations["mlp says"])
    return activations | {"attention": (h, middle), "mlp": (middle, after)}


HAND = {
    "pre, llama": ("tiny-llama", {}, lambda m, i: pre_norm_by_hand(m, "tiny-llama", i, False)),
    "pre, gpt2": ("tiny-gpt2", {}, lambda m, i: pre_norm_by_hand(m, "tiny-gpt2", i, False)),
    "parallel": ("tiny-gpt-neox", {}, lambda m, i: pre_norm_by_hand(m, "tiny-gpt-neox", i, True)),
    "neox in series": (
        "tiny-gpt-neox",
        {"use_parallel_residual": False},
        lambda m, i: pre_norm_by_hand(m, "tiny-gpt-neox", i, False),
    ),
    "post": ("tiny-bert", {}, post_norm_by_hand),
}


@pytest.mark.parametrize("wiring", HAND)
def test_similarity_equals_what_is_computed_by_hand(tiny: Any, wiring: str) -> None:
    preset, changed, by_hand = HAND[wiring]
    model = tiny(preset, **changed)
    found, bare = walk(model, Similarity()), walk(model, Similarity(drop_norm=False))
    with torch.no_grad():
        for index in range(len(found)):
            hand = by_hand(model, index)
            assert abs(float(found[index]["block"]) - mean_cosine(hand["h"], hand["y"])) <= 1e-5
            for part in ("attention", "mlp"):
                with_residual = mean_cosine(*hand[part])
                without = mean_cosine(hand[f"{part} reads"], hand[f"{part} says"])
                assert abs(float(found[index][part]) - with_residual) <= 1e-5
                assert abs(float(bare[index][part]) - without) <= 1e-5
                assert abs(with_residual - without) > 1e-3, "the two measures are not told apart"
            assert int(found[index]["tokens"]) == 30


def test_gaps_are_cosines_of_streams_some_blocks_apart(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    blocks = Anatomy.of(model).blocks
    places = {f"in {b.index}": (b.module, "in") for b in blocks}
    streams = tensors_of(model, places | {"end": (blocks[-1].module, "out")})
    ordered = list(streams.values())
    for index, values in enumerate(walk(model, BlockDistance(3))):
        for gap in (1, 2, 3):
            start = index + 1 - gap
            found = float(values["gaps"][gap - 1])
            if start < 0:
                assert found == -torch.inf
            else:
                by_hand = mean_cosine(ordered[start], ordered[index + 1])
                assert abs(found - by_hand) <= 1e-5


def test_a_gap_of_one_is_the_similarity_of_the_block(tiny: Any, preset: str) -> None:
    for values in walk(tiny(preset), BlockDistance(1), Similarity()):
        assert torch.equal(values["gaps"][0], values["block"])


def moments_by_hand(model: Any, index: int) -> dict[str, Tensor]:
    block = Anatomy.of(model).blocks[index]
    assert block.attention is not None and block.mlp is not None
    activations = tensors_of(
        model,
        {
            "attention": (block.attention.sublayer_input.module, "in"),
            "mlp": (block.mlp.down.module, "in"),
            "h": (block.module, "in"),
            "y": (block.module, "out"),
        },
    )
    x, a = activations["attention"].double(), activations["mlp"].double()
    return {
        "attention": x.T @ x / len(x),
        "attention_mean": x.mean(0),
        "mlp": a.T @ a / len(a),
        "influence": torch.tensor(1 - mean_cosine(activations["h"], activations["y"])),
    }


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_grams_equal_the_naive_ones(
    tiny: Any, dense_mlps: str, dtype: torch.dtype, rtol: float
) -> None:
    model = tiny(dense_mlps, dtype=dtype)
    statistics = walk(model, SecondMoments())
    tokens = 3 * Anatomy.of(model).family.inputs().positions(10)
    for index, found in enumerate(statistics):
        hand = moments_by_hand(model, index)
        assert found.keys() == {*hand, "tokens"} and int(found["tokens"]) == tokens
        for name in ("attention", "attention_mean", "mlp"):
            assert found[name].dtype == torch.float64
            assert float((found[name] - hand[name]).norm() / hand[name].norm()) <= rtol, name
        # Cosines are taken in float32 whatever the weights are.
        assert abs(float(found["influence"]) - float(hand["influence"])) <= 1e-6


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("mlp", [True, False])
def test_only_what_is_asked_for_is_collected(tiny: Any, attention: bool, mlp: bool) -> None:
    found = walk(tiny("tiny-llama"), SecondMoments(attention=attention, mlp=mlp))[0]
    wanted = {"influence", "tokens"} | ({"mlp"} if mlp else set())
    assert found.keys() == wanted | ({"attention", "attention_mean"} if attention else set())


@pytest.mark.contract("F3")
def test_half_precision_is_measured_in_full(tiny: Any, dense_mlps: str) -> None:
    model = tiny(dense_mlps, dtype=torch.bfloat16)
    similarity, grams = walk(model, Similarity()), walk(model, SecondMoments())
    for index in range(len(grams)):
        hand = moments_by_hand(model, index)
        for name in ("attention", "mlp"):
            found = grams[index][name]
            assert found.dtype == torch.float64
            assert float((found - hand[name]).norm() / hand[name].norm()) <= 1e-5
        for name in ("attention", "mlp", "block"):
            assert similarity[index][name].dtype == torch.float64
        # In bfloat16 the cosine itself would have three digits.
        assert abs(float(similarity[index]["block"]) - 1 + float(hand["influence"])) <= 1e-5


def test_cosines_of_half_precision_streams_are_exact() -> None:
    from modwright.calibration.collectors import _cosines

    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200, 48, generator=generator).bfloat16()
    b = (a.float() + 0.05 * torch.randn(200, 48, generator=generator)).bfloat16()
    exact = F.cosine_similarity(a.double(), b.double(), dim=-1).sum()
    assert abs(float(_cosines(a, b) - exact)) <= 1e-4
    rounded = F.cosine_similarity(a, b, dim=-1).double().sum()
    assert abs(float(rounded - exact)) > 1e-2


def test_descriptions_tell_settings_apart() -> None:
    collectors = [
        Similarity(),
        Similarity(drop_norm=False),
        BlockDistance(2),
        BlockDistance(3),
        SecondMoments(),
        SecondMoments(attention=False),
        SecondMoments(mlp=False),
    ]
    told = [str(collector.describe()) for collector in collectors]
    assert len(set(told)) == len(told)
