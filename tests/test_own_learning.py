"""A dataset, a metric and an objective that no line of the package knows, in every place."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from modwright.cli.entry import run_command
from modwright.core.plugins import add_plugin, plugins_restored
from modwright.core.registry import registries_restored

NAMES = ("countdown", "surety", "next_token_times")
RECIPE = {
    "model": "preset:byte-llama",
    "plugins": ["mine.py"],
    "calibration": {"data": {"text": "countdown", "to": 40}, "windows": 2, "length": 16},
    "steps": [
        {"method": "llm_drop", "target": "attention", "n": 1},
        {
            "train": {
                "objective": {"next_token_times": {"weight": 3.0}},
                "data": {"text": "countdown", "to": 50, "length": 32},
                "max_steps": 2,
                "per_device_train_batch_size": 2,
                "learning_rate": 0.001,
            }
        },
    ],
    "evaluate": {
        "perplexity": {"data": {"text": "countdown"}, "windows": 2, "length": 16},
        "generation": None,
        "speed": None,
        "surety": {"tokens": 6},
    },
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(Path(__file__).parent / "users_learning.py", tmp_path / "mine.py")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_they_stand_in_recipe_report_and_card(place: Path) -> None:
    with plugins_restored(), registries_restored():
        assert run_command(["run", "recipe.yaml", "-o", "out"]) == 0
    told = json.loads((place / "out" / "report.json").read_text())
    before, _, after = told["stages"]
    assert before["measured"]["surety"]["value"] > 0
    assert after["measured"]["surety"]["value"] != before["measured"]["surety"]["value"]
    assert after["options"]["objective"] == {"next_token_times": {"weight": 3.0}}
    for page in ("report.html", "report.md", "README.md"):
        text = (place / "out" / page).read_text()
        assert "Entropy of the next token" in text, page
    assert "countdown" in (place / "out" / "report.md").read_text()


def test_they_stand_on_the_command_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with plugins_restored(), registries_restored():
        arguments = ["--plugin", "mine.py", "eval", "preset:byte-llama", "--json"]
        asked = ["--text", "countdown", "--windows", "2", "--length", "16"]
        assert run_command([*arguments, *asked, "--metric", "surety: {tokens: 6}"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["surety"]["value"] > 0 and told["perplexity"]["value"] > 1
        assert run_command(["--plugin", "mine.py", "schema"]) == 0
        schema = capsys.readouterr().out
        assert all(name in schema for name in NAMES)


def _tables() -> ModuleType:
    file = Path(__file__).parents[1] / "docs" / "hooks" / "tables.py"
    spec = importlib.util.spec_from_file_location("tables_of_docs", file)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_they_stand_in_the_tables_of_the_docs(place: Path) -> None:
    tables = _tables()
    with plugins_restored(), registries_restored():
        add_plugin("mine.py")
        pages = tables._metrics() + tables._training_keys()
    for name in (*NAMES, "CC0-1.0", "the loss is multiplied by"):
        assert name in pages
    assert not any(name in tables._metrics() + tables._training_keys() for name in NAMES)
