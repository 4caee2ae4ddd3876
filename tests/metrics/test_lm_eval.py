"""Scores on task files of one's own: the harness's own numbers, and no traces left."""

from __future__ import annotations

import json
import logging
import math
import random
import sys
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import numpy
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from small_models import encoder_tokenizer, gpt2, tiny_bert, tiny_t5, word_tokenizer
from transformers import BertForMaskedLM

import modwright
from harness_tasks import CHOICE, write_task, write_tasks
from helpers import edit, snapshot, unchanged
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.edits import remove
from modwright.metrics import lm_eval_tasks
from modwright.metrics.lm_eval import Harness, HarnessRecipe, run_harness
from modwright.metrics.lm_eval_tasks import load_harness_tasks
from modwright.metrics.perplexity import PerplexityRecipe, perplexity

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks")


@pytest.fixture(scope="module")
def opened(wordy_model: Path) -> Any:
    return modwright.open(wordy_model)


def score(opened: Any, folder: Path, *names: str, **more: Any) -> Harness:
    recipe = HarnessRecipe(names or ("words",), str(folder), **more)
    return run_harness(opened.model, opened.tokenizer, recipe)


def values(found: Harness) -> dict[str, float | None]:
    return {one.name: one.value for one in found.scores}


# The numbers


@torch.no_grad()
def by_hand(opened: Any, rows: list[dict[str, Any]]) -> float:
    """Accuracy: the answer whose tokens are likeliest after the question."""
    right = 0
    for row in rows:
        sums = []
        for choice in row["choices"]:
            first = opened.tokenizer(row["question"])["input_ids"]
            ids = opened.tokenizer(f"{row['question']} {choice}")["input_ids"]
            logits = opened.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(float(logits[at - 1, ids[at]]) for at in range(len(first), len(ids))))
        right += max(range(len(sums)), key=sums.__getitem__) == row["answer"]
    return right / len(rows)


def test_a_local_task_runs_offline_and_is_what_is_computed_by_hand(
    opened: Any, folder: Path
) -> None:
    found = score(opened, folder, batch_size=4)
    rows = json.loads((folder / "words.json").read_text())
    accuracy, normed = found.scores
    assert accuracy.name == "words acc"
    assert accuracy.value == pytest.approx(by_hand(opened, rows))
    assert 0 < accuracy.value < 1
    assert accuracy.stderr == pytest.approx(
        math.sqrt(accuracy.value * (1 - accuracy.value) / 11), rel=1e-6
    )
    assert (accuracy.documents, accuracy.num_fewshot, accuracy.version) == (12, 0, "1.5")
    assert accuracy.higher_is_better is True and accuracy.asked
    assert normed.metric == "acc_norm"


def test_numbers_are_those_of_the_harness_itself(opened: Any, folder: Path) -> None:
    names = ["words", "text", "writing"]
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    lm = HFLM(pretrained=opened.model, tokenizer=opened.tokenizer, backend="causal", batch_size=1)
    own = lm_eval.simple_evaluate(lm, tasks=names, task_manager=manager, bootstrap_iters=10)
    theirs = {
        f"{task} {key.removesuffix(',none')}": value
        for task, numbers in own["results"].items()
        for key, value in numbers.items()
        if "," in key and "stderr" not in key
    }
    assert values(score(opened, folder, *names)) == pytest.approx(theirs)
    assert set(theirs) >= {"words acc", "text word_perplexity", "writing exact_match"}


@pytest.mark.contract("F5")
def test_every_number_carries_the_version_of_the_harness_and_its_recipe(
    opened: Any, folder: Path
) -> None:
    found = score(opened, folder, "words", "text", limit=5)
    assert {one.harness for one in found.scores} == {f"lm-eval {lm_eval.__version__}"}
    recipe = found.recipe
    assert json.loads(json.dumps(recipe)) == recipe
    assert recipe["harness"] == f"lm-eval {lm_eval.__version__}"
    assert recipe["tasks"]["words"] == {
        "version": "1.5",
        "num_fewshot": 0,
        "documents": "5 of 12",
    }
    assert (recipe["limit"], recipe["dtype"], recipe["inputs_cut"]) == (5, "float32", 0)
    assert recipe["before_a_text"] == "<s>"
    assert score(opened, folder, "words", "text").recipe["sha256"] != recipe["sha256"]


def test_word_perplexity_is_that_of_the_same_text_in_one_window(
    opened: Any, folder: Path, tmp_path: Path
) -> None:
    """What the harness calls word_perplexity is not the perplexity per token."""
    text = json.loads((folder / "text.json").read_text())[0]["text"]
    (tmp_path / "text.txt").write_text(text)
    words = len(text.split())
    recipe = PerplexityRecipe(str(tmp_path / "text.txt"), windows=1, length=words + 1, bos=True)
    ours = perplexity(opened.model, opened.tokenizer, recipe)
    theirs = values(score(opened, folder, "text"))
    assert theirs["text word_perplexity"] == pytest.approx(ours.word_perplexity, rel=1e-5)
    assert theirs["text bits_per_byte"] == pytest.approx(ours.bits_per_byte, rel=1e-5)


