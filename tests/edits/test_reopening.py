"""The check after a save: it passes what came back, and sees what did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from edit_cases import CASES
from safetensors.torch import load_file, save_file

from helpers import edit
from modwright.anatomy import Anatomy
from modwright.core.errors import VerificationError
from modwright.edits.verify import check_reopens


@pytest.mark.contract("A13")
def test_a_checkpoint_is_reopened_and_compared(tiny: Any, tmp_path: Path) -> None:
    source = tiny("tiny-llama")
    applied = edit(source, CASES["several"].change(Anatomy.of(source)), check=False)
    applied.model.save_pretrained(tmp_path)
    seen = check_reopens(applied.model, tmp_path)
    assert (seen.model_class, seen.opened_with, seen.plain) == (
        "ModwrightLlamaForCausalLM",
        "AutoModelForCausalLM",
        False,
    )
    assert "bit-equal" in str(seen)

    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1e-3
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="computes something else"):
        check_reopens(applied.model, tmp_path)


def test_a_plain_checkpoint_is_reopened_without_modwright(tiny: Any, tmp_path: Path) -> None:
    source = tiny("tiny-bert", dtype=torch.bfloat16)
    applied = edit(source, CASES["half-ffn-everywhere"].change(Anatomy.of(source)), check=False)
    applied.model.save_pretrained(tmp_path)
    seen = check_reopens(applied.model, tmp_path)
    assert (seen.model_class, seen.plain) == ("BertModel", True)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(VerificationError, match="does not open in a new process"):
        check_reopens(applied.model, tmp_path)
