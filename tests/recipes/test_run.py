"""A recipe leaves a whole checkpoint with its report, once, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from json import loads
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import modwright.recipes.run as running
from modwright.checkpoint import open as open_checkpoint
from modwright.core.errors import CheckpointError, ModwrightError
from modwright.recipes import Recipe, load_recipe
from modwright.recipes.load import resolved
from modwright.recipes.run import RunResult, run
from modwright.recipes.run_log import auto_class
from modwright.report import read_report
from warm_processes import run_python
from wordy import ENDS, write_checkpoint

from .shared import BLOCK, DROP, NOTHING, config_of, no_work, same_weights, snapshot, weights

MakeRecipe = Callable[..., Recipe]
WORKER = Path(__file__).with_name("open_worker.py")


# What is left


def test_the_output_is_whole_and_alone(finished: RunResult, wordy_model: Path) -> None:
    out = finished.output
    names = {file.name for file in out.iterdir()}
    carried = {file.name for file in wordy_model.iterdir()} - {"config.json", "model.safetensors"}
    written = {"config.json", "model.safetensors", "README.md", "recipe.yaml"}
    assert names == carried | written | {"report.json", "report.md", "report.html"}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= carried
    for name in carried:
        assert (out / name).read_bytes() == (wordy_model / name).read_bytes(), name
    assert sorted(entry.name for entry in out.parent.iterdir()) == ["out", "out.log"]


def test_config_and_weights_say_what_was_done(finished: RunResult, wordy_model: Path) -> None:
    config = config_of(finished.output)
    assert config["model_type"] == "modwright_llama"
    assert config["architectures"] == ["ModwrightLlamaForCausalLM"]
    assert len(config["edits"]) > 4
    before = sum(t.numel() for t in weights(wordy_model).values())
    stored = weights(finished.output)
    # Which channels turn together is stored too, but it is no parameter.
    after = sum(t.numel() for name, t in stored.items() if not name.endswith("rotary_index"))
    assert after == finished.report.after.cost["parameters"] < 0.85 * before
    assert before == finished.report.before.cost["parameters"]


def test_the_recipe_beside_the_weights_is_the_resolved_one(
    finished: RunResult, recipe: MakeRecipe
) -> None:
    stored = yaml.safe_load((finished.output / "recipe.yaml").read_text())
    assert stored == {**resolved(recipe()), "output": ""}
    assert finished.report.recipe == stored


def test_blocks_are_followed_to_the_source_over_several_steps(
    recipe: MakeRecipe, tmp_path: Path
) -> None:
    steps = [{"method": "drop", "parts": f"block[{index}]"} for index in (1, 0)]
    report = run(recipe(steps=steps, evaluate=NOTHING), tmp_path / "out", check=False).report
    assert [stage.source_blocks for stage in report.stages] == [[0, 1, 2, 3], [0, 2, 3], [2, 3]]


@pytest.mark.contract("F4")
def test_the_report_is_complete(finished: RunResult) -> None:
    report = read_report(finished.output)
    assert report == read_report(finished.output / "report.json")
    assert [stage.name for stage in report.stages] == ["before", "1 llm_drop", "2 modegpt"]
    for stage in report.stages:
        assert stage.measured["perplexity"]["value"] is not None
        assert stage.cost["prefill_macs"] > 0
        assert stage.measured["speed"]["prefill_tokens_per_second"] > 0
        assert stage.measured["generation"]["prompt"] == "w7 w8"
        assert len(stage.shape) == len(stage.source_blocks) == 4
        assert {"perplexity", "speed", "generation"} <= set(stage.seconds)
    first, second = report.stages[1:]
    assert len(first.reasons["removed"]["attention"]) == 1
    gone = first.reasons["removed"]["attention"][0]
    assert [block["attention"] is None for block in first.shape] == [i == gone for i in range(4)]
    assert first.accounting["removed"] == 5
    assert second.accounting["removed"] == 0
    assert second.accounting["changed"] + second.accounting["added"] > 0
    assert all(block["mlp"] <= 96 for block in second.shape)
    assert sum(block["mlp"] for block in second.shape) < 0.9 * 4 * 96
    assert (report.before.plain, report.after.plain) == (True, False)
    assert report.model["auto_class"] == "AutoModelForCausalLM"
    assert report.environment["threads"] == 1
    assert report.reproduce == "modwright run recipe.yaml -o out"


@pytest.mark.contract("A8")
def test_the_report_lists_the_files_with_their_sizes(finished: RunResult) -> None:
    files = read_report(finished.output).files
    beside = {"report.json", "report.md", "report.html"}
    there = {f.name: f.stat().st_size for f in finished.output.iterdir() if f.name not in beside}
    assert files == there


def test_pages_and_card_are_there_for_people(finished: RunResult) -> None:
    page = (finished.output / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html")
    assert "two kinds of steps" in page
    assert "two kinds of steps" in (finished.output / "report.md").read_text()
    card = (finished.output / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    info = yaml.safe_load(front)
    assert info["library_name"] == "modwright"
    assert {"modwright", "llm_drop", "modegpt"} <= set(info["tags"])
    assert info["pipeline_tag"] == "text-generation"
    assert "import modwright" in body
    assert "AutoModelForCausalLM.from_pretrained(folder)" in body


def test_no_path_of_this_machine_is_in_what_is_meant_to_be_shared(
    finished: RunResult, wordy_model: Path
) -> None:
    """The recipe names the model as the user did; nothing else may know where it lay."""
    for name in ("config.json", "generation_config.json"):
        assert str(wordy_model.parent) not in (finished.output / name).read_text()
    assert str(finished.output.parent) not in (finished.output / "report.json").read_text()


def test_the_user_is_told_what_is_done(
    finished: RunResult, recipe: MakeRecipe, tmp_path: Path
) -> None:
    said: list[str] = []
    done = run(recipe(), tmp_path / "out", log=said.append)
    measured = ["perplexity 1", "Perplexity on a second text"]
    beginnings = ["opening", "measuring", *measured, "step 1 of 2", "calibration:", *measured]
    beginnings += ["step 2 of 2", "calibration:", *measured, "writing", "reopening"]
    assert [line.startswith(start) for line, start in zip(said, beginnings)] == [True] * len(said)
    assert len(said) == len(beginnings)
    assert done.reopened is not None
    assert done.reopened.model_class == "ModwrightLlamaForCausalLM"
    assert done.reopened.opened_with == "AutoModelForCausalLM"
    assert same_weights(done.output, finished.output)


# The same and another recipe in the same place


def test_a_second_run_does_nothing(
    finished: RunResult, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_work(monkeypatch)
    before, info = snapshot(finished.output), []
    again = run(recipe(), finished.output, log=info.append)
    assert again.done_before
    assert again.report == read_report(finished.output)
    assert len(info) == 1
    assert "already" in info[0]
    assert "--force" in info[0]
    assert snapshot(finished.output) == before


def test_the_stored_recipe_makes_the_same_result(
    finished: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = load_recipe(finished.output / "recipe.yaml")
    again = run(stored, tmp_path / "again", check=False)
    assert same_weights(again.output, finished.output)
    assert config_of(again.output) == config_of(finished.output)
    no_work(monkeypatch)
    assert run(stored, finished.output).done_before


def test_another_recipe_does_not_replace_a_result(
    finished: RunResult, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_work(monkeypatch)
    before = snapshot(finished.output)
    with pytest.raises(CheckpointError, match=r"holds something else .*-o.*--force"):
        run(recipe(steps=DROP), finished.output)
    assert snapshot(finished.output) == before


@pytest.mark.parametrize("missing", ["config.json", "report.json", "recipe.yaml"])
def test_half_a_result_is_not_taken_for_one(
    missing: str, finished: RunResult, recipe: MakeRecipe, tmp_path: Path
) -> None:
    for name in {"config.json", "report.json", "recipe.yaml"} - {missing}:
        (tmp_path / name).write_bytes((finished.output / name).read_bytes())
    with pytest.raises(CheckpointError, match="something else"):
        run(recipe(), tmp_path)


def test_force_replaces(recipe: MakeRecipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    run(recipe(steps=DROP, evaluate=NOTHING), out, force=True, check=False)
    assert not (out / "old.txt").exists()
    assert (out / "model.safetensors").exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "out.log"]


def test_a_failure_leaves_the_old_output_alone(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the new process died")

    monkeypatch.setattr(running, "check_reopens", fail)
    with pytest.raises(RuntimeError, match="died"):
        run(recipe(steps=DROP, evaluate=NOTHING), out, force=True)
    assert snapshot(out) == {"old.txt": b"old"}
    left = sorted(entry.name for entry in tmp_path.iterdir())
    assert left == ["out", "out.log", "out.work"]


def test_two_runs_into_one_place_at_once(recipe: MakeRecipe, tmp_path: Path) -> None:
    """The second is refused in one line; the first is not disturbed."""
    asked = recipe(steps=DROP, evaluate=NOTHING)
    refused: list[ModwrightError] = []

    def interfere(line: str) -> None:
        if line.startswith("step 1"):
            with pytest.raises(CheckpointError) as caught:
                run(asked, tmp_path / "out", check=False)
            refused.append(caught.value)

    done = run(asked, tmp_path / "out", check=False, log=interfere)
    assert len(refused) == 1
    assert f"another run (process {os.getpid()})" in str(refused[0])
    assert "out" in str(refused[0])
    assert (done.output / "report.json").exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "out.log"]


# Other models


def test_an_encoder_is_edited_without_perplexity(
    recipe: MakeRecipe, tiny: Any, tmp_path: Path
) -> None:
    model = write_checkpoint(tiny("tiny-bert"), tmp_path / "bert")
    steps = [{"method": "llm_drop", "target": "mlp", "n": 1}]
    done = run(recipe(model=str(model), steps=steps), tmp_path / "out", check=False)
    for stage in done.report.stages:
        assert set(stage.measured) == {"speed"}
        assert stage.measured["speed"].get("decode_tokens_per_second") is None
    assert done.report.model["auto_class"] == "AutoModel"
    assert "AutoModel.from_pretrained" in (tmp_path / "out" / "README.md").read_text()


def test_auto_classes(tiny: Any) -> None:
    assert auto_class(tiny("tiny-llama")) == "AutoModelForCausalLM"
    assert auto_class(tiny("tiny-llama", auto="AutoModel")) == "AutoModel"
    assert auto_class(tiny("tiny-bert")) == "AutoModel"
    assert auto_class(tiny("tiny-bert", auto="AutoModelForMaskedLM")) == "AutoModelForMaskedLM"


def test_a_causal_model_stays_one_on_its_card_when_nothing_is_measured(
    recipe: MakeRecipe, tmp_path: Path
) -> None:
    run(recipe(steps=BLOCK, evaluate=NOTHING), tmp_path / "out", check=False)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained(folder)" in card
    assert "import modwright" not in card  # a block less is a plain Llama


@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_weights_have_the_wanted_dtype(
    dtype: str | None, recipe: MakeRecipe, tiny: Any, tmp_path: Path
) -> None:
    model = write_checkpoint(tiny("tiny-llama", dtype=torch.float16), tmp_path / "half")
    asked = recipe(model=str(model), dtype=dtype, steps=BLOCK, evaluate=NOTHING)
    done = run(asked, tmp_path / "out", check=False)
    wanted = torch.float16 if dtype is None else torch.bfloat16
    assert {tensor.dtype for tensor in weights(done.output).values()} == {wanted}


@pytest.mark.contract("G3")
def test_shards(recipe: MakeRecipe, tmp_path: Path) -> None:
    asked = recipe(steps=DROP, evaluate=NOTHING, max_shard_size="100KB")
    done = run(asked, tmp_path / "out", check=False)
    assert len(list(done.output.glob("model-*.safetensors"))) > 1
    live = open_checkpoint(done.output).model
    assert {n for n, _ in live.named_parameters()} == set(weights(done.output))


# Settings


def test_threads_and_seed_are_those_of_the_recipe_and_put_back(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    """Every step begins with the seed, so that one which is run alone after a stop is the same."""
    seen: list[tuple[int, float]] = []
    measure = running.measure_stage

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append((torch.get_num_threads(), float(torch.rand(()))))
        return measure(*args, **kwargs)

    monkeypatch.setattr(running, "measure_stage", watched)
    torch.manual_seed(123)
    drawn = float(torch.rand(()))
    torch.manual_seed(123)
    asked = recipe(threads=1, seed=7, evaluate=NOTHING)
    done = run(asked, tmp_path / "out", check=False)
    first = float(torch.rand((), generator=torch.Generator().manual_seed(7)))
    assert seen == [(1, first)] * 3
    assert done.report.environment["threads"] == 1
    assert torch.get_num_threads() == 2
    assert float(torch.rand(())) == drawn


def test_a_recipe_without_threads_takes_those_that_are_set(
    recipe: MakeRecipe, tmp_path: Path, two_threads: None
) -> None:
    done = run(recipe(threads=None, steps=BLOCK, evaluate=NOTHING), tmp_path / "out", check=False)
    assert done.report.environment["threads"] == 2


# New processes


def test_results_open_in_new_processes(
    finished: RunResult, recipe: MakeRecipe, tmp_path: Path
) -> None:
    """The plain one in stock transformers; the edited one after ``import modwright`` alone."""
    plain = run(recipe(steps=BLOCK, evaluate=NOTHING), tmp_path / "plain", check=False)
    assert plain.report.after.plain
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    outputs = [str(plain.output), str(finished.output)]
    stock, ours = (
        loads(run_python([str(WORKER), *outputs, which], environment, timeout=120).stdout)
        for which in ("nothing", "modwright")
    )

    assert not stock["modwright imported"]
    assert stock["plain"]["class"] == "LlamaForCausalLM"
    assert "modwright_llama" in stock["edited"]["error"]
    assert stock["plain"] == ours["plain"]
    assert ours["edited"]["class"] == "ModwrightLlamaForCausalLM"
    ids = torch.arange(6, 18)[None]
    for place, info in ((plain.output, stock["plain"]), (finished.output, ours["edited"])):
        live = open_checkpoint(place).model
        with torch.no_grad():
            logits = live(ids).logits[0, -1]
        assert torch.allclose(logits, torch.tensor(info["logits"]), atol=1e-5)
        assert info["cached"] == info["plainly"]
        assert len(info["cached"]) == 24
        assert info["ends"] == ENDS
