"""Every command does its job and says so, for people or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from modwright import __version__
from modwright.papers import STATUSES
from modwright.recipes.load import recipe_schema
from modwright.surgery import method_names

Command = Callable[[str], Any]
COMMANDS = ["inspect", "cost", "plan", "apply", "run", "train", "import", "rename"]
COMMANDS += ["heal", "predict", "upscale", "eval", "papers", "schema", "edit"]
MEASURED = {"parameters", "stored_bytes", "prefill_macs", "decode_macs", "kv_bytes"}


def value(done: Any) -> Any:
    assert done.code == 0, done.err
    return json.loads(done.out)


# Help


def test_nothing_typed_shows_the_help(command: Command) -> None:
    done = command("")
    assert done.code == 2
    assert done.out == ""
    for name in COMMANDS:
        assert f"\n  {name} " in done.err
    assert done.err.startswith("Usage: modwright")


def test_help_lists_the_commands_in_whole_sentences(command: Command) -> None:
    done = command("--help")
    assert done.code == 0
    lines = [line for line in done.out.splitlines() if line.startswith("  ")]
    for name in COMMANDS:
        (line,) = (line for line in lines if line.strip().startswith(f"{name} "))
        assert line.endswith(".")
        assert not line.endswith("...")
        assert len(line) <= 80


@pytest.mark.parametrize("name", [*COMMANDS, *(f"edit {name}" for name in method_names())])
def test_help_of_every_command_names_its_options(name: str, command: Command) -> None:
    from modwright.cli.app import build

    here = build(name.split())
    for word in name.split():
        here = here.commands[word]
    done = command(f"{name} --help")
    assert done.code == 0
    assert "Example: modwright" in done.out or "The paper: modwright papers" in done.out
    for parameter in here.params:
        said = parameter.opts if parameter.opts[0].startswith("-") else [parameter.metavar]
        for option in said:
            assert option in done.out
        assert parameter.help, f"{name} {parameter.name} has no sentence"


def test_examples_in_help_are_commands_that_exist() -> None:
    import shlex

    from modwright.cli.app import _COMMANDS, build

    tree = build()
    for name, _, example in _COMMANDS:
        words = shlex.split(example.partition(">")[0])
        assert words[0] == name
        tree.commands[name].make_context(name, words[1:], resilient_parsing=False)


def test_version(command: Command) -> None:
    done = command("--version")
    assert (done.code, done.out, done.err) == (0, f"modwright {__version__}\n", "")


# inspect and cost


def test_inspect_shows_every_part(command: Command, place: Path) -> None:
    done = command("inspect preset:tiny-llama --length 16 --html page.html")
    assert done.code == 0
    for word in ("attention", "mlp", "embed", "98.7 k"):
        assert word in done.out
    assert done.err == ""
    assert "mlp" in (place / "page.html").read_text()
    assert [entry.name for entry in place.iterdir()] == ["page.html"]


def test_inspect_as_json(command: Command, place: Path) -> None:
    tree = value(command("inspect preset:tiny-gpt2 --length 16 --json"))
    assert isinstance(tree, dict)
    assert "mlp" in json.dumps(tree)


def test_cost_counts_and_times(command: Command, place: Path) -> None:
    counted = value(command("cost preset:tiny-llama --length 16 --json"))
    assert counted["speed"] is None
    assert counted["cost"]["parameters"] == 98736
    assert not MEASURED - set(counted["cost"])
    timed = value(
        command("cost preset:tiny-llama --length 8 --new-tokens 2 --threads 1 --measure --json")
    )
    assert timed["speed"]["prefill_tokens_per_second"] > 0
    assert timed["speed"]["decode_tokens_per_second"] > 0
    assert timed["speed"]["threads"] == 1


def test_cost_for_people(command: Command, place: Path) -> None:
    done = command("cost preset:tiny-llama --length 8 --new-tokens 2 --measure")
    assert done.code == 0
    assert "98.7 k" in done.out
    assert "tokens/s" in done.out


def test_cost_follows_length_and_dtype(command: Command, place: Path) -> None:
    short = value(command("cost preset:tiny-llama --length 8 --json"))["cost"]
    long = value(command("cost preset:tiny-llama --length 16 --dtype bfloat16 --json"))["cost"]
    assert long["stored_bytes"] * 2 == short["stored_bytes"]
    assert long["kv_bytes"] == short["kv_bytes"]  # twice the tokens, half the bytes of each


# plan and apply


def test_plan_writes_nothing(command: Command, recipe_file: Path) -> None:
    done = command("plan recipe.yaml")
    assert done.code == 0
    for words in ("drop 1 attention", "MoDeGPT 20%", "parameters left", "Nothing was written"):
        assert words in " ".join(done.out.split())
    assert [entry.name for entry in recipe_file.parent.iterdir()] == ["recipe.yaml"]


def test_plan_as_json(command: Command, recipe_file: Path) -> None:
    info = value(command("plan recipe.yaml --set steps.0.n=2 --json"))
    assert info["recipe"]["steps"][0]["n"] == 2
    assert [step["method"] for step in info["steps"]] == ["llm_drop", "modegpt"]
    assert info["parameters"] == 98736


def test_a_saved_plan_is_shown_and_applied(
    command: Command, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = import_module("modwright.edits.verify")  # the package has a function of that name
    monkeypatch.setattr(home, "check_reopens", lambda model, folder: "not here")
    done = command("plan recipe.yaml --save made")
    assert done.code == 0
    assert "plan of llm_drop" in done.out
    assert "removed" in done.out
    assert "modwright apply made -o OUT" in done.err
    done = command("apply made -o out")
    assert done.code == 0, done.err
    assert "tensors kept" in done.err
    assert "needs `import modwright`" in done.err
    out = recipe_file.parent / "out"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {f.name for f in out.iterdir()}
    again = command("apply made -o out")
    assert again.code == 2
    assert "not empty" in again.err
    assert command("apply made -o out --force").code == 0


def test_a_plan_fits_only_its_model(command: Command, recipe_file: Path) -> None:
    assert command("plan recipe.yaml --save made").code == 0
    done = command("apply made -o out --model preset:tiny-gpt2")
    assert done.code == 2
    assert "plan was made for" in done.err


# run


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are not reopened: that is tested elsewhere, and a new process takes its time."""
    monkeypatch.setattr("modwright.recipes.run.check_reopens", lambda model, folder: None)


