"""Another activation in MLPs, with start values or fitted to the old one on data."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers import outputs, random_data, snapshot, unchanged
from modwright.anatomy import Anatomy
from modwright.core.capture import HookPoint, capture
from modwright.core.errors import InvalidInputError
from modwright.edits import factorize, remove
from modwright.edits.compose import compose
from modwright.nn import PolyNorm, PolyReLU, fit_coefficients
from modwright.surgery import apply, make_method, plan
from modwright.surgery.method import unsupported_reason

HOSTS = ["tiny-llama", "tiny-gpt2", "tiny-mixtral"]


def acts(model: Any) -> list[str]:
    return [block.mlp.activation for block in Anatomy.of(model).blocks]


def seen_by(model: Any, module: Any) -> Tensor:
    """What a module of the model gives, on the data that `random_data` has."""
    found = []
    for call in random_data(model):
        with torch.no_grad(), capture({"out": HookPoint(module, "output")}, copy=True) as seen:
            model(**{name: value for name, value in vars(call).items() if name == "input_ids"})
        found.append(seen["out"].flatten(0, -2))
    return torch.cat(found)


@pytest.mark.parametrize("host", HOSTS)
def test_chosen_blocks_get_it_and_the_source_stays(tiny: Any, host: str) -> None:
    source = tiny(host)
    before, usual = snapshot(source), acts(source)[0]
    applied = apply(source, make_method("replace_activation", blocks="1, -1"))
    assert unchanged(source, before)
    assert acts(applied.model) == [usual, "poly_norm", usual, "poly_norm"]
    new: Any = Anatomy.of(applied.model).blocks[1].mlp
    assert (
        isinstance(new.module.act, PolyNorm)
        and new.module.act.weight.tolist() == [pytest.approx(1 / 3)] * 3
    )
    old: Any = Anatomy.of(source).blocks[1].mlp
    for role, projection in old.projections().items():
        assert torch.equal(new.projections()[role].weight, projection.weight)
    grown = Anatomy.of(applied.model).num_parameters - Anatomy.of(source).num_parameters
    assert grown == 2 * 4
    bounds = make_method("replace_activation", blocks="1, -1").parameter_bounds(Anatomy.of(source))
    assert bounds == (-8, -8)


@pytest.mark.parametrize(("host", "old"), [("tiny-llama", F.silu), ("tiny-gpt2", None)])
@pytest.mark.parametrize("name", ["poly_norm", "poly_relu"])
def test_the_fit_is_that_of_what_the_activation_reads(
    tiny: Any, host: str, old: Any, name: str
) -> None:
    source = tiny(host)
    mlp: Any = Anatomy.of(source).blocks[1].mlp
    function = old or mlp.act_function
    x = seen_by(source, (mlp.gate or mlp.up).module).double()
    act: Any = {"poly_norm": PolyNorm, "poly_relu": PolyReLU}[name]()
    truth = fit_coefficients(act, x, function(x.float()))
    method = make_method("replace_activation", activation=name, blocks="1", fit=True)
    decided = plan(source, method, random_data(source))
    weight = decided.tensors["blocks.1.mlp.act.weight"].double()
    torch.testing.assert_close(weight.flip(0), truth.coeff, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        decided.tensors["blocks.1.mlp.act.bias"].double(), truth.bias, rtol=1e-4, atol=1e-5
    )
    told = decided.reasons["fit"]["blocks.1.mlp"]
    assert told["residual"] == pytest.approx(truth.residual, rel=1e-3)


@pytest.mark.parametrize("host", HOSTS)
def test_a_fitted_model_is_nearer_to_the_old_one(tiny: Any, host: str) -> None:
    source = tiny(host)
    dense = outputs(source)
    plain = make_method("replace_activation", blocks="*")
    fitted = make_method("replace_activation", blocks="*", fit=True)
    off = float((outputs(apply(source, plain).model) - dense).square().mean())
    near = float(
        (outputs(apply(source, fitted, random_data(source)).model) - dense).square().mean()
    )
    assert near < 0.5 * off


def test_the_experts_of_a_mixture_are_fitted_over_what_each_one_works_on(tiny: Any) -> None:
    source = tiny("tiny-mixtral")
    mixture: Any = Anatomy.of(source).blocks[0].mlp
    pieces: list[Tensor] = []
    for call in random_data(source):
        point = {"in": mixture.sublayer_input}
        with torch.no_grad(), capture(point, copy=True) as seen:
            source(input_ids=call.input_ids)
        x = seen["in"].flatten(0, -2)
        scores = F.linear(x, mixture.router.weight)
        for expert in range(mixture.num_experts):
            mine = (scores.topk(mixture.top_k).indices == expert).any(-1)
            pieces.append(F.linear(x[mine], mixture.experts[expert].gate.weight))
    pieces = [piece for piece in pieces if len(piece)]
    truth = fit_coefficients(PolyNorm(), pieces, [F.silu(piece) for piece in pieces])
    method = make_method("replace_activation", blocks="0", fit=True)
    found = plan(source, method, random_data(source)).tensors["blocks.0.mlp.act.weight"]
    torch.testing.assert_close(found.double().flip(0), truth.coeff, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_experts_of_a_split_mlp_normalize_each_by_itself_in_both_modes(tiny: Any) -> None:
    source = tiny("tiny-llama")
    models = []
    for mode in ("mask", "dispatch"):
        options = {"num_experts": 4, "top_k": 2, "mode": mode, "layers": "all"}
        parted = apply(source, make_method("emoe", options)).model
        method = make_method("replace_activation", fit=True)
        models.append(apply(parted, method, random_data(parted)).model)
    mask, dispatch = (outputs(copy.deepcopy(model).double()) for model in models)
    assert mask.dtype is torch.float64  # rounding of float32 depends on what ran before
    torch.testing.assert_close(mask, dispatch, rtol=1e-4, atol=1e-5)
    part: Any = Anatomy.of(models[0]).blocks[0].mlp
    assert part.num_experts == 4 and isinstance(part.module.act, PolyNorm)
    x = torch.randn(3, 48)
    gate, up = part.module.gate_proj(x), part.module.up_proj(x)
    inner = part.module.act(gate.view(3, 4, 24)).flatten(1) * up
    kept = part.module.route(x).repeat_interleave(24, dim=-1)
    torch.testing.assert_close(part.module(x), part.module.down_proj(inner * kept))


def test_options_reach_the_activation_and_come_back(tiny: Any) -> None:
    source = tiny("tiny-llama")
    method = make_method("replace_activation", blocks="0", order=2, eps=1e-4)
    model = apply(source, method).model
    act: Any = Anatomy.of(model).blocks[0].mlp.module.act
    assert (act.order, act.eps, act.eps_per_order, act.weight_decay) == (2, 1e-4, False, False)
    switched = make_method("replace_activation", blocks="0", eps_per_order=True, weight_decay=True)
    model = apply(model, switched).model
    act = Anatomy.of(model).blocks[0].mlp.module.act
    assert (act.order, act.eps, act.eps_per_order, act.weight_decay) == (3, 1e-6, True, True)
    # From one learned activation to another, and to one without parameters.
    again = apply(model, make_method("replace_activation", activation="poly_relu", blocks="0"))
    assert isinstance(Anatomy.of(again.model).blocks[0].mlp.module.act, PolyReLU)
    back = apply(again.model, make_method("replace_activation", activation="silu", blocks="0"))
    assert back.plain and torch.equal(outputs(back.model), outputs(source))


def test_merged_experts_keep_an_activation_that_is_not_the_familys(tiny: Any) -> None:
    model = apply(tiny("tiny-llama"), make_method("replace_activation", activation="relu")).model
    parted = apply(model, make_method("emoe", num_experts=4, top_k=4, layers="all")).model
    merged = apply(parted, make_method("emoe_merge")).model
    assert acts(merged) == ["relu"] * 4
    assert torch.equal(outputs(merged), outputs(model))


def test_factor_pairs_stay_factor_pairs(tiny: Any) -> None:
    source = tiny("tiny-llama")
    mlp: Any = Anatomy.of(source).blocks[0].mlp
    low = factorize(mlp.up, torch.randn(96, 5), torch.randn(5, 48))
    model = apply(source, low).model
    edited = apply(model, make_method("replace_activation", activation="relu", blocks="0")).model
    up: Any = Anatomy.of(edited).blocks[0].mlp.up
    assert up.rank == 5 and torch.equal(up.weight, Anatomy.of(model).blocks[0].mlp.up.weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": "poly_nrm"}, "did you mean 'poly_norm'"),
        ({"activation": "relu", "fit": True}, "relu has no coefficients to fit"),
        ({"order": 0, "fit": True}, "whole number from 1"),
        ({"activation": "relu", "order": 2}, "takes no arguments|unexpected keyword"),
        ({"activation": "relu", "weight_decay": True}, "takes no arguments|unexpected keyword"),
        ({"eps": -1e-6}, "eps must not be negative, not -1e-06"),
        ({"order": 0}, "whole number from 1, not 0"),
    ],
)
def test_what_cannot_be_is_refused(tiny: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as refused:
        plan(tiny("tiny-llama"), make_method("replace_activation", options))
    assert "\n" not in str(refused.value)


def test_what_stands_in_the_way_is_named(tiny: Any) -> None:
    gone = apply(tiny("tiny-llama"), remove("blocks.1.mlp")).model
    method = make_method("replace_activation")
    reason = unsupported_reason(method, Anatomy.of(gone))
    assert reason == "replace_activation: block 1: the MLP was removed before"
    with pytest.raises(InvalidInputError, match="block 0: blocks of mamba have no MLP"):
        plan(compose("tiny-mamba", check=False), method)
    fitted = make_method("replace_activation", fit=True)
    with pytest.raises(InvalidInputError, match="needs calibration data"):
        plan(tiny("tiny-llama"), fitted)
    silent = tiny.copy("tiny-llama")
    with torch.no_grad():
        silent.model.layers[0].mlp.gate_proj.weight.zero_()
    with pytest.raises(InvalidInputError, match=r"blocks\.0\.mlp: the inputs do not determine"):
        plan(silent, fitted, random_data(silent))


def test_blocks_that_do_not_normalize_are_narrowed_and_split_as_ever(tiny: Any) -> None:
    model = apply(tiny("tiny-llama"), make_method("replace_activation", blocks="1")).model
    options = {"num_experts": 4, "top_k": 4}
    split = apply(model, make_method("emoe", {**options, "layers": "0, 2"})).model
    torch.testing.assert_close(outputs(split), outputs(model))
    with pytest.raises(InvalidInputError, match=r"blocks\.1\.mlp.*'poly_norm' normalizes over"):
        apply(model, make_method("emoe", {**options, "layers": "0, 1"}))


def test_maps_that_recenter_are_not_taken_out_of_their_mlp(tiny: Any) -> None:
    source = apply(tiny("tiny-gpt2"), make_method("pre_rmsnorm", form="rms", training=True)).model
    with pytest.raises(InvalidInputError, match=r"mlp\.down recenters what it returns"):
        plan(source, make_method("replace_activation"))
