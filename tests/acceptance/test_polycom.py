"""PolyCom (arXiv 2411.03884): its formulas and gradients, what they cost, and what is learned.

Small language models are trained on bytes, from the same start values on the same windows. With
MODWRIGHT_FIGURES all activations are compared, SwiGLU among them, and the figures are written down.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from figures import FULL, figures_only, note
from small_language import Bytes, byte_llama, own_loss, windows
from torch import Tensor
from torch.autograd import gradcheck

import modwright
from golden_checks import GoldenCase
from modwright.anatomy import Anatomy
from modwright.calibration import token_windows
from modwright.metrics.perplexity import PerplexityRecipe, perplexity
from modwright.nn import FeedForward, FeedForwardShape, PolyNorm, PolyReLU, equal_parameter_width
from modwright.nn.activations import make_activation
from modwright.nn.activations.polynomial_functions import (
    naive_poly_norm,
    naive_poly_relu,
    poly_norm,
    poly_relu,
)
from modwright.surgery import apply, make_method
from modwright.training import Settings, fit
from modwright.training.parametrization import Standard

GOLDEN = Path(__file__).parents[1] / "golden" / "polycom"
KINDS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "poly_relu": (poly_relu, naive_poly_relu),
    "poly_norm": (poly_norm, naive_poly_norm),
}


# Formulas


def errors(file: Path) -> dict[str, float]:
    """Of the output and the three gradients, as shares of the largest number."""
    case = GoldenCase.read(file)
    options = {"order": case.config["order"]}
    if "norm" in file.stem:
        options["eps"] = case.config["eps"]
    x = case["input.x"].clone().requires_grad_()
    module = (PolyNorm if "norm" in file.stem else PolyReLU)(**options).to(x.dtype)
    module.load_state_dict({name: case[f"weight.{name}"] for name in ("weight", "bias")})
    y = module(x)
    y.backward(case["input.grad_y"])
    found = {"output.y": y.detach(), "grad.x": x.grad}
    found |= {f"grad.{name}": p.grad for name, p in module.named_parameters()}
    return {n: float((v - case[n]).abs().max() / case[n].abs().max()) for n, v in found.items()}


def test_outputs_and_gradients_are_those_of_the_reference() -> None:
    files = sorted(GOLDEN.glob("*.safetensors"))
    assert len(files) == 6
    for file in files:
        assert max(errors(file).values()) <= (1e-12 if "float64" in file.stem else 1e-6)


def given(shape: tuple[int, ...], order: int) -> tuple[Tensor, Tensor, Tensor]:
    """x with zeros in it and nothing near them, coefficients and a bias, in float64."""
    torch.manual_seed(order)
    x = torch.randn(shape, dtype=torch.float64)
    x = torch.where(x.abs() < 0.05, 0.3, x)
    x[..., ::3] = 0.0
    coeff, bias = torch.randn(order, dtype=torch.float64), torch.randn(1, dtype=torch.float64)
    return x.requires_grad_(), coeff.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("shape", [(3, 7), (2, 5, 16)])
def test_gradients_are_those_of_finite_differences(shape: tuple[int, ...]) -> None:
    def without_linear(x: Tensor, coeff: Tensor, bias: Tensor) -> Tensor:
        """PolyReLU as it is where it has a derivative at 0."""
        return poly_relu(x, torch.cat((torch.zeros_like(coeff[:1]), coeff[1:])), bias)

    for order in (1, 2, 3, 4):
        x, coeff, bias = given(shape, order)
        assert gradcheck(poly_norm, (x, coeff, bias))
        assert gradcheck(without_linear, (x, coeff, bias))
        assert gradcheck(poly_relu, (torch.where(x == 0, -0.4, x), coeff, bias))
        slopes = torch.autograd.grad(poly_relu(x, coeff, bias).sum(), x)[0]
        assert int((slopes[x <= 0] != 0).sum()) == 0


def test_relu_and_its_square_are_among_them_and_the_norm_forgets_the_scale() -> None:
    x, zero = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * 10, torch.zeros(1)
    assert torch.equal(poly_relu(x, torch.tensor([1.0, 0.0, 0.0]), zero), x.relu())
    assert torch.equal(poly_relu(x, torch.tensor([0.0, 1.0, 0.0]), zero), x.relu() ** 2)
    act = PolyNorm(eps=0.0).requires_grad_(False)
    assert float((act(3 * x) - act(x)).abs().max() / act(x).abs().max()) <= 1e-6


def test_float16_stays_finite_where_the_formula_does_not() -> None:
    x = torch.linspace(-60, 60, 512).view(4, 128).half().requires_grad_()
    inputs = x, torch.full((3,), 1 / 3).half().requires_grad_(), torch.zeros(1).half()
    wrong = []
    for function in (poly_norm, naive_poly_norm):
        y = function(*inputs)
        found = y, *torch.autograd.grad(y.sum(), inputs[:2])
        wrong.append(sum(int((~one.isfinite()).sum()) for one in found))
    assert wrong[0] == 0
    assert wrong[1] > 0
    largest = PolyReLU()(torch.tensor([57.75, 60.0]).half())
    assert largest.isfinite().tolist() == [True, False]


# Costs


def kept_bytes(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> int:
    """What autograd keeps of a call; a memory that is kept twice counts once."""
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = function(*inputs)
    del out
    return sum(found.values())


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_input_is_kept_for_the_backward_pass(kind: str) -> None:
    x = torch.randn(512, 1536, requires_grad=True)
    inputs = x, torch.full((3,), 1 / 3, requires_grad=True), torch.zeros(1, requires_grad=True)
    ours, naive = (kept_bytes(f, inputs) / (4 * x.numel()) for f in KINDS[kind])
    note(f"polycom-kept-{kind}", ours=ours, naive=naive)
    assert ours <= 1.1
    assert naive >= 4


def test_a_layer_has_the_weights_of_swiglu_and_order_plus_one_numbers() -> None:
    with torch.device("meta"):
        width = equal_parameter_width(2048, 5504)
        shape = FeedForwardShape(2048, width, "poly_norm", activation_kwargs={"order": 3})
        plain = FeedForward(shape, make_activation("poly_norm", order=3))
        swiglu = FeedForward(FeedForwardShape(2048, 5504, "silu", gated=True), torch.nn.SiLU())
    sizes = [sum(p.numel() for p in part.parameters()) for part in (plain, swiglu)]
    assert width == 8256
    assert sizes[1] == 33_816_576
    assert sizes[0] - sizes[1] == 4


# What is learned

SEEDS = (0, 1, 2)
LEAST = {"fortunes": 0.03, "lee": 0.03}
"""Nats for a byte by which PolyNorm ends below ReLU and below GELU."""

RECIPE: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "weight_decay": 0.1,
    "warmup": 30,
    "schedule": "cosine_with_min_lr",
    "more": {"adam_beta2": 0.95, "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
}
LENGTH = 64
ALL = ("relu", "relu2", "gelu", "swiglu", "poly_relu", "poly_norm", "poly_norm, all decays")


def model_of(arm: str, seed: int, width: int) -> Any:
    """Three layers; SwiGLU has 8/3 of the width, all others as many weights."""
    swiglu = 8 * width // 3
    name, _, decays = arm.partition(", ")
    dense = {"activation": name, "gated": False}
    dense["intermediate_size"] = equal_parameter_width(width, swiglu)
    if decays:
        dense["activation_kwargs"] = {"weight_decay": True}
    return byte_llama(
        "" if arm == "swiglu" else ("feed_forward", dense),
        seed=seed,
        swiglu_width=swiglu,
        hidden_size=width,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
    )


def losses(
    text: str, arms: tuple[str, ...], seeds: tuple[int, ...], steps: int, width: int = 96
) -> dict[str, float]:
    """Arm -> nats for a byte of held-out text, the mean over seeds."""
    data, found = Bytes.of(text, LENGTH, most=1024), {}
    for arm in arms:
        everything = Standard(decay_norm_and_bias=True) if arm.endswith("all decays") else None
        each, seconds = [], 0.0
        for seed in seeds:
            model = model_of(arm, seed, width)
            rows, settings = data.drawn(16 * steps, seed), Settings(seed=seed, **RECIPE)
            done = fit(model, rows, None, settings, own_loss, parametrization=everything)
            assert done.steps == steps
            each.append(data.loss(model))
            seconds += done.seconds
        found[arm] = mean(each)
        note(
            f"polycom-{text}",
            arm=arm,
            width=width,
            steps=steps,
            loss=found[arm],
            spread=stdev(each) if len(each) > 1 else 0.0,
            each=each,
            parameters=model.num_parameters(),
            seconds_of_a_training=seconds / len(seeds),
        )
    return found


def test_models_of_all_activations_have_equally_many_weights() -> None:
    sizes = {arm: model_of(arm, 0, 96).num_parameters() for arm in ALL}
    assert len({sizes[arm] for arm in ("relu", "relu2", "gelu", "swiglu")}) == 1
    assert sizes["poly_norm"] - sizes["swiglu"] == 3 * 4


@pytest.mark.slow
@pytest.mark.parametrize("text", LEAST)
def test_poly_norm_ends_below_relu_and_below_gelu(text: str) -> None:
    shown = ALL if text == "fortunes" else ("relu", "gelu", "swiglu", "poly_norm")
    found = losses(text, shown if FULL else ("relu", "gelu", "poly_norm"), SEEDS, steps=1200)
    assert found["relu"] - found["poly_norm"] >= LEAST[text]
    assert found["gelu"] - found["poly_norm"] >= LEAST[text]


@figures_only
@pytest.mark.slow
def test_wider_models_that_are_trained_for_longer_are_reported() -> None:
    losses("fortunes", ("swiglu", "poly_norm"), (0,), steps=3000, width=256)


# A trained model

BLOCK = 15
HELD_OUT = PerplexityRecipe("lee", windows=6, length=512)


@pytest.mark.slow
@pytest.mark.models
def test_fitted_coefficients_are_a_better_start_in_smollm2() -> None:
    source = modwright.open("smollm2-135m")
    source.model.requires_grad_(False)  # results share what they do not change
    text = token_windows(source.tokenizer, "lee-background", windows=32, length=256, batch_size=4)
    found = {"before": perplexity(source.model, source.tokenizer, HELD_OUT).value}

    def replaced(name: str, **options: Any) -> Any:
        method = make_method("replace_activation", {"blocks": str(BLOCK), **options})
        model = apply(source.model, method, text if options else None, check=False).model
        found[name] = perplexity(model, source.tokenizer, HELD_OUT).value
        return model

    def learn(name: str, model: Any) -> None:
        """The MLP and its activation alone, on windows of the text that the fit has seen."""
        Anatomy.of(model).blocks[BLOCK].mlp.module.requires_grad_(True)
        rows = torch.cat([batch.input_ids for batch in text]).view(-1, 128).repeat(4, 1)[:200]
        settings = Settings(1, batch_size=4, learning_rate=1e-4, weight_decay=0.0)
        data = windows(rows, model.config.vocab_size)
        assert fit(model, data, None, settings, own_loss).steps == 50
        found[name] = perplexity(model, source.tokenizer, HELD_OUT).value

    start, fitted = replaced("start values"), replaced("fitted", fit=True)
    learn("fitted and trained", fitted)
    if FULL:
        learn("start values, trained", start)
        learn("as it was, trained", source.model)
    note("polycom-smollm2", block=BLOCK, **found)
    assert found["fitted"] < found["start values"]
    assert found["fitted and trained"] < found["fitted"]
