"""What a polynomial activation does not allow is refused in one line, and exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import modwright
from modwright.surgery import make_method

Command = Callable[[str], Any]

DATA = "--data words.txt --windows 4 --length 32"


@pytest.fixture(scope="module")
def edited(wordy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with PolyNorm in block 1."""
    out = tmp_path_factory.mktemp("edited") / "poly"
    opened = modwright.open(wordy_model)
    result = modwright.apply(opened.model, make_method("replace_activation", blocks="1"))
    modwright.save(result.model, out, tokenizer=opened.tokenizer)
    return out


@pytest.fixture
def stocked(place: Path, wordy_model: Path, wordy_text: Path, edited: Path) -> Path:
    """A working directory with words.txt, model/, and poly/, the edited one."""
    (place / "words.txt").write_bytes(wordy_text.read_bytes())
    (place / "model").symlink_to(wordy_model)
    shutil.copytree(edited, place / "poly")
    return place


def refused(command: Command, line: str, *words: str) -> None:
    """In one line that holds the words; nothing is written."""
    done = command(line)
    assert done.code == 2 and done.out == "", done
    *narrated, last = done.err.splitlines()
    assert last.startswith("modwright: ")
    assert not any(one.startswith(("modwright: ", "Traceback")) for one in narrated), done.err
    for word in words:
        assert word in last, last
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "method",
    [
        f"modegpt poly {DATA}",
        f"modegpt poly --pairs mlp {DATA}",
        "emoe poly --layers all --num-experts 4 --top-k 2",
        "emoe poly --layers 1 --num-experts 4 --top-k 2 --cluster contiguous",
    ],
)
def test_what_takes_neurons_apart_is_refused_where_they_are_normalized_together(
    method: str, stocked: Path, command: Command
) -> None:
    line = f"edit {method} -o out --no-eval"
    refused(command, line, "blocks.1.mlp", "poly_norm", "normalizes over")


def test_a_recipe_that_narrows_after_it_is_refused(stocked: Path, command: Command) -> None:
    Path("recipe.yaml").write_text(
        "model: model\n"
        "calibration: {data: words.txt, windows: 4, length: 32}\n"
        "steps:\n"
        "  - {method: replace_activation}\n"
        "  - {method: emoe, layers: all, num_experts: 4, top_k: 2}\n"
        "evaluate: {perplexity: {data: words.txt, windows: 2, length: 24}, speed: null}\n"
    )
    refused(command, "run recipe.yaml -o out", "blocks.0.mlp", "'poly_norm' normalizes over")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--order 0", "whole number from 1, not 0"),
        ("--order two", "--order"),
        ("--eps -1e-6", "eps must not be negative, not -1e-06"),
        ("--activation poly_nrm", "did you mean 'poly_norm'?"),
        ("--activation relu --order 2", "ReLU() got an unexpected keyword argument 'order'"),
        ("--activation relu --fit", "relu has no coefficients to fit"),
        ("--activation poly_relu --eps 1e-6", "eps"),
        ("--blocks 9", "9"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: str, words: str, stocked: Path, command: Command
) -> None:
    refused(command, f"edit replace_activation model -o out --no-eval {options}", words)


@pytest.mark.parametrize("changed", ["config", "tensor"])
def test_a_checkpoint_whose_coefficients_are_not_of_its_order_is_refused(
    changed: str, stocked: Path, command: Command
) -> None:
    config, weights = Path("poly/config.json"), Path("poly/model.safetensors")
    if changed == "config":
        told = json.loads(config.read_text())
        (edit,) = told["edits"]
        edit["kwargs"]["activation_kwargs"] = {"order": 2}
        config.write_text(json.dumps(told))
    else:
        tensors = load_file(weights)
        (name,) = (name for name in tensors if name.endswith("mlp.act.weight"))
        save_file({**tensors, name: torch.ones(4)}, weights, metadata={"format": "pt"})
    refused(command, "inspect poly", "model.layers.1.mlp.act.weight", "(3,)")