def test_two_runs_give_the_same(opened: Any, folder: Path) -> None:
    tasks = load_harness_tasks(HarnessRecipe(("words",), str(folder)))
    first, second = (run_harness(opened.model, opened.tokenizer, tasks) for _ in range(2))
    assert first.scores == second.scores
    assert first.recipe == second.recipe


def test_examples_stand_before_a_question_unless_the_task_fixes_none(
    opened: Any, folder: Path
) -> None:
    rows = json.loads((folder / "words.json").read_text())
    write_task(folder, "fixed", rows, **CHOICE, num_fewshot=0)
    found = score(opened, folder, "words", "fixed", num_fewshot=2)
    shots = {one.task: one.num_fewshot for one in found.scores}
    assert shots == {"words": 2, "fixed": 0}
    assert found.recipe["num_fewshot"] == 2


def test_a_group_has_its_score_and_those_of_its_tasks(opened: Any, folder: Path) -> None:
    rows = json.loads((folder / "words.json").read_text())
    write_task(folder, "more", rows[:4], **CHOICE)
    (folder / "both.yaml").write_text(
        "group: both\ntask: [words, more]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\nmetadata: {version: 3}\n"
    )
    (folder / "loose.yaml").write_text("group: loose\ntask: [words, more]\n")
    found = {one.name: one for one in score(opened, folder, "both").scores}
    parts = found["words acc"], found["more acc"]
    whole = found["both acc"]
    assert whole.value == pytest.approx((12 * parts[0].value + 4 * parts[1].value) / 16)
    assert whole.asked and not parts[0].asked and not parts[1].asked
    assert (whole.version, whole.documents) == ("3", 16)
    loose = score(opened, folder, "loose").scores
    assert {one.task for one in loose if one.asked} == {"words", "more"}


def test_a_task_can_be_named_by_its_file(opened: Any, folder: Path) -> None:
    recipe = HarnessRecipe((str(folder / "words.yaml"),))
    found = run_harness(opened.model, opened.tokenizer, recipe)
    assert {one.task for one in found.scores} == {"words"}
    assert all(one.asked for one in found.scores)


def test_an_edited_model_whose_layers_differ_is_scored(opened: Any, folder: Path) -> None:
    attention = Anatomy.of(opened.model).blocks[0].attention
    assert attention is not None
    applied = edit(opened.model, remove(attention))
    assert not applied.plain
    recipe = HarnessRecipe(("text",), str(folder))
    before = run_harness(opened.model, opened.tokenizer, recipe)
    after = run_harness(applied.model, opened.tokenizer, recipe)
    assert values(before)["text word_perplexity"] != values(after)["text word_perplexity"]
    assert before.recipe == after.recipe


def test_texts_that_do_not_fit_are_counted(opened: Any, tmp_path: Path) -> None:
    rows = [{"question": "w9 " * 300, "choices": ["w7", "w8"], "answer": 0}]
    write_task(tmp_path / "long", "long", rows, **CHOICE)
    found = score(opened, tmp_path / "long", "long")
    assert found.recipe["longest_input"] == 256
    assert found.recipe["inputs_cut"] > 0


def test_a_broken_model_has_no_score_instead_of_the_first_answer(
    tiny: Any, opened: Any, folder: Path
) -> None:
    broken = tiny.copy("tiny-llama")
    broken.lm_head.weight.data[:] = math.nan
    found = run_harness(broken, opened.tokenizer, HarnessRecipe(("words",), str(folder)))
    assert not found.finite
    assert {one.value for one in found.scores} == {None}


# Nothing else changes


