"""A study leaves one table, whether it was stopped, run by several processes, or added to."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from modwright.core.digest import sha256_of
from modwright.core.errors import CheckpointError, InvalidInputError, ModwrightError
from modwright.core.reading import read_json
from modwright.recipes.study import load_study, parse_study
from modwright.recipes.study_run import StudyResult, run_study
from modwright.training.trainer import ObjectiveTrainer
from warm_processes import start
from wordy import write_text

NOTHING = {"generation": None, "speed": None}
Tree = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    text = str(write_text(tmp_path_factory.mktemp("text") / "words.txt", 400))
    arms: dict[str, Any] = {
        "named": {"attention": None, "mlp": {"steps.0.parts": "mlp[1]"}},
        "swept": {"steps.0.n": [1, 2]},
    }
    steps = {
        "named": {"method": "drop", "parts": "attention[1]"},
        "swept": {"method": "llm_drop", "calibration": {"data": text, "windows": 2, "length": 16}},
    }

    def make(name: str) -> dict[str, Any]:
        evaluate = {"perplexity": {"data": text, "windows": 5, "length": 32}, **NOTHING}
        recipe = {"model": "preset:byte-llama", "steps": [steps[name]], "evaluate": evaluate}
        return {"recipe": recipe, "arms": dict(arms[name]), "seeds": [0, 1], "title": name}

    return make


@pytest.fixture(scope="module")
def unbroken(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StudyResult]:
    """Both studies, run to their end by this process; do not change their folders."""
    place = tmp_path_factory.mktemp("unbroken")
    return {name: run_study(parse_study(tree(name)), place / name) for name in ("named", "swept")}


def table(place: Path) -> Any:
    """What report.json holds, apart from what the clock says."""
    found = read_json(place / "report.json")
    for row in found["rows"]:
        row["numbers"].pop("seconds")
        for model in row["models"]:
            model.pop("seconds")
            model["stage"].pop("seconds")
    del found["reproduce"]
    return found


def weights(place: Path) -> dict[str, str]:
    files = place.glob("cells/*/seed-?/model.safetensors")
    return {str(f.relative_to(place)): sha256_of(f.read_bytes()) for f in files}


def test_a_study_leaves_a_report_and_a_checkpoint_of_every_cell(
    unbroken: dict[str, StudyResult],
) -> None:
    done = unbroken["named"]
    names = {file.name for file in done.output.iterdir()}
    reports = {f"report.{kind}" for kind in ("json", "md", "html")}
    assert names == {"cells", "study.yaml", "figure.svg", "figure.png", *reports}
    assert (done.output / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert len(weights(done.output)) == done.ran == 4
    first = table(done.output)["rows"][0]
    assert first["name"] == "attention" and len(first["models"]) == 2
    stored = read_json(done.output / "cells/attention/seed-0/report.json")["stages"][1]
    assert first["models"][0]["stage"]["measured"] == stored["measured"]
    assert first["numbers"]["parameters"]["mean"] == stored["cost"]["parameters"]
    names = [column.name for column in done.comparison.columns]
    quality = ["perplexity", "second_text"]
    assert names == ["parameters", *quality, "prefill_macs", "memory_bytes", "seconds"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["named", "swept"])
def test_killed_and_started_again_it_gives_the_same_table(
    name: str, tree: Tree, unbroken: dict[str, StudyResult], tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(tree(name)))
    words = ["-m", "modwright.cli", "study", "s.yaml", "-o", "out"]
    process = start(words, {**os.environ, "OMP_NUM_THREADS": "1"}, tmp_path, library=True)
    out, until = tmp_path / "out", time.monotonic() + 600
    while not list(out.glob("cells/*/seed-?/report.json")) and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    stand = weights(out)
    assert 0 < len(stand) < 4 and not (out / "report.json").exists()
    times = {place: (out / place).stat().st_mtime_ns for place in stand}
    done = run_study(load_study(tmp_path / "s.yaml"), out)
    assert done.ran == 4 - len(stand)
    assert table(out) == table(unbroken[name].output)
    assert weights(out) == weights(unbroken[name].output)
    assert {place: (out / place).stat().st_mtime_ns for place in stand} == times
    assert run_study(load_study(tmp_path / "s.yaml"), out).ran == 0


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(
    tree: Tree, unbroken: dict[str, StudyResult], tmp_path: Path
) -> None:
    heard: list[str] = []
    done = run_study(
        parse_study({**tree("swept"), "workers": 2}), tmp_path / "out", log=heard.append
    )
    assert done.ran == 4 and sorted(heard)[0] == "done: n=1, seed 0"
    assert table(done.output) == table(unbroken["swept"].output)
    assert weights(done.output) == weights(unbroken["swept"].output)


def test_a_cell_that_is_refused_is_named(tree: Tree, tmp_path: Path) -> None:
    given = tree("named")
    given["arms"]["gone"] = {"steps.0.parts": "mlp[7]"}
    with pytest.raises(ModwrightError, match=r"^gone, seed 0: .*mlp\[7\]") as refused:
        run_study(parse_study(given), tmp_path / "out")
    assert refused.value.exit_code == 2 and "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "report.json").exists()


def test_arms_and_seeds_that_are_added_are_run_beside_those_that_stand(
    tree: Tree, unbroken: dict[str, StudyResult], tmp_path: Path
) -> None:
    out, given = tmp_path / "out", tree("named")
    shutil.copytree(unbroken["named"].output, out)
    given["arms"]["both"] = {"steps.0.parts": "attention[1]; mlp[1]"}
    done = run_study(parse_study({**given, "seeds": [0]}), out)
    assert done.ran == 1 and [row.name for row in done.comparison.rows][-1] == "both"
    given["arms"]["both"] = {"steps.0.parts": "attention[0]; mlp[1]"}
    before = weights(out)
    with pytest.raises(CheckpointError, match="something else than the result"):
        run_study(parse_study(given), out)
    assert weights(out) == before
    assert run_study(parse_study({**given, "seeds": [0]}), out, force=True).ran == 3


def test_a_folder_that_holds_no_study_is_left_alone(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(CheckpointError, match="something else than a study"):
            run_study(parse_study(tree("named")), tmp_path, force=force)
    with pytest.raises(CheckpointError, match="it is a file"):
        run_study(parse_study(tree("named")), tmp_path / "mine.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_launcher_is_refused(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidInputError, match="without a launcher"):
        run_study(parse_study(tree("named")), tmp_path / "out")


# What learns


def learning(text: Path, **keys: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    told = {"data": {"text": str(text), "length": 16}, "max_steps": 3, "learning_rate": 3e-2}
    return {
        "recipe": {
            "model": {"compose": "llama", **sizes, **heads, "tokenizer": "bytes"},
            "steps": [{"train": {**told, "per_device_train_batch_size": 4}}],
            "evaluate": {
                "perplexity": {"data": str(text), "windows": 2, "length": 16},
                **NOTHING,
            },
        },
        **keys,
    }


def test_arms_of_one_seed_see_the_same_data_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_text(tmp_path / "words.txt", 400)
    seen: list[str] = []
    step = ObjectiveTrainer.training_step

    def noted(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        seen.append(sha256_of(inputs["input_ids"]))
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(ObjectiveTrainer, "training_step", noted)
    arms = {"model.intermediate_size": [16, 48]}
    run_study(parse_study(learning(text, arms=arms, seeds=[0, 1])), tmp_path / "out")
    first, second, third, fourth = (seen[at : at + 3] for at in range(0, 12, 3))
    assert len(seen) == 12 and len(set(first)) == 3
    assert first == third and second == fourth and first != second


def test_the_best_of_several_seeds_is_kept(tmp_path: Path) -> None:
    text = write_text(tmp_path / "words.txt", 400)
    asked = parse_study(learning(text, seeds=[0, 1, 2], keep={"metric": "perplexity"}))
    done = run_study(asked, tmp_path / "out")
    (row,) = done.comparison.rows
    numbers = [model.stage.measured["perplexity"]["value"] for model in row.models]
    best = numbers.index(min(numbers))
    assert len(set(numbers)) == 3 and done.comparison.kept == ("recipe", f"seed {best}")
    assert done.kept == tmp_path / "out" / "best"
    source = tmp_path / "out" / "cells" / "recipe" / f"seed-{best}"
    for file in source.iterdir():
        assert (done.kept / file.name).read_bytes() == file.read_bytes()
