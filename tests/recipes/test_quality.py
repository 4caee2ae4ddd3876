"""What a recipe measures of quality: before and after in one run, refused before any work."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from harness_tasks import CHOICE, write_task, write_tasks
from modwright.checkpoint import open as open_checkpoint
from modwright.core.errors import InvalidInputError
from modwright.core.progress import SILENT
from modwright.metrics.lm_eval import HarnessRecipe
from modwright.metrics.lm_eval_tasks import load_harness_tasks
from modwright.metrics.perplexity import PerplexityRecipe
from modwright.recipes import Recipe
from modwright.recipes.quality import evaluate, evaluation_digest, measure_quality
from modwright.recipes.run import run
from modwright.recipes.schema import Evaluate, PerplexityOf
from modwright.report import read_report
from wordy import write_checkpoint

from .shared import DROP, NOTHING, no_work

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks")


def asking(text: Path, **more: Any) -> dict[str, Any]:
    return {**NOTHING, "perplexity": {"data": str(text), "windows": 2, "length": 16}, **more}


def test_agreement_and_scores_stand_in_the_report_before_and_after(
    recipe: MakeRecipe, wordy_text: Path, folder: Path, tmp_path: Path
) -> None:
    harness = {"tasks": ["words"], "include_path": str(folder), "batch_size": 4}
    asked = recipe(steps=DROP, evaluate=asking(wordy_text, agreement=True, harness=harness))
    out = run(asked, tmp_path / "out", check=False).output
    report = read_report(out)
    before, after = report.stages
    assert before.agreement is None, "the baseline is what all is compared with"
    assert after.agreement is not None
    assert after.agreement["kl"] > 0 and 0 < after.agreement["top1"] <= 1
    assert after.agreement["recipe"]["teacher"] == "the baseline"
    assert after.agreement["recipe"]["sha256"] == after.quality["recipe"]["sha256"]
    for stage in report.stages:
        assert stage.harness is not None
        assert stage.harness["recipe"]["harness"].startswith("lm-eval ")
        assert stage.harness["recipe"]["tasks"]["words"]["documents"] == "12 of 12"
        assert stage.seconds["harness"] > 0
    assert before.harness["recipe"] == after.harness["recipe"]
    for name in ("report.md", "report.html", "README.md"):
        page = (out / name).read_text().replace("\\_", "_")
        assert "KL, nats/token" in page and "words acc" in page and "lm-eval 0." in page


def test_a_run_that_has_the_scores_takes_them_over_until_a_task_changes(
    recipe: MakeRecipe,
    wordy_text: Path,
    folder: Path,
    wordy_model: Path,
) -> None:
    opened = open_checkpoint(wordy_model)
    harness = {"tasks": ["words"], "include_path": str(folder)}
    wanted = recipe(evaluate=asking(wordy_text, harness=harness)).evaluate
    first = evaluation_digest(opened, wanted)
    assert evaluation_digest(opened, wanted) == first
    assert evaluation_digest(opened, Evaluate(perplexity=wanted.perplexity)) != first
    write_task(
        folder, "words", [{"question": "w7", "choices": ["w8", "w9"], "answer": 1}], **CHOICE
    )
    assert evaluation_digest(opened, wanted) != first


def test_nothing_to_measure_has_no_digest(wordy_model: Path) -> None:
    assert evaluation_digest(open_checkpoint(wordy_model), Evaluate(perplexity=None)) is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"agreement": True, "perplexity": None}, "evaluate.agreement: .* which is null; give"),
        ({"harness": {"tasks": ["nonesuch"]}}, "evaluate.harness: unknown harness task 'nonesuch'"),
        ({"harness": {"tasks": ["hellaswag"]}}, "evaluate.harness: .*'hellaswag' cannot be loaded"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(
    recipe: MakeRecipe,
    wordy_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, Any],
    said: str,
) -> None:
    no_work(monkeypatch)
    asked = recipe(steps=DROP, evaluate=asking(wordy_text, **more))
    with pytest.raises(InvalidInputError, match=said):
        run(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_has_no_agreement(tiny: Any, tmp_path: Path) -> None:
    bare = write_checkpoint(tiny("tiny-llama"), tmp_path / "bare", tokenizer=False)
    with pytest.raises(InvalidInputError, match=r"evaluate\.agreement: .*bare has no tokenizer"):
        evaluation_digest(open_checkpoint(bare), Evaluate(agreement=True))


def test_an_encoder_is_measured_by_its_hidden_states(
    tiny: Any, wordy_text: Path, wordy_model: Path
) -> None:
    """It has no perplexity; agreement reads the same windows."""
    encoder = tiny("tiny-bert", auto="AutoModel")
    changed = copy.deepcopy(encoder)
    changed.encoder.layer[0].output.dense.weight.data.mul_(1.5)
    tokenizer = open_checkpoint(wordy_model).tokenizer
    wanted = Evaluate(
        perplexity=PerplexityOf(data=str(wordy_text), windows=2, length=16), agreement=True
    )
    found, seconds = measure_quality(changed, tokenizer, wanted, SILENT, encoder)
    assert set(found) == set(seconds) == {"agreement"}
    assert 0 < found["agreement"]["cosine"] < 1
    assert "kl" not in found["agreement"]


# One model, or two


def test_two_models_are_measured_by_the_same_recipes_in_one_call(
    tiny: Any, wordy_model: Path, wordy_text: Path, folder: Path, tmp_path: Path
) -> None:
    other = write_checkpoint(tiny("tiny-llama", intermediate_size=64), tmp_path / "other")
    text = PerplexityRecipe(str(wordy_text), windows=2, length=16)
    tasks = load_harness_tasks(HarnessRecipe(("words",), str(folder)))
    found = evaluate(
        open_checkpoint(other), text, against=open_checkpoint(wordy_model), tasks=tasks
    )
    assert found.against is not None and found.against.agreement is None
    assert found.perplexity.recipe == found.against.perplexity.recipe
    assert found.perplexity.value != found.against.perplexity.value
    assert found.harness.recipe == found.against.harness.recipe
    assert found.agreement.recipe["teacher"] == found.against.model
    alone = evaluate(open_checkpoint(other), text)
    assert alone.perplexity.value == found.perplexity.value
    assert alone.agreement is alone.harness is alone.against is None


def test_two_vocabularies_are_refused_before_any_pass(
    tiny: Any, wordy_model: Path, wordy_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wordy import word_tokenizer

    other = write_checkpoint(tiny("tiny-llama"), tmp_path / "other", tokenizer=False)
    word_tokenizer(100).save_pretrained(other)
    opened, original = open_checkpoint(other), open_checkpoint(wordy_model)
    for model in (opened.model, original.model):
        monkeypatch.setattr(model, "forward", None)
    text = PerplexityRecipe(str(wordy_text), windows=2, length=16)
    with pytest.raises(
        InvalidInputError, match=r"different tokenizers: 128 and 100 tokens, .* id 100"
    ):
        evaluate(opened, text, against=original)


@pytest.mark.parametrize("perplexity", [True, False])
def test_fault_A27_agreement_of_a_model_of_images_is_refused_before_work(
    tmp_path: Path, perplexity: bool
) -> None:
    from modwright.models import create_model

    model = create_model("poolformer_s12", depths=[1], hidden_sizes=[8], num_classes=3)
    model.save_pretrained(tmp_path / "small")
    asked = Evaluate(agreement=True, perplexity=PerplexityOf() if perplexity else None)
    with pytest.raises(InvalidInputError, match=r"evaluate\.agreement: it is measured on"):
        evaluation_digest(open_checkpoint(tmp_path / "small"), asked)
