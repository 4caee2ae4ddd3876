"""A healing step in two processes: the weights and the curve are those of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch import Ended, launch
from modwright.recipes.composed import open_model
from modwright.recipes.load import load_recipe
from modwright.recipes.run import run
from modwright.report import read_report
from recipes.shared import NOTHING, weights
from wordy import write_text

pytestmark = pytest.mark.slow

WORKER = str(Path(__file__).with_name("heal_worker.py"))
CUT = {"method": "drop", "parts": "attention[1]"}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
LLAMA = {"compose": "llama", **SIZES, **HEADS, "tokenizer": "bytes"}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a recipe that cuts and heals, with keys of the healing in place of its own."""
    text = write_text(tmp_path / "words.txt", 400)
    other = write_text(tmp_path / "other.txt", 300, seed=5)

    def made(**more: Any) -> Path:
        sizes = {"length": 32, "batch_tokens": 128, "held_out_windows": 2, "held_out_length": 32}
        texts = {"data": {"text": str(text)}, "held_out": {"other": {"text": str(other)}}}
        keys = {"tokens": 512, "learning_rate": 3e-4, **sizes, **texts, **more}
        tree = {"model": LLAMA, "threads": 1, "evaluate": NOTHING}
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({**tree, "steps": [CUT, {"heal": keys}]}))
        return file

    return made


def together(file: Path, program: Sequence[str] = ("-m", "modwright")) -> list[Ended]:
    return launch([*program, "run", file.name, "-o", "out", "--no-check"], cwd=file.parent)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"rows_at_once": 1, "own_loss": 0.02, "control": True},
        {"learns": {"lora": {"r": 2}}, "learning_rate": 3e-3},
        {"rows_at_once": 1, "fsdp": True},
    ],
    ids=["full", "in passes with a control", "adapters", "sharded"],
)
def test_two_processes_heal_what_one_heals(
    more: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    file = write(**more)
    main, other = together(file)
    assert main.code == 0, main.err
    assert (other.code, other.out) == (0, "")
    alone = run(load_recipe(file), tmp_path / "alone", check=False).output
    a, b = weights(tmp_path / "out"), weights(alone)
    assert a.keys() == b.keys()
    far = {name: float((value - b[name]).abs().max()) for name, value in a.items()}
    assert max(far.values()) < 1e-5, far
    before = open_model(load_recipe(file)).model.state_dict()
    moved = [float((b[n] - before[n]).abs().max()) for n in b if n in before]
    assert max(moved) > 2e-4
    told = [read_report(place).stages[2].reasons for place in (tmp_path / "out", alone)]
    assert told[0]["steps"] == told[1]["steps"] == 4
    assert told[0]["best_step"] == told[1]["best_step"] > 0
    curves = [one["on other"] for one in told]
    assert list(curves[0]) == list(curves[1]) and "512 tokens" in curves[0]
    for row, values in curves[0].items():
        for name, value in values.items():
            assert value == pytest.approx(curves[1][row][name], rel=1e-3, abs=1e-6), (row, name)


def test_minutes_are_the_same_steps_in_all_processes(write: Write, tmp_path: Path) -> None:
    # Measuring takes the main process 1 s, ten steps 1 s, all before them 5 s.
    main, other = together(write(tokens=None, minutes=0.2), [WORKER])
    assert main.code == 0, main.err
    assert (other.code, other.out) == (0, "")
    stage = read_report(tmp_path / "out").stages[2]
    assert stage.options["arguments"]["max_steps"] == stage.reasons["steps"] == 10


def test_a_step_that_cannot_be_shared_is_refused_before_any_work(
    write: Write, tmp_path: Path
) -> None:
    main, other = together(write(batch_tokens=96))
    assert main.code == other.code == 2
    assert main.err.splitlines()[-1].endswith(
        "heal: 2 processes cannot share the 3 windows of a step; give batch_tokens a multiple of "
        "2 x 32"
    )
    assert (other.out, other.err) == ("", "")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.work").exists()