def test_run_for_people(command: Command, recipe_file: Path, unchecked: None) -> None:
    done = command("run recipe.yaml -o out")
    assert done.code == 0, done.err
    for words in ("baseline", "drop 1 attention", "MoDeGPT 20%", "perplexity", "writes:"):
        assert words in done.out
    load = next(line for line in done.out.splitlines() if line.startswith("load: "))
    code = load.removeprefix("load: ")
    space: dict[str, Any] = {}
    exec(code.replace("AutoModelForCausalLM.from", "model = AutoModelForCausalLM.from"), space)
    assert type(space["model"]).__name__ == "ModwrightLlamaForCausalLM"
    assert done.err.splitlines()[0].startswith("opening ")
    again = command("run recipe.yaml -o out")
    assert again.code == 0
    assert again.err == "out holds the result of this recipe already; --force makes it again\n"
    assert [line for line in again.out.splitlines() if line.startswith("load: ")] == [load]


def test_run_as_json(command: Command, recipe_file: Path) -> None:
    """JSON alone on stdout; what is done on stderr."""
    done = command("run recipe.yaml -o out --set steps.1.sparsity=0.3 --no-check --json")
    report = value(done)
    assert [stage["name"] for stage in report["stages"]] == ["before", "1 llm_drop", "2 modegpt"]
    assert report["stages"][2]["options"]["sparsity"] == 0.3
    assert "step 1 of 2: drop 1 attention" in done.err
    assert "reopening" not in done.err


def test_a_dry_run_says_what_it_tried_and_writes_nothing(
    command: Command, recipe_file: Path
) -> None:
    done = command("run recipe.yaml -o out --dry-run")
    assert done.code == 0, done.err
    info = " ".join(done.out.split())
    for words in (
        "Nothing was written.",
        "- drop 1 attention: ran block 0 (",
        "on one batch of 4 x 32 in ",
        "the whole calibration takes about",
        "for the plan",
        "- saving to out: rehearsed without weights",
        "are free",
        "- this process held ",
    ):
        assert words in info, words
    assert done.err.splitlines() == [done.err.splitlines()[0], "rehearsing the save to out"]
    found = value(command("run recipe.yaml -o out --dry-run --json"))
    assert found["steps"][1]["calibration"]["block"] == 0
    assert found["estimate"]["steps"][1]["phases"]["plan"] == found["steps"][1]["memory_estimate"]
    assert [path.name for path in recipe_file.parent.iterdir()] == ["recipe.yaml"]


def test_the_log_is_named_at_the_end(command: Command, recipe_file: Path, unchecked: None) -> None:
    done = command("run recipe.yaml -o out --set evaluate.speed=null")
    line = next(line for line in done.out.splitlines() if line.startswith("log: "))
    assert Path(line.removeprefix("log: ")) == recipe_file.parent / "out.log"


# edit


