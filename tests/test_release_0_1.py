"""What version 0.1 wrote still loads: checkpoints, plans, recipes and reports.

``tests/data/release_0_1`` was written by that version. Each checkpoint lies beside the input and
the output that it had there, in float32 from weights stored in float16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers import edit
from modwright.anatomy import Anatomy
from modwright.edits import Plan, apply
from modwright.recipes.load import load_recipe
from modwright.recipes.training_schema import load_training
from modwright.report.data import Report

WRITTEN = Path(__file__).parent / "data" / "release_0_1"
CHECKPOINTS = sorted(path.parent.name for path in WRITTEN.glob("*/config.json"))


def opened(name: str) -> Any:
    """As stock transformers opens it after ``import modwright``."""
    import transformers

    config = json.loads((WRITTEN / name / "config.json").read_text())
    cls = config["architectures"][0].removeprefix("Modwright")
    auto = next(
        auto
        for head, auto in [
            ("CausalLM", "AutoModelForCausalLM"),
            ("LMHeadModel", "AutoModelForCausalLM"),
            ("ImageClassification", "AutoModelForImageClassification"),
            ("ImageSuperResolution", "AutoModelForImageToImage"),
            ("ImageToImage", "AutoModelForImageToImage"),
            ("Model", "AutoModel"),
        ]
        if cls.endswith(head)
    )
    return getattr(transformers, auto).from_pretrained(WRITTEN / name, dtype=torch.float32)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_load_and_compute_the_same(name: str) -> None:
    stored = load_file(WRITTEN / name / "expected.safetensors")
    inputs = {k.removeprefix("input."): v for k, v in stored.items() if k.startswith("input.")}
    (key,) = [key for key in stored if key.startswith("output.")]
    model = opened(name).eval()
    with torch.no_grad():
        output = model(**inputs)[key.removeprefix("output.")]
    torch.testing.assert_close(output, stored[key], atol=2e-5, rtol=2e-5)


def test_plans_load_and_apply(tiny: Any) -> None:
    plan = Plan.load(WRITTEN / "plan-llm_drop")
    source = tiny.copy("tiny-llama")
    assert plan.method == "llm_drop"
    result = apply(source, plan, check=False).model
    assert sum(block.attention is None for block in Anatomy.of(result).blocks) == 1
    with pytest.raises(Exception, match=r"fit|made for"):
        apply(edit(source, _smaller(source), check=False).model, plan)


def _smaller(model: Any) -> Any:
    from modwright.edits import remove

    return remove(Anatomy.of(model).blocks[0].mlp)


@pytest.mark.parametrize("name", ["demo.yaml", "edit-resolved.yaml"])
def test_recipes_load(name: str) -> None:
    assert load_recipe(WRITTEN / "recipes" / name).steps


@pytest.mark.parametrize("name", ["train.yaml", "train-small.yaml", "train-resolved.yaml"])
def test_recipes_of_trainings_load(name: str) -> None:
    stored = yaml.safe_load((WRITTEN / "recipes" / name).read_text())
    assert (
        load_training(WRITTEN / "recipes" / name).settings.batch_size
        == (stored["settings"]["batch_size"])
    )


def test_reports_load() -> None:
    stored = json.loads((WRITTEN / "report.json").read_text())
    report = Report.from_dict(stored)
    assert report.title == stored["title"]
