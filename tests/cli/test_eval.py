"""``modwright eval``: alone, against an original, on tasks; and what it refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from harness_tasks import write_tasks
from wordy import word_tokenizer, write_checkpoint

from .conftest import Command, Done


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def other(tiny: Any, place: Path) -> str:
    """A model of the same tokenizer and other weights."""
    return write_checkpoint(tiny("tiny-llama", intermediate_size=64), place / "other").name


def value(done: Done) -> Any:
    assert done.code == 0, done.err
    return json.loads(done.out)


def asked(model: Any, text: Path, more: str = "") -> str:
    return f"eval {model} --text {text} --length 24 --windows 2 {more}"


def test_against_the_original_both_are_measured(
    command: Command, place: Path, wordy_model: Path, wordy_text: Path, other: str
) -> None:
    line = asked(other, wordy_text, f"--against {wordy_model}")
    info = value(command(f"{line} --json"))
    assert info["model"] == other
    assert info["against"]["model"] == str(wordy_model)
    assert "divergence" not in info["against"]
    assert info["perplexity"]["recipe"] == info["against"]["perplexity"]["recipe"]
    near = info["divergence"]
    assert near["kl"] > 0 and 0 <= near["top1"] <= 1
    assert near["recipe"]["teacher"] == str(wordy_model)
    assert near["recipe"]["sha256"] == info["perplexity"]["recipe"]["sha256"]
    done = command(line)
    assert done.code == 0
    for words in ("Perplexity", "change", "divergence over 46 tokens: KL", "top-1"):
        assert words in done.out, words
    assert f"{info['perplexity']['value']:.4f} per token" in done.out


def test_tasks_of_ones_own_are_scored_offline_each_with_the_version(
    command: Command, place: Path, wordy_model: Path, wordy_text: Path
) -> None:
    write_tasks(place / "tasks")
    line = asked(wordy_model, wordy_text, "--tasks words,text --include-path tasks --limit 5")
    info = value(command(f"{line} --json"))
    scores = {score["task"]: score for score in info["lm_eval"]["scores"]}
    assert set(scores) == {"words", "text"}
    assert scores["words"]["documents"] == 5
    assert all(score["harness"].startswith("lm-eval ") for score in scores.values())
    assert info["perplexity"] is not None
    done = command(f"{line} --tasks writing --num-fewshot 1 --batch-size 2")
    assert done.code == 0
    assert "words acc " in done.out and "writing exact_match " in done.out
    assert "version 1.5, 1-shot, 5 documents)" in done.out
    assert done.out.count("(lm-eval 0.") == 5


def test_tasks_against_the_original_show_the_change(
    command: Command, place: Path, wordy_model: Path, wordy_text: Path, other: str
) -> None:
    write_tasks(place / "tasks")
    more = f"--against {wordy_model} --tasks words --include-path tasks"
    info = value(command(asked(other, wordy_text, f"{more} --json")))
    assert info["lm_eval"]["recipe"] == info["against"]["lm_eval"]["recipe"]
    done = command(asked(other, wordy_text, more))
    assert "words acc" in done.out and "±" in done.out


def test_an_encoder_against_its_original_has_a_cosine(
    command: Command, place: Path, tiny: Any, wordy_text: Path
) -> None:
    encoder = tiny("tiny-bert", auto="AutoModel")
    encoder.save_pretrained(place / "encoder")
    word_tokenizer().save_pretrained(place / "encoder")
    done = command(asked("encoder", wordy_text, "--against encoder"))
    assert done.code == 0, done.err
    assert (
        "perplexity is not measured: it needs a causal language model, and encoder is none"
        in done.out
    )
    assert "divergence over 48 tokens: cosine 1.0000" in done.out
    alone = command(asked("encoder", wordy_text))
    assert alone.code == 2
    assert "perplexity needs a causal language model" in alone.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--tasks wordz --include-path tasks", "unknown harness task 'wordz'; the nearest of"),
        ("--tasks hellaswag", "harness task 'hellaswag' cannot be loaded: Couldn't reach"),
        ("--tasks words --include-path nosuch", "include_path 'nosuch' is no directory"),
        ("--tasks ,", "no harness task is named"),
        ("--tasks words --include-path tasks --limit 0", "limit is 0; valid values: 1 and more"),
        ("--limit 3", "--limit is about harness tasks; name them with --tasks"),
        ("--include-path tasks", "--include-path is about harness tasks"),
        ("--against preset:tiny-llama", "preset:tiny-llama has no tokenizer"),
        ("--against nosuch", "nosuch"),
    ],
)
def test_refusals_are_one_line_and_exit_2(
    command: Command, place: Path, wordy_model: Path, wordy_text: Path, more: str, said: str
) -> None:
    write_tasks(place / "tasks")
    done = command(asked(wordy_model, wordy_text, more))
    assert done.code == 2
    assert said in done.err.splitlines()[-1]
    assert done.err.startswith("modwright: ") and len(done.err.splitlines()) == 1
    assert done.out == ""


def test_another_vocabulary_is_refused_by_its_first_difference(
    command: Command, place: Path, tiny: Any, wordy_model: Path, wordy_text: Path
) -> None:
    write_checkpoint(tiny("tiny-llama"), place / "short", tokenizer=False)
    word_tokenizer(100).save_pretrained(place / "short")
    done = command(asked("short", wordy_text, f"--against {wordy_model}"))
    assert done.code == 2
    assert "different tokenizers: 128 and 100 tokens, of which id 100 is the first" in done.err


def test_without_the_extra_its_name_is_told(
    command: Command,
    place: Path,
    wordy_model: Path,
    wordy_text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = command(asked(wordy_model, wordy_text, "--tasks words"))
    assert done.code == 2
    assert done.err == "modwright: harness tasks need lm-eval: pip install 'modwright[text]'\n"
