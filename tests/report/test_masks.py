"""A step that wrote numbers and removed nothing is told as such: masked, or changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from modwright.core.registry import registries_restored
from modwright.edits import Change, mask
from modwright.recipes.load import parse_recipe
from modwright.recipes.run import run
from modwright.report import model_card, render_html, render_markdown
from modwright.report.summary import summary_sentences
from modwright.surgery import Requirements, WithoutData, register_method


@pytest.fixture
def methods() -> Iterator[None]:
    with registries_restored():

        @register_method("silencing", requires=Requirements())
        @dataclass(frozen=True)
        class Mask(WithoutData):
            """Silences the smaller half of a weight, or doubles it.

            Attributes:
                doubled: in place of the mask.
            """

            doubled: bool = False

            def title(self) -> str:
                return "write one weight"

            def decide(self, anatomy: Any, progress: Any) -> Any:
                weight = anatomy.part("blocks.1.mlp.up").weight
                address = "blocks.1.mlp.up.weight"
                reasons = {"scores": {"mlp": [0.1, 0.2]}, "masked": {"mlp": [1]}}
                if self.doubled:
                    return Change(tensors={address: 2 * weight}), {}, ()
                return mask(address, weight.abs() > weight.abs().median()), reasons, ()

        yield


@pytest.mark.parametrize("doubled", [False, True])
def test_a_step_without_edits_removes_nothing(
    methods: None, doubled: bool, wordy_model: Path, tmp_path: Path
) -> None:
    nothing = {"perplexity": None, "generation": None, "speed": None}
    step = {"method": "silencing", "options": {"doubled": doubled}}
    tree = {"model": str(wordy_model), "threads": 1, "steps": [step], "evaluate": nothing}
    result = run(parse_recipe(tree), tmp_path / "out", log=lambda line: None)
    stage = result.report.after
    assert stage.plain and stage.accounting["removed"] == 0
    assert stage.accounting.get("masked", 0) == (not doubled)
    word, other = ("changed", "masked") if doubled else ("masked", "changed")
    report = result.report
    (line,) = [one for one in summary_sentences(report) if f"{stage.name} {word}" in one]
    assert "1 tensor" in line
    for page in (render_html(report), render_markdown(report), model_card(report)):
        assert f"{stage.name} {word}" in page and f"{stage.name} {other}" not in page
    if not doubled:
        markdown = render_markdown(report)
        assert "numbers are masked: zero, and stored and computed as before" in markdown
        assert "1 masked" in markdown and "; masked: 1" in render_html(report)
        assert "removed: " not in render_html(report)
        assert result.report.before.cost["parameters"] == stage.cost["parameters"]


def test_the_plan_says_where() -> None:
    import modwright

    anatomy = modwright.open("preset:tiny-llama").anatomy
    keep = torch.ones(96, 48).bool()
    keep[:24] = False
    weight = anatomy.part("blocks.0.mlp.down").weight
    change = mask("blocks.0.mlp.up.weight", keep) + Change(
        tensors={"blocks.0.mlp.down.weight": weight * 2}
    )
    plan = modwright.Plan.of(anatomy, "by hand", change)
    told = [("blocks.0.mlp.down.weight", "changed"), ("blocks.0.mlp.up.weight", "masked, 25.0 %")]
    assert plan.summary() == told
    assert repr(plan) == "Plan(by hand: 0 edits, 1 new tensors, 1 masks)"
