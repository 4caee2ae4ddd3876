"""Finished models in one table with one figure; what is compared was measured alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modwright.core.errors import InvalidInputError
from modwright.metrics.registry import make_metric
from modwright.recipes.compare import compare
from modwright.recipes.load import parse_recipe
from modwright.recipes.run import run
from wordy import write_text


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two results of recipes; do not change them."""
    place = tmp_path_factory.mktemp("results")
    text = str(write_text(place / "words.txt", 400))
    for name, parts in {"a": "attention[1]", "b": "mlp[1]; mlp[2]"}.items():
        tree: dict[str, Any] = {
            "model": "preset:byte-llama",
            "threads": 1,
            "steps": [{"method": "drop", "parts": parts}],
            "evaluate": {
                "perplexity": {"data": text, "windows": 5, "length": 32},
                "generation": None,
                "speed": {"prompt": 4, "new_tokens": 2, "repeats": 1, "max_seconds": 0},
            },
        }
        run(parse_recipe(tree), place / name, check=False)
    return place


def test_reports_are_read_and_the_others_are_measured_as_they_say(results: Path) -> None:
    heard: list[str] = []
    models = [str(results / "a"), str(results / "b"), "preset:byte-llama"]
    found = compare(models, "preset:byte-llama", log=heard.append)
    assert [row.name for row in found.rows] == ["preset:byte-llama", "a", "b"]
    assert f"{models[0]}: read from its report" in heard
    assert "preset:byte-llama: measured now" in heard
    from modwright.report import read_report

    reports = [read_report(Path(model)) for model in models[:2]]
    for row, report in zip(found.rows[1:], reports):
        assert row.models[0].stage == report.after
    own, stored = found.baseline.models[0].stage, reports[0].before
    assert own.measured["perplexity"] == stored.measured["perplexity"]
    assert own.cost == stored.cost and "speed" not in own.measured
    names = [column.name for column in found.columns]
    assert names == ["parameters", "perplexity", "second_text", "prefill_macs", "memory_bytes"]
    changes = [row.change(found.baseline, found.columns[0]) for row in found.rows]
    assert changes[0] == "" and all(change.startswith("−") for change in changes[1:])


def test_metrics_that_are_asked_for_are_measured_of_all(results: Path) -> None:
    text = str(results / "words.txt")
    options = {"data": text, "windows": 2, "length": 16}
    metrics = [make_metric(name, options) for name in ("perplexity", "divergence")]
    heard: list[str] = []
    found = compare([str(results / "a"), "preset:byte-llama"], None, metrics, log=heard.append)
    assert sum(line.endswith(": measured now") for line in heard) == 2
    kinds = [set(row.models[0].stage.measured) for row in found.rows]
    assert kinds == [{"perplexity"}, {"perplexity", "divergence"}]
    assert found.rows[1].models[0].stage.measured["divergence"]["kl"] > 0


def test_what_was_measured_differently_is_not_compared(results: Path, tmp_path: Path) -> None:
    tree: dict[str, Any] = {
        "model": "preset:byte-llama",
        "steps": [{"method": "drop", "parts": "attention[0]"}],
        "evaluate": {
            "perplexity": {"data": str(results / "words.txt"), "windows": 3, "length": 32},
            "generation": None,
            "speed": None,
        },
    }
    run(parse_recipe(tree), tmp_path / "c", check=False)
    found = compare([str(results / "a"), str(tmp_path / "c")])
    column = next(one for one in found.columns if one.name == "perplexity")
    assert found.rows[1].change(found.baseline, column) == ""
    for name, said in zip(("perplexity", "second_text"), found.differently(), strict=True):
        assert said.startswith(f"{name} was measured differently") and said.endswith(": c.")


@pytest.mark.parametrize(
    ("models", "baseline", "says"),
    [
        (["preset:byte-llama"], None, "at least two models"),
        (["a", "b"], "c", "--baseline 'c' is none of a, b"),
        (["a", "b", "a"], None, "'a' stands there twice"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    models: list[str], baseline: str | None, says: str
) -> None:
    with pytest.raises(InvalidInputError, match=says):
        compare(models, baseline)
