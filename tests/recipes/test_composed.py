"""Recipes that compose their model: made of the recipe's seed, and refused by the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modwright.anatomy import Anatomy
from modwright.checkpoint import open as open_checkpoint
from modwright.core.errors import ModwrightError
from modwright.edits.compose import compose
from modwright.recipes import load_recipe
from modwright.recipes.composed import open_model
from modwright.recipes.load import parse_recipe, recipe_schema, resolved
from modwright.recipes.run import run

from .json_checks import faults
from .shared import NOTHING

STEPS: list[dict[str, Any]] = [{"method": "drop", "parts": "attention[0]"}]
MODEL: dict[str, Any] = {
    "compose": "tiny-llama",
    "num_hidden_layers": 3,
    "parts": {"mlp[1:]": {"part": "feed_forward", "activation": "relu", "gated": False}},
}


def recipe(**changed: Any) -> Any:
    return parse_recipe({"model": MODEL, "steps": STEPS, "evaluate": NOTHING, **changed})


def test_the_model_is_that_of_the_seed_and_the_dtype() -> None:
    parts: Any = {"mlp[1:]": ("feed_forward", {"activation": "relu", "gated": False})}
    expected = compose("tiny-llama", parts, num_hidden_layers=3, seed=7).state_dict()
    opened = open_model(recipe(seed=7))
    assert all(tensor.equal(expected[name]) for name, tensor in opened.model.state_dict().items())
    assert opened.name == "tiny-llama" and opened.source.path is None and opened.tokenizer is None
    assert open_model(recipe(dtype="bfloat16")).model.dtype is torch.bfloat16
    assert open_model(recipe(model="preset:tiny-gpt2")).name == "tiny-gpt2"


def test_it_is_edited_saved_and_opened_again(tmp_path: Path) -> None:
    asked = recipe()
    tree = resolved(asked)
    assert tree["model"] == MODEL and resolved(parse_recipe(tree)) == tree
    found = run(asked, tmp_path / "out", check=False)
    assert found.report.model["source"] == "tiny-llama composed with start values of seed 0"
    blocks = Anatomy.of(open_checkpoint(found.output).model).blocks
    assert [block.attention is None for block in blocks] == [True, False, False]
    assert [block.mlp.activation for block in blocks] == ["silu", "relu", "relu"]  # type: ignore[union-attr]


def test_the_schema_takes_it() -> None:
    schema = recipe_schema()
    tree = {"model": MODEL, "steps": STEPS}
    assert not list(faults(tree, schema, schema))
    assert not list(faults({**tree, "model": "preset:tiny-llama"}, schema, schema))
    for wrong in ({"parts": {}}, 3, {"compose": 3}, {"compose": "llama", "parts": {"mlp[*]": 3}}):
        assert list(faults({**tree, "model": wrong}, schema, schema))


@pytest.mark.parametrize(
    ("body", "line", "says"),
    [
        ("  composed: llama", 1, "model.compose: is missing.*did you mean 'compose'"),
        ("  compose: lama", 2, "model.compose: unknown base 'lama'.*'llama'"),
        ("  compose: [llama]", 2, "model.compose: must be text"),
        ("  compose: tiny-llama\n  hiden_size: 3", 3, "model.hiden_size: .*'hidden_size'"),
        ("  compose: tiny-llama\n  hidden_size: wide", 3, "model.hidden_size: tiny-llama"),
        ("  compose: tiny-llama\n  head: foo", 3, "model.head: unknown head 'foo'"),
        ("  compose: tiny-llama\n  parts: mlp", 3, "model.parts: must be a mapping"),
        ("  compose: tiny-llama\n  parts:\n    mlp[9]: feed_forward", 4, "there is no layer 9"),
        ("  compose: tiny-llama\n  parts:\n    mlp[0]: 3", 4, "must be {part: NAME"),
        ("  compose: tiny-llama\n  parts:\n    mlp[0]: {prt: x}", 4, "did you mean 'part'"),
        (
            "  compose: tiny-llama\n  parts:\n    mlp[0]:\n      part: feed_foward",
            5,
            "unknown component 'feed_foward'",
        ),
        (
            "  compose: tiny-llama\n  parts:\n    mlp[0]:\n      part: feed_forward\n      act: x",
            6,
            "unknown argument of feed_forward 'act'",
        ),
        (
            "  compose: tiny-llama\n  parts:\n    'mlp[*]': null\n    mlp[1]: null",
            3,
            "edited twice",
        ),
    ],
)
def test_mistakes_are_told_by_their_line(body: str, line: int, says: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"model:\n{body}\nsteps:\n  - {{method: drop, parts: 'attention[0]'}}\n")
    with pytest.raises(ModwrightError, match=says) as failure:
        load_recipe(file)
    assert str(failure.value).startswith(f"r.yaml line {line},") and "\n" not in str(failure.value)
