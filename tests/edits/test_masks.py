"""Masks: zeros that are stored and computed as before, and stay zero whatever comes after."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import outputs, snapshot, unchanged
from modwright.anatomy import Anatomy
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.edits import Change, Plan, apply, arrange, keep_neurons, mask, remove
from modwright.edits.masks import masked_addresses, masked_parameters


def half(weight: Tensor) -> Tensor:
    """True for the larger half."""
    return weight.abs() > weight.abs().median()


def some_masks(anatomy: Anatomy) -> Change:
    """Of an attention's queries, perhaps in a fused matrix, and of an MLP in another block."""
    addresses = []
    for index, place in ((1, "attention"), (2, "mlp")):
        part = anatomy.blocks[index].at(place)
        role = next(iter(part.projections()))
        addresses.append(part.projections()[role].address)
    return sum(
        (mask(f"{address}.weight", half(anatomy.part(address).weight)) for address in addresses),
        Change(),
    )


def zeros(model: Any) -> dict[str, Tensor]:
    return {name: p.detach() == 0 for name, p in masked_parameters(model).items()}


def same_zeros(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def test_a_plan_of_masks_alone_keeps_the_structure(
    tiny: Any, preset: str, tmp_path: Path, fresh_process: Any
) -> None:
    model = tiny(preset)
    anatomy, before, plain = Anatomy.of(model), snapshot(model), outputs(model)
    change = some_masks(anatomy)
    plan = Plan.of(anatomy, "by hand", change)
    plan.save(tmp_path / "plan")
    loaded = Plan.load(tmp_path / "plan")
    assert not plan.edits and not plan.tensors
    assert all(torch.equal(loaded.masks[name], keep) for name, keep in plan.masks.items())
    assert [what for _, what in plan.summary()] == ["masked, 50.0 %", "masked, 50.0 %"]
    applied = apply(model, loaded)
    assert unchanged(model, before) and torch.equal(outputs(model), plain)
    assert applied.plain and type(applied.model) is type(model)
    diff = applied.tensor_diff
    assert len(diff.masked) == 2 and not (diff.changed or diff.added or diff.removed)
    masked = Anatomy.of(applied.model)
    for address, keep in change.masks.items():
        part = address.removesuffix(".weight")
        assert torch.equal(masked.part(part).weight, anatomy.part(part).weight * keep)
    assert masked_addresses(applied.model) == sorted(change.masks)
    assert set(masked_parameters(applied.model)) == set(diff.masked)
    assert masked.num_parameters == anatomy.num_parameters
    applied.model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved")
    assert same_zeros(zeros(again), zeros(applied.model)) and len(zeros(again)) == 2


def test_stock_transformers_opens_it(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-llama")
    apply(model, some_masks(Anatomy.of(model))).model.save_pretrained(tmp_path)
    code = (
        "from transformers import AutoModelForCausalLM as A;"
        f"m = A.from_pretrained({str(tmp_path)!r});"
        "print(type(m).__name__, m.config.modwright_masked)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("LlamaForCausalLM ['blocks.1.attention.q.weight', 'blocks.2.mlp.")


def test_masks_follow_their_blocks_through_later_edits(tiny: Any) -> None:
    model = tiny("tiny-llama")
    masked = apply(model, some_masks(Anatomy.of(model))).model
    fewer = apply(masked, remove("blocks.0")).model
    assert masked_addresses(fewer) == ["blocks.0.attention.q.weight", "blocks.1.mlp.gate.weight"]
    turned = apply(masked, arrange([2, 1, 3, 0])).model
    assert masked_addresses(turned) == ["blocks.0.mlp.gate.weight", "blocks.1.attention.q.weight"]
    gone = apply(masked, remove("blocks.1.attention")).model
    assert masked_addresses(gone) == ["blocks.2.mlp.gate.weight"]
    narrow = apply(masked, keep_neurons(Anatomy.of(masked).blocks[2].mlp, range(40))).model
    (name,) = [n for n in zeros(narrow) if "mlp" in n]
    old = zeros(masked)
    assert torch.equal(zeros(narrow)[name], next(old[n] for n in old if "mlp" in n)[:40])


def test_two_masks_of_one_weight_are_one(tiny: Any) -> None:
    weight = Anatomy.of(tiny("tiny-llama")).part("blocks.0.mlp.up").weight
    address = "blocks.0.mlp.up.weight"
    both = mask(address, half(weight)) + mask(address, weight > 0)
    assert torch.equal(both.masks[address], half(weight) & (weight > 0))


def test_a_table_that_is_tied_stays_tied(tiny: Any) -> None:
    model = tiny("tiny-llama")
    table = Anatomy.of(model).outer["embed"].module.weight
    masked = apply(model, mask("embed.weight", half(table.detach()))).model
    assert masked.lm_head.weight is masked.model.embed_tokens.weight
    assert int((masked.lm_head.weight == 0).sum()) == table.numel() // 2


def test_what_does_not_fit_is_refused(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-llama")
    for address, keep, told in (
        ("blocks.0.mlp.up.weight", torch.ones(2, 2).bool(), r"\(2, 2\) is for .* has shape \(96"),
        ("blocks.9.mlp.up.weight", torch.ones(2).bool(), "not there"),
        ("blocks.0.mlp.sideways", torch.ones(2).bool(), "not there"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            apply(model, mask(address, keep))
    with pytest.raises(InvalidInputError, match="a mask holds truth values"):
        mask("embed.weight", torch.ones(2))
    plan = Plan.of(Anatomy.of(model), "by hand", some_masks(Anatomy.of(model)))
    plan.save(tmp_path / "plan")
    stored = json.loads((tmp_path / "plan/plan.json").read_text())
    stored["masks"]["blocks.0.mlp.up.weight"] = [2]
    (tmp_path / "plan/plan.json").write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match="holds no readable plan"):
        Plan.load(tmp_path / "plan")