def test_edit_takes_lists_by_repeating(
    command: Command, recipe_file: Path, wordy_model: Path, wordy_text: Path, unchecked: None
) -> None:
    done = command(
        f"edit modegpt {wordy_model} -o out --data {wordy_text} --windows 4 --length 24"
        " --sparsity 0.3 --pairs mlp --pairs query_key --allocation uniform --no-eval"
    )
    assert done.code == 0, done.err
    report = json.loads((recipe_file.parent / "out" / "report.json").read_text())
    step = report["recipe"]["steps"][0]
    assert (step["pairs"], step["sparsity"]) == (["mlp", "query_key"], 0.3)
    assert step["allocation"] == "uniform"
    assert step["calibration"]["length"] == 24
    assert "perplexity" not in report["stages"][1]["measured"]
    assert "speed" not in report["stages"][1]["measured"]


def test_edit_makes_a_recipe_of_its_options(
    command: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perplexity follows --length: else a model of few positions could not be edited at all."""
    asked: list[Any] = []

    def capture(recipe: Any, *args: Any, **kwargs: Any) -> None:
        asked.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr("modwright.recipes.run.run", capture)
    line = "edit llm_drop m -o out --length 24 --seed 3 --n 2 --target block --consecutive"
    assert command(f"{line} --no-drop-norm --dtype bfloat16").code == 130
    (recipe,) = asked
    assert (recipe.model, recipe.dtype) == ("m", "bfloat16")
    assert (recipe.calibration.length, recipe.calibration.seed) == (24, 3)
    assert recipe.evaluate.built["perplexity"].length == 24
    options = recipe.steps[0].options
    assert (options["n"], options["target"]) == (2, "block")
    assert (options["consecutive"], options["drop_norm"]) == (True, False)


# eval


def test_eval_gives_the_recipe_of_its_number(
    command: Command, place: Path, wordy_model: Path, wordy_text: Path
) -> None:
    asked = f"eval {wordy_model} --data {wordy_text} --length 24 --windows 2"
    info = value(command(f"{asked} --bos --stride 12 --json"))
    assert "generation" not in info
    found = info["perplexity"]
    assert found["finite"] is True
    assert found["value"] > 1
    assert (found["recipe"]["stride"], found["recipe"]["bos"]) == (12, True)
    done = command(f"{asked} --prompt 'w7 w8' --new-tokens 3")
    assert done.code == 0
    assert "per token over" in done.out
    assert "after 'w7 w8'" in done.out
    assert "sha256" in done.out


def test_fault_A14_eval_reads_the_rows_of_a_file_and_names_its_columns(
    command: Command, place: Path, wordy_model: Path, wordy_text: Path
) -> None:
    words = wordy_text.read_text()
    (place / "rows.jsonl").write_text(json.dumps({"id": 1, "body": words}) + "\n")
    asked = f"eval {wordy_model} --length 24 --windows 2 --json"
    plain = value(command(f"{asked} --text {wordy_text}"))["perplexity"]
    rows = value(command(f"{asked} --text rows.jsonl --column body"))["perplexity"]
    assert rows["value"] == plain["value"]
    assert rows["recipe"]["column"] == "body"
    none = value(command(f"{asked} --text {wordy_text} --no-bos"))["perplexity"]
    assert none["recipe"]["special_tokens"] == {"before": [], "after": []}
    refused = command(f"{asked} --text rows.jsonl")
    assert refused.code == 2
    assert "'text'; valid values: id, body" in refused.err


def test_numbers_that_are_not_finite_are_still_json(
    command: Command,
    place: Path,
    wordy_model: Path,
    wordy_text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from modwright.metrics import perplexity

    monkeypatch.setattr(perplexity, "_window_nlls", lambda *given: [float("nan")])
    done = command(f"eval {wordy_model} --data {wordy_text} --length 8 --windows 1 --json")
    assert "NaN" not in done.out
    assert value(done)["perplexity"]["value"] is None
    assert value(done)["perplexity"]["finite"] is False


# papers and schema


def test_papers_as_json(command: Command) -> None:
    listed = value(command("papers --json"))
    assert len(listed) == 44
    keys = {"slug", "title", "arxiv", "category", "status", "modules", "command", "figure"}
    for record in listed:
        assert keys | {"paper_figure"} <= set(record)
        assert record["status"] in STATUSES
        assert isinstance(record["modules"], list)
    assert [record["slug"] for record in listed] == sorted(record["slug"] for record in listed)


def test_papers_for_people(command: Command) -> None:
    done = command("papers")
    assert done.code == 0
    assert "44 papers" in done.out
    assert "llm-drop" in done.out


def test_one_paper(command: Command) -> None:
    done = command("papers llm-drop")
    assert done.code == 0
    assert "What Matters in Transformers" in done.out
    assert "2406.15786" in done.out
    (record,) = value(command("papers llm-drop --json"))
    assert record["slug"] == "llm-drop"


def test_schema(command: Command) -> None:
    assert value(command("schema")) == recipe_schema()
