"""MLPs whose activation has parameters: placed, filled, saved, counted, taken along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers import batch_of, edit, outputs, snapshot, unchanged
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError, ModwrightError
from modwright.edits import Change, Replace, keep_neurons
from modwright.edits.experts import expert_shape, keep_experts, merge_experts, split_mlp
from modwright.edits.registry import activation
from modwright.nn import PolyNorm, PolyReLU
from modwright.surgery.method import make_method, unsupported_reason

START = {"weight": torch.tensor([0.2, 0.5, 0.7]), "bias": torch.tensor([0.1])}


def with_activation(part: Any, name: str, **kwargs: Any) -> Change:
    """The same maps around another activation, with coefficients of one's own."""
    kind = "mixture" if "mixture" in type(part.shape).__name__.lower() else "feed_forward"
    told = {**part.shape.to_dict(), "activation": name}
    told |= {"activation_kwargs": kwargs} if kwargs else {}
    values = {f"{part.address}.act.{n}": v for n, v in START.items()}
    return Change((Replace(part.address, kind, told),), values)


def by_hand(model: Any, index: int, x: Tensor) -> Tensor:
    """What an MLP of a Llama with PolyNorm computes, from its stored numbers."""
    mlp = Anatomy.of(model).blocks[index].mlp
    cubic, square, linear = START["weight"]
    gate = x @ mlp.gate.weight.T
    normed = [
        gate**i / ((gate**i).square().mean(-1, keepdim=True) + 1e-6).sqrt() for i in (1, 2, 3)
    ]
    inner = linear * normed[0] + square * normed[1] + cubic * normed[2] + START["bias"]
    return (inner * (x @ mlp.up.weight.T)) @ mlp.down.weight.T


@torch.no_grad()
@pytest.mark.parametrize("host", ["tiny-llama", "tiny-gpt2", "tiny-mixtral"])
def test_it_is_placed_filled_and_loaded_in_a_new_process(
    tiny: Any, host: str, fresh_process: Callable[..., Any], tmp_path: Path
) -> None:
    source = tiny(host)
    before = snapshot(source)
    applied = edit(source, with_activation(Anatomy.of(source).blocks[1].mlp, "poly_norm"))
    assert unchanged(source, before) and not applied.plain
    assert applied.verification is not None and applied.verification.ok
    part: Any = Anatomy.of(applied.model).blocks[1].mlp
    assert isinstance(part.module.act, PolyNorm) and part.activation == "poly_norm"
    found = part.parameters()
    assert all(torch.equal(found[f"act.{name}"], value) for name, value in START.items())
    whole = Anatomy.of(applied.model)
    assert whole.num_parameters == Anatomy.of(source).num_parameters + 4
    assert part.num_parameters == Anatomy.of(source).blocks[1].mlp.num_parameters + 4

    applied.model.save_pretrained(tmp_path / "saved")
    batch, out = tmp_path / "batch.safetensors", tmp_path / "out.safetensors"
    save_file(batch_of(applied.model), batch)
    answer = fresh_process(
        tmp_path / "saved", tiny.auto_class(host), batch=str(batch), out=str(out)
    )
    assert "error" not in answer, answer
    expected = applied.model(**batch_of(applied.model), return_dict=True)[0]
    assert torch.equal(load_file(out)["out"], expected)


@torch.no_grad()
def test_it_stands_on_the_gate_and_computes_the_formula(tiny: Any) -> None:
    source = tiny("tiny-llama")
    model = edit(source, with_activation(Anatomy.of(source).blocks[0].mlp, "poly_norm")).model
    x = torch.randn(2, 5, 48)
    torch.testing.assert_close(model.model.layers[0].mlp(x), by_hand(model, 0, x))


