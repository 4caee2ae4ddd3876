"""MatFormer's surgery: nesting a model, choosing its widths, cutting smaller models out of it."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import modwright
from modwright.checkpoint.saving import save
from modwright.core.errors import InvalidInputError
from modwright.edits.granularity import (
    granularity,
    mix_and_match,
    nested_parts,
    set_granularity,
    widths_of,
)
from modwright.surgery.nest import Extract, extract

IDS = torch.arange(5, 25).view(2, -1)
PRESETS = ("tiny-llama", "tiny-gpt2", "tiny-gpt-neox")
MIXED = ["S", "S", "M", "M"]


@torch.no_grad()
def logits(model: Any) -> Tensor:
    out: Tensor = model(IDS).logits
    return out


def nested(model: Any) -> Any:
    return modwright.apply(model, "nest", check=False).model


@pytest.mark.parametrize("which", PRESETS)
def test_a_model_that_is_cut_out_computes_the_same_bits(tiny: Any, which: str) -> None:
    source = tiny(which)
    whole = nested(source)
    assert torch.equal(logits(whole), logits(source))
    for widths in ("S", MIXED):
        with granularity(whole, widths):
            wanted = logits(whole)
        assert not torch.equal(wanted, logits(source))
        for share in (False, True):
            small = extract(whole, widths, share=share)
            assert torch.equal(logits(small), wanted)
            assert (type(small) is type(source)) == (widths == "S")
    assert torch.equal(logits(whole), logits(source))
    plan = modwright.plan(whole, Extract(", ".join(MIXED)))
    assert plan.notes == ("Layers differ in width (Mix'n'Match), so the result is not plain.",)


def test_widths_are_kept_in_the_file_and_can_be_set_again(tiny: Any, tmp_path: Path) -> None:
    source = tiny("tiny-llama")
    whole = nested(source)
    save(whole, tmp_path / "full")
    assert torch.equal(
        logits(LlamaForCausalLM.from_pretrained(tmp_path / "full").eval()), logits(source)
    )
    set_granularity(whole, [12, "S", 40, "L"])
    wanted = logits(whole)
    with granularity(whole, "S"):
        save(whole, tmp_path / "mixed")
    again = modwright.open(tmp_path / "mixed").model
    assert widths_of(again) == [12, 12, 40, 48] and torch.equal(logits(again), wanted)
    with pytest.raises(Exception, match="intermediate_size"):
        LlamaForCausalLM.from_pretrained(tmp_path / "mixed")
    assert set_granularity(again, "XL") == [96] * 4
    assert torch.equal(logits(again), logits(source))


def test_shared_drafts_follow_the_model_and_their_files_are_copies(
    tiny: Any, tmp_path: Path
) -> None:
    whole = nested(copy.deepcopy(tiny("tiny-llama")))
    draft = extract(whole, "S", share=True)
    save(draft, tmp_path / "draft")
    before = logits(draft)
    with torch.no_grad():
        nested_parts(whole)[0].module.layer("down").weight.mul_(3)
        assert not torch.equal(logits(draft), before)
    opened = modwright.open(tmp_path / "draft").model
    assert type(opened) is LlamaForCausalLM and torch.equal(logits(opened), before)
    given = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    with granularity(whole, "S"):
        assert torch.equal(whole.generate(IDS, **given), draft.generate(IDS, **given))


def test_parameters_are_those_of_the_formula(tiny: Any) -> None:
    for which, gated in (("tiny-llama", True), ("tiny-gpt2", False)):
        whole, draw = nested(tiny(which)), random.Random(0)
        shape = nested_parts(whole)[0].module.shape
        d, full = shape.hidden_size, shape.intermediate_size
        for _ in range(20):
            widths = [draw.choice(shape.widths) for _ in range(4)]
            parts = zip(nested_parts(whole), widths)
            found = sum(part.parameters_at(width) for part, width in parts)
            own = 3 * d * sum(widths) if gated else (2 * d + 1) * sum(widths) + 4 * d
            assert found == own
        small = extract(whole, widths)
        gone = whole.num_parameters() - small.num_parameters()
        assert gone == (3 * d if gated else 2 * d + 1) * (4 * full - sum(widths))


def test_the_dearest_mixture_that_a_budget_pays_for_is_taken(tiny: Any) -> None:
    for budget in range(48, 420, 7):
        found = mix_and_match([12, 24, 48, 96], 4, budget)
        assert sum(found) <= budget and found == sorted(found)
        assert len(set(found)) <= 2
        if len(set(found)) == 2:
            assert sorted(set(found)) in ([12, 24], [24, 48], [48, 96])
        others = [
            few * low + (4 - few) * high
            for low, high in ((12, 24), (24, 48), (48, 96))
            for few in range(5)
        ]
        assert sum(found) == max(one for one in others if one <= budget)
    whole = nested(tiny("tiny-llama"))
    budget = whole.num_parameters() - 3 * 48 * 200
    small = modwright.apply(whole, Extract(parameters=budget), check=False)
    assert not small.plain and budget - 3 * 48 * 48 < small.model.num_parameters() <= budget


def test_what_cannot_be_is_refused_in_one_line(tiny: Any) -> None:
    source = copy.deepcopy(tiny("tiny-llama"))
    whole = nested(source)
    for widths, why in (
        ([12, 12], "2 widths for 4"),
        (0, "lies in 1 to 96"),
        (97, "lies in 1 to 96"),
        ("XXL", "unknown width"),
    ):
        with pytest.raises(InvalidInputError, match=why):
            set_granularity(whole, widths)
        with pytest.raises(InvalidInputError, match=why), granularity(whole, widths):
            pass
    assert widths_of(whole) == [96] * 4
    with pytest.raises(InvalidInputError, match="no nested MLP"):
        extract(source, "S")
    with pytest.raises(InvalidInputError, match="below the smallest model"):
        modwright.plan(whole, Extract(parameters=10))
    with pytest.raises(InvalidInputError, match="not both"):
        Extract("S", parameters=10)
    with pytest.raises(InvalidInputError, match="increase"):
        mix_and_match([24, 12], 2, 100)
    first, second = (part.module for part in nested_parts(whole)[:2])
    second.up_proj.weight = first.up_proj.weight
    with pytest.raises(InvalidInputError, match="shares its weights with another layer"):
        extract(whole, "S")
    with pytest.raises(InvalidInputError, match="lie outside its module"):
        modwright.apply(tiny("tiny-bert"), "nest")
