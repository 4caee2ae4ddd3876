"""What a stage of a report holds of speed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from toy_recurrent import ToyRecurrent, toys

from modwright.anatomy import Anatomy
from modwright.core.progress import SILENT
from modwright.edits import apply as apply_plan
from modwright.edits import remove
from modwright.edits.plan import Plan
from modwright.metrics.registry import Subject
from modwright.metrics.speed import is_same_model
from modwright.recipes.measure import measure_stage
from modwright.recipes.schema import Evaluate
from modwright.report import Report, Stage, summary_sentences
from modwright.surgery import apply, make_method

EVALUATE = Evaluate(
    perplexity=None,
    generate=None,
    speed={"prompt": 4, "new_tokens": 2, "repeats": 1, "max_seconds": 5},
    length=8,
)


def beside(model: Any, baseline: Any, first: Stage) -> Subject:
    return Subject(model, reference=Subject(baseline, found=first.measured))


class Counted:
    """How many forward passes a model made."""

    def __init__(self, model: Any) -> None:
        self.calls = 0
        model.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-bert"])
def test_fault_A18_an_unchanged_model_is_not_timed_and_not_faster(tiny: Any, name: str) -> None:
    model = tiny(name)
    first = measure_stage(Subject(model), EVALUATE, SILENT, name="before")
    method = make_method("llm_drop", {"target": "attention", "n": 0})
    applied = apply(model, method)
    assert is_same_model(model, applied.model)
    seen = Counted(applied.model)
    after = measure_stage(
        beside(applied.model, model, first),
        EVALUATE,
        SILENT,
        name="1 llm_drop",
        method="llm_drop",
    )
    assert seen.calls == 0 or name == "tiny-bert"
    assert after.measured["speed"]["unchanged"] is True
    said = [
        line for line in summary_sentences(Report("r", stages=[first, after])) if "peed" in line
    ]
    assert said == [
        "Speed: structure and weights are those of the baseline, so nothing was timed again."
    ]


def test_fault_A18_a_changed_model_carries_the_intervals_of_its_ratios(tiny: Any) -> None:
    model = tiny("tiny-llama")
    first = measure_stage(Subject(model), EVALUATE, SILENT, name="before")
    anatomy = Anatomy.of(model)
    plan = Plan.of(anatomy, "drop", remove(anatomy.blocks[0].attention))
    edited = apply(model, plan).model
    after = measure_stage(beside(edited, model, first), EVALUATE, SILENT, name="1 x", method="x")
    speed = after.measured["speed"]
    assert set(speed["ratios"]) == {"prefill", "decode"}
    for ratio in speed["ratios"].values():
        assert ratio["low"] <= ratio["median"] <= ratio["high"] and ratio["pairs"] >= 6
    assert "unchanged" not in speed


def test_models_differ_by_one_number(tiny: Any) -> None:
    one = tiny("tiny-llama")
    other = copy.deepcopy(one)
    assert is_same_model(one, other)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0].add_(1)
    assert not is_same_model(one, other)
    anatomy = Anatomy.of(one)
    edited = apply(one, Plan.of(anatomy, "drop", remove(anatomy.blocks[0].mlp))).model
    assert not is_same_model(one, edited)


def test_a_stage_tells_the_states_that_a_model_keeps_and_only_then(tiny: Any) -> None:
    source = tiny("tiny-llama")
    model = apply_plan(source, toys(Anatomy.of(source), (1,)), check=False).model
    plain = Evaluate(perplexity=None, generate=None, speed=None, length=8)
    stages = [measure_stage(Subject(m), plain, SILENT, name="x") for m in (source, model)]
    assert "state_bytes" not in stages[0].cost
    assert stages[1].cost["state_bytes"] == ToyRecurrent(48).state_bytes(torch.float32)