def test_model_tokenizer_and_random_numbers_are_left_as_they_were(folder: Path) -> None:
    model, tokenizer = gpt2().train(), word_tokenizer()
    stored = snapshot(model)
    vocabulary = len(tokenizer)
    random.seed(5), numpy.random.seed(5), torch.manual_seed(5)
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    run_harness(model, tokenizer, HarnessRecipe(("words",), str(folder)))
    assert tokenizer.pad_token is None, "the harness gives a tokenizer one"
    assert len(tokenizer) == vocabulary
    assert unchanged(model, stored)
    assert all(module.training for module in model.modules())
    assert random.getstate() == states[0]
    assert numpy.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_the_harness_prints_nothing_and_its_loggers_are_restored(
    opened: Any, folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    import tqdm

    bar, level = tqdm.tqdm.__init__, logging.getLogger("lm_eval").level
    score(opened, folder, "words", "text", "writing")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert tqdm.tqdm.__init__ is bar
    assert logging.getLogger("lm_eval").level == level
    assert logging.getLogger("lm_eval").propagate


def test_progress_hears_every_request(opened: Any, folder: Path) -> None:
    class Heard:
        def __init__(self) -> None:
            self.totals: dict[str, int] = {}
            self.done: dict[str, int] = {}

        def phase(self, name: str, total: int) -> Heard:
            self.name = name
            self.totals[name], self.done[name] = total, 0
            return self

        def __enter__(self) -> Heard:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def advance(self, steps: int = 1) -> None:
            self.done[self.name] += steps

    heard = Heard()
    recipe = HarnessRecipe(("words", "text", "writing"), str(folder), batch_size=5)
    run_harness(opened.model, opened.tokenizer, recipe, progress=heard)
    assert heard.done == heard.totals
    assert heard.totals["harness: answers"] == 12 * 3
    assert heard.totals["harness: windows of text"] == 1
    assert heard.totals["harness: texts"] == 3


def test_the_digest_of_tasks_changes_with_settings_and_data(folder: Path) -> None:
    def digest() -> str:
        return load_harness_tasks(HarnessRecipe(("words",), str(folder))).digest()

    first = digest()
    assert digest() == first
    rows = json.loads((folder / "words.json").read_text())
    write_task(folder, "words", rows, **CHOICE, num_fewshot=1)
    second = digest()
    assert second != first
    write_task(folder, "words", rows[:-1], **CHOICE, num_fewshot=1)
    assert digest() not in (first, second)


# Refusals


def refused(**recipe: Any) -> str:
    with pytest.raises(InvalidInputError) as told:
        load_harness_tasks(HarnessRecipe(**recipe))
    message = str(told.value)
    assert "\n" not in message
    return message


def test_an_unknown_task_is_refused_with_the_nearest(folder: Path) -> None:
    assert "'hellaswga'; the nearest of" in refused(tasks=("hellaswga",))
    assert "hellaswag" in refused(tasks=("hellaswga",)).partition("nearest")[2]
    assert "`lm-eval ls tasks` lists them" in refused(tasks=("q!x?z",))


def test_own_tasks_stand_beside_those_of_the_harness(folder: Path) -> None:
    (folder / "bad.yaml").write_text("task: bad\n  - indented: wrong\n")
    told = refused(tasks=("words", "wordz", "bad"), include_path=str(folder))
    assert "'wordz'; the nearest of" in told and ": words" in told
    assert "bad.yaml line 2 is not valid YAML and was left out" in told


def test_data_that_would_have_to_be_downloaded_is_one_line() -> None:
    told = refused(tasks=("hellaswag",))
    assert "'hellaswag' cannot be loaded: Couldn't reach 'Rowan/hellaswag'" in told
    assert "what it reads must be on this machine" in told


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"unsafe_code": True}, "runs code that the model writes"),
        ({"doc_to_text": "{{nosuch.column}}"}, "loaded: UndefinedError: 'nosuch'"),
        ({"test_split": "absent"}, "cannot be loaded: KeyError: 'absent'"),
        ({"num_fewshot": 50}, "does not fit its data: ValueError: Sample larger than"),
    ],
)
def test_tasks_that_cannot_be_run_are_refused(
    folder: Path, settings: dict[str, Any], said: str
) -> None:
    rows = json.loads((folder / "words.json").read_text())
    write_task(folder, "odd", rows, **{**CHOICE, **settings})
    told = refused(tasks=("words", "odd"), include_path=str(folder))
    assert "harness task 'odd'" in told
    assert said in told


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"tasks": ()}, "no harness task is named"),
        ({"tasks": ("words",), "include_path": "nonesuch"}, "'nonesuch' is no directory"),
        ({"tasks": ("words",), "limit": 0}, "limit is 0; valid values: 1 and more"),
        ({"tasks": ("words",), "batch_size": 0}, "batch_size is 0"),
        ({"tasks": ("words",), "num_fewshot": -1}, "num_fewshot is -1; valid values: 0 and more"),
    ],
)
def test_numbers_and_paths_are_checked(recipe: dict[str, Any], said: str) -> None:
    assert said in refused(**recipe)


@pytest.mark.parametrize("missing", ["lm_eval", "sacrebleu"])
def test_without_the_extra_its_name_is_told(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    told = refused(tasks=("words",))
    assert told.startswith("harness tasks need lm-eval")
    assert "pip install 'modwright[text]'" in told
    assert (missing in told) or missing == "lm_eval"


def test_an_old_harness_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_eval_tasks, "harness_version", lambda: "lm-eval 0.4.9.1")
    assert "lm-eval 0.4.9.1 is too old; 0.4.13 or newer" in refused(tasks=("words",))


@pytest.mark.parametrize(
    ("model", "tokenizer", "said"),
    [
        (lambda: tiny_bert(BertForMaskedLM), encoder_tokenizer, "neither"),
        (lambda: tiny_bert(BertForMaskedLM), word_tokenizer, "depend on the tokens after it"),
        (tiny_t5, word_tokenizer, "encoder with a decoder"),
        (gpt2, lambda: None, "has no tokenizer"),
    ],
)
def test_only_causal_models_are_scored(model: Any, tokenizer: Any, said: str, folder: Path) -> None:
    with pytest.raises(InvalidInputError, match=said):
        run_harness(model(), tokenizer(), HarnessRecipe(("words",), str(folder)))