def test_arguments_travel_in_the_edit(tiny: Any) -> None:
    source = tiny("tiny-llama")
    mlp = Anatomy.of(source).blocks[0].mlp
    change = with_activation(mlp, "poly_norm", eps=1e-3, eps_per_order=True)
    model = edit(source, change).model
    act: Any = Anatomy.of(model).blocks[0].mlp.module.act
    assert (act.eps, act.eps_per_order) == (1e-3, True)
    again = edit(model, Change((), {"blocks.0.mlp.act.bias": torch.tensor([0.4])})).model
    act = Anatomy.of(again).blocks[0].mlp.module.act
    assert (act.eps, act.bias.item()) == (1e-3, pytest.approx(0.4))
    assert Anatomy.of(model).blocks[0].mlp.module.act.bias.item() == pytest.approx(0.1)


def test_values_that_are_missing_are_named(tiny: Any) -> None:
    source = tiny("tiny-llama")
    change = with_activation(Anatomy.of(source).blocks[0].mlp, "poly_norm")
    with pytest.raises(InvalidInputError, match=r"no value for blocks\.0\.mlp\.act\.weight \(3,\)"):
        edit(source, Change(change.edits, {}))
    wrong = {**change.tensors, "blocks.0.mlp.act.weight": torch.ones(4)}
    with pytest.raises(InvalidInputError, match=r"cannot write 'weight' \(4,\)"):
        edit(source, Change(change.edits, wrong))


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("poly_nrm", {}, "unknown activation 'poly_nrm'.*did you mean 'poly_norm'"),
        ("poly_norm", {"order": 0}, "whole number from 1"),
        ("poly_norm", {"orders": 2}, "orders"),
        ("silu", {"beta": 2}, "'silu'.*takes no arguments|unexpected keyword"),
        ("gelu_new", {"beta": 2}, "the activation 'gelu_new' takes no arguments"),
    ],
)
def test_activations_that_cannot_be_are_refused(
    tiny: Any, name: str, kwargs: dict[str, Any], words: str
) -> None:
    source = tiny("tiny-llama")
    with pytest.raises(ModwrightError, match=words) as refused:
        edit(source, with_activation(Anatomy.of(source).blocks[0].mlp, name, **kwargs))
    assert "\n" not in str(refused.value)


def test_a_name_is_transformers_own_before_it_is_a_components() -> None:
    assert type(activation("gelu")).__module__ == "transformers.activations"
    assert isinstance(activation("poly_relu", {"order": 2}), PolyReLU)


def test_narrowing_and_splitting_are_refused(tiny: Any) -> None:
    source = tiny("tiny-llama")
    model = edit(source, with_activation(Anatomy.of(source).blocks[0].mlp, "poly_norm")).model
    mlp: Any = Anatomy.of(model).blocks[0].mlp
    assert not mlp.separable
    for narrow in (lambda: keep_neurons(mlp, range(8)), lambda: expert_shape(mlp, 4, 1)):
        with pytest.raises(InvalidInputError, match="'poly_norm' normalizes over the neurons"):
            narrow()
    for method in (
        make_method("emoe", num_experts=4, top_k=1, layers="all"),
        make_method("modegpt"),
    ):
        assert "normalizes over" in str(unsupported_reason(method, Anatomy.of(model)))


def test_whole_experts_may_go_and_the_others_keep_their_activation(tiny: Any) -> None:
    source = tiny("tiny-mixtral")
    model = edit(
        source, with_activation(Anatomy.of(source).blocks[0].mlp, "poly_norm", order=3)
    ).model
    mixture: Any = Anatomy.of(model).blocks[0].mlp
    assert mixture.shape.activation_kwargs == {"order": 3} and not mixture.separable
    with pytest.raises(InvalidInputError, match="normalizes over the neurons"):
        keep_neurons(mixture, range(8))
    fewer: Any = Anatomy.of(edit(model, keep_experts(mixture, [0, 2])).model).blocks[0].mlp
    assert fewer.num_experts == 2 and fewer.activation == "poly_norm"
    assert torch.equal(fewer.parameters()["act.weight"], START["weight"])


