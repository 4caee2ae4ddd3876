"""Depth edits of the user's own choice: dropping what a selector names, and reordering blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import edit, outputs
from modwright.anatomy import Anatomy
from modwright.cli.entry import run_command, spelled_out
from modwright.core.errors import InvalidInputError
from modwright.edits import Change, remove
from modwright.surgery import apply, make_method, plan


def test_drop_is_removal_by_hand(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    blocks = Anatomy.of(model).blocks
    ours = apply(model, make_method("drop", {"parts": "attention[0]; mlp[2]; block[3]"}))
    theirs = edit(
        model, sum((remove(p) for p in (blocks[0].attention, blocks[2].mlp, blocks[3])), Change())
    )
    assert torch.equal(outputs(ours.model), outputs(theirs.model))
    assert ours.tensor_diff == theirs.tensor_diff


def test_a_plan_says_who_chose(tiny: Any) -> None:
    found = plan(tiny("tiny-llama"), make_method("drop", {"parts": "block[1:3]"}))
    assert found.reasons == {"removed": ["blocks.1", "blocks.2"], "chosen by": "the user"}


@pytest.mark.contract("A1")
@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ("block[*]", "all blocks would go; at least one must stay"),
        ("block[1]; mlp[1]", "blocks.1.mlp is edited in a plan that removes blocks.1"),
        ("mlp[7]", "there is no layer 7"),
    ],
)
def test_drop_refuses_when_it_plans(tiny: Any, parts: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        plan(tiny("tiny-llama"), make_method("drop", {"parts": parts}))


def test_blocks_are_repeated_and_left_out(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    method = make_method("arrange", {"blocks": "0:2, 1, 0"})
    found = plan(model, method)
    assert found.reasons == {"order": [0, 1, 1, 0], "repeated": [0, 1], "left_out": [2, 3]}
    assert "the function is not kept" in found.notes[0]
    grown = apply(model, found)
    low, high = method.parameter_bounds(Anatomy.of(model))
    gone = Anatomy.of(model).num_parameters - Anatomy.of(grown.model).num_parameters
    assert low == high == gone
    assert grown.verification is not None and grown.verification.ok


def test_the_same_order_is_refused(tiny: Any) -> None:
    with pytest.raises(InvalidInputError, match="is the order that the blocks have already"):
        plan(tiny("tiny-llama"), make_method("arrange", {"blocks": "*"}))


def test_the_short_command_is_the_long_one() -> None:
    assert spelled_out(["edit", "m", "--drop=mlp[2]"]) == ["edit", "drop", "m", "--parts=mlp[2]"]
    assert spelled_out(["inspect", "m", "--drop", "x"]) == ["inspect", "m", "--drop", "x"]
    assert spelled_out([]) == []


def test_from_the_command_line(
    wordy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["edit", str(wordy_model), "-o", str(tmp_path / "out"), "--no-eval", "--drop"]
    assert run_command([*words, "attention[0]; block[2:4]"]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    assert [edit["path"] for edit in config["edits"]] == ["blocks.0.attention"]
    assert run_command([*words, "attention[9]", "--force"]) == 2
    assert "there is no layer 9; there are 0 to 3" in capsys.readouterr().err
