"""What is typed wrong is answered in one line that says what is right, and exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Command, and what the line must say. Files in the working directory: recipe.yaml (a good one),
# words.txt, full/ (a directory that holds something), model/ (a link to the tiny checkpoint).
REFUSALS: list[tuple[str, tuple[str, ...]]] = [
    (
        "inspekt model",
        (
            "'inspekt'",
            "cost, edit, eval, export, heal, import, inspect",
            "did you mean 'inspect'?",
        ),
    ),
    ("--verbose", ("'--verbose'", "--version", "--debug", "--help")),
    ("inspect", ("MODEL", "usage: modwright inspect MODEL")),
    ("inspect model --lenght 3", ("'--lenght'", "--dtype", "did you mean '--length'?")),
    ("inspect model --length", ("--length", "requires an argument")),
    ("inspect model --length abc", ("--length", "integer")),
    ("inspect model --length 0", ("length", "1 or more", "not 0")),
    ("inspect model --dtype fp16", ("'fp16'", "float32, bfloat16", "did you mean 'float16'?")),
    ("inspect model --html gone/page.html", ("gone/page.html", "No such file")),
    ("inspect model --json=3", ("--json", "does not take a value")),
    ("inspect modle", ("'modle'", "preset:NAME", "hub id", "did you mean 'model'?")),
    ("inspect words.txt", ("words.txt", "is a file", ".gguf")),
    ("inspect model/config.json", ("is a file", "give the directory")),
    ("inspect full", ("full", "config.json")),
    ("inspect preset:tiny-lama", ("'tiny-lama'", "tiny-gpt2", "did you mean 'tiny-llama'?")),
    ("inspect someone/something", ("someone/something", "hf download", "packaged name")),
    ("cost model model", ("unexpected", "usage: modwright cost MODEL")),
    ("cost model --batch 0", ("batch", "1 or more", "not 0")),
    ("cost model --measure --new-tokens 0", ("new_tokens", "1 or more")),
    ("cost model --measure --threads 0", ("threads", "1 or more")),
    ("plan", ("RECIPE", "usage: modwright plan RECIPE")),
    ("plan recpie.yaml", ("recpie.yaml", "no such file", "did you mean 'recipe.yaml'?")),
    ("plan model", ("directory", "YAML")),
    ("plan recipe.yaml --set steps.0.n", ("KEY=VALUE", "steps.0.n=6")),
    ("plan recipe.yaml --set steps.0.n=99", ("steps.0", "n=99", "0 to 4")),
    ("plan recipe.yaml --set steps.0.metod=x", ("--set", "'metod'", "valid values: n, target")),
    ("plan recipe.yaml --set model=modle", ("'modle'", "did you mean 'model'?")),
    ("plan recipe.yaml --save full", ("full", "not empty", "another directory")),
    ("plan recipe.yaml --save words.txt", ("words.txt", "is a file")),
    ("apply plan", ("-o", "usage: modwright apply PLAN -o DIR")),
    ("apply gone -o out", ("'gone'", "holds no plan", "modwright plan RECIPE --save DIR")),
    ("apply model -o out", ("'model'", "holds no plan")),
    ("run recipe.yaml", ("no output", "`output:`", "-o")),
    ("run recipe.yaml -o full", ("'full'", "something else", "--force")),
    ("run recipe.yaml -o words.txt", ("words.txt", "is a file")),
    ("run recipe.yaml -o model --force", ("'model'", "begins with", "another directory")),
    ("run recipe.yaml -o . --force", ("working directory", "new directory below it")),
    ("run recipe.yaml -o out --set calibration.data=gone", ("calibration", "'gone'", "lee")),
    ("run recipe.yaml -o out --set model=preset:tiny-llama", ("calibration", "no tokenizer")),
    ("run recipe.yaml -o out --set dtype=half", ("--set 'dtype=half'", "'float16'", "'half'")),
    ("edit lmm_drop model", ("'lmm_drop'", "llm_drop, modegpt", "did you mean 'llm_drop'?")),
    ("edit llm_drop", ("MODEL", "usage: modwright edit llm_drop MODEL -o DIR")),
    ("edit llm_drop model", ("-o", "usage: modwright edit llm_drop MODEL -o DIR")),
    ("edit llm_drop model -o out --n two", ("--n", "integer")),
    ("edit llm_drop model -o out --n -1", ("n must be 0 or more", "-1")),
    ("edit llm_drop model -o out --num 2", ("'--num'", "--n", "--target")),
    ("edit llm_drop model -o out --target attn", ("'attention'", "'joint'", "'attn'")),
    ("edit modegpt model -o out --sparsity 1", ("sparsity", "[0, 1)")),
    ("edit modegpt model -o out --pairs mpl", ("'mpl'", "query_key")),
    ("edit modegpt model -o out --length 999", ("999", "2..256")),
    ("edit modegpt model -o out --windows 0", ("windows", "1 or more", "not 0")),
    ("edit modegpt model -o out --length 8 --data gone", ("calibration", "'gone'", "lee")),
    ("eval preset:tiny-llama", ("preset:tiny-llama", "no tokenizer")),
    ("eval model --length 8 --data gone", ("'gone'", "lee, lee-background")),
    ("eval model --length 999", ("length is 999", "2..256")),
    ("eval model --data words.txt --length 8 --windows 999", ("999", "valid values of windows")),
    ("eval model --data words.txt --length 8 --stride 9", ("stride is 9", "1..8")),
    ("eval model --data words.txt --length 8 --windows 1 --prompt ''", ("prompt is empty",)),
    ("papers llmdrop", ("'llmdrop'", "wide-attention", "did you mean 'llm-drop'?")),
    ("papers llm-drop modegpt", ("unexpected", "usage: modwright papers [SLUG]")),
    ("schema it", ("unexpected", "usage: modwright schema")),
]


@pytest.fixture
def stocked(recipe_file: Path, wordy_model: Path, wordy_text: Path) -> Path:
    here = recipe_file.parent
    (here / "words.txt").write_bytes(wordy_text.read_bytes())
    (here / "full").mkdir()
    (here / "full" / "something").write_text("x")
    (here / "model").symlink_to(wordy_model)
    recipe_file.write_text(recipe_file.read_text().replace(str(wordy_model), "model"))
    return here


def names(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place.parent)) for path in place.parent.rglob("*"))


@pytest.mark.parametrize(("line", "info"), REFUSALS, ids=[line for line, _ in REFUSALS])
def test_refusals(
    line: str, info: tuple[str, ...], stocked: Path, command: Callable[[str], Any]
) -> None:
    before = names(stocked)
    done = command(line)
    assert done.code == 2
    assert done.out == ""
    # A run says that it opens the model before it can find fault with it.
    *narrated, last = done.err.splitlines()
    assert all(one.startswith("opening ") for one in narrated)
    assert last.startswith("modwright: ")
    for part in info:
        assert part in last
    assert "Traceback" not in done.err
    assert names(stocked) == before


def test_debug_shows_where(place: Path, command: Callable[[str], Any]) -> None:
    for line in ("--debug inspect gone", "inspect gone --debug"):
        done = command(line)
        assert done.code == 2
        assert "Traceback (most recent call last)" in done.err
        assert done.err.splitlines()[-1].startswith("modwright: cannot open 'gone'")


def test_debug_can_be_set_for_a_session(
    place: Path, command: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODWRIGHT_DEBUG", "1")
    assert "Traceback" in command("papers gone").err


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "code", "info"),
    [
        (Broken("it broke\nsecond line"), 1, "failed: Broken: it broke (--debug shows where)"),
        (Broken(), 1, "failed: Broken: no message (--debug shows where)"),
        (KeyboardInterrupt(), 130, "interrupted; finished steps of a run are kept"),
    ],
)
def test_failures_of_work_are_one_line_too(
    error: BaseException,
    code: int,
    info: str,
    place: Path,
    command: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("modwright.papers.papers", fail)
    done = command("papers")
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith(f"modwright: {info}")
    assert len(done.err.splitlines()) == 1


def test_a_broken_promise_is_failed_work(
    place: Path, command: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from modwright.core.errors import VerificationError

    def fail(*args: Any, **kwargs: Any) -> None:
        raise VerificationError("cached decoding differs\nby 0.3")

    monkeypatch.setattr("modwright.papers.papers", fail)
    done = command("papers")
    assert done.code == 1
    assert done.err == "modwright: cached decoding differs by 0.3\n"