@torch.no_grad()
def test_a_learned_activation_that_is_separable_is_narrowed_split_and_merged(tiny: Any) -> None:
    source = tiny("tiny-llama")
    model = edit(source, with_activation(Anatomy.of(source).blocks[0].mlp, "poly_relu")).model
    mlp: Any = Anatomy.of(model).blocks[0].mlp
    assert mlp.separable
    narrow: Any = Anatomy.of(edit(model, keep_neurons(mlp, range(40))).model).blocks[0].mlp
    assert narrow.shape.intermediate_size == 40 == narrow.intermediate_size
    assert torch.equal(narrow.parameters()["act.weight"], START["weight"])
    shape = expert_shape(mlp, num_experts=4, top_k=4)
    parted = edit(model, split_mlp(mlp, torch.arange(96) % 4, shape)).model
    torch.testing.assert_close(outputs(parted), outputs(model))
    part: Any = Anatomy.of(parted).blocks[0].mlp
    assert part.module.act.weight.tolist() == START["weight"].tolist()
    for told in ({"activation": "silu"}, {}):  # whatever is said of the family's own
        merged = edit(parted, merge_experts(part, **told)).model
        assert torch.equal(outputs(merged), outputs(model))


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_experts_with_the_family_s_own_activation_are_merged_to_its_own_mlp(
    tiny: Any, name: str
) -> None:
    source = tiny(name)
    mlp: Any = Anatomy.of(source).blocks[0].mlp
    shape, count = expert_shape(mlp, num_experts=4, top_k=2), mlp.intermediate_size
    parted = edit(source, split_mlp(mlp, torch.arange(count) % 4, shape)).model
    part: Any = Anatomy.of(parted).blocks[0].mlp
    merged = edit(parted, merge_experts(part)).model
    assert type(merged) is type(source) and torch.equal(outputs(merged), outputs(source))


def test_experts_that_normalize_by_themselves_are_not_merged(tiny: Any) -> None:
    source = tiny("tiny-llama")
    mlp: Any = Anatomy.of(source).blocks[0].mlp
    shape = expert_shape(mlp, num_experts=4, top_k=2)
    parted = edit(source, split_mlp(mlp, torch.arange(96) % 4, shape)).model
    part: Any = Anatomy.of(parted).blocks[0].mlp
    told = {**part.shape.to_dict(), "activation": "poly_norm"}
    values = {f"{part.address}.act.{name}": value for name, value in START.items()}
    change = Change((Replace(part.address, "expert_feed_forward", told),), values)
    with pytest.raises(InvalidInputError, match="experts cannot be merged"):
        merge_experts(Anatomy.of(edit(parted, change).model).blocks[0].mlp)


def test_parameters_of_transformers_own_activations_are_parts_too(tiny: Any) -> None:
    source = tiny("tiny-llama", hidden_act="prelu")
    before = snapshot(source)
    mlp: Any = Anatomy.of(source).blocks[1].mlp
    assert "act.weight" in mlp.parameters() and mlp.separable
    changed = edit(source, Change((), {"blocks.1.mlp.act.weight": torch.tensor([0.75])}))
    assert changed.plain and changed.model.model.layers[1].mlp.act_fn.weight.item() == 0.75
    assert unchanged(source, before)
    shape = expert_shape(mlp, num_experts=4, top_k=4)
    parted = edit(source, split_mlp(mlp, torch.arange(96) % 4, shape)).model
    torch.testing.assert_close(outputs(parted), outputs(source))


def test_nothing_that_has_no_parameters_is_listed(tiny: Any) -> None:
    for host in ("tiny-llama", "tiny-gpt2", "tiny-bert", "tiny-mixtral"):
        part: Any = Anatomy.of(tiny(host)).blocks[0].mlp
        assert not [name for name in part.parameters() if name.startswith("act.")]
