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
from modwright.metrics.registry import Subject, make_metric
from modwright.recipes import Recipe
from modwright.recipes.quality import evaluate, evaluation_digest, measure_all, supported
from modwright.recipes.run import run
from modwright.recipes.schema import Evaluate
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
    assert "divergence" not in before.measured, "the baseline is what all is compared with"
    near, quality = after.measured["divergence"], after.measured["perplexity"]
    assert near["kl"] > 0 and 0 < near["top1"] <= 1
    assert near["recipe"]["teacher"] == "the baseline"
    assert near["recipe"]["sha256"] == quality["recipe"]["sha256"]
    recipes = [stage.measured["lm_eval"]["recipe"] for stage in report.stages]
    assert recipes[0] == recipes[1]
    assert recipes[0]["harness"].startswith("lm-eval ")
    assert recipes[0]["tasks"]["words"]["documents"] == "12 of 12"
    assert all(stage.seconds["lm_eval"] > 0 for stage in report.stages)
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
    assert evaluation_digest(opened, Evaluate(perplexity=wanted.metrics["perplexity"])) != first
    write_task(
        folder, "words", [{"question": "w7", "choices": ["w8", "w9"], "answer": 1}], **CHOICE
    )
    assert evaluation_digest(opened, wanted) != first


def test_nothing_to_measure_has_no_digest(wordy_model: Path) -> None:
    assert evaluation_digest(open_checkpoint(wordy_model), Evaluate(perplexity=None)) is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"agreement": True, "perplexity": {"windows": 9999, "length": 8}},
            "evaluate.perplexity: .* windows",
        ),
        ({"divergence": {"windows": 9999, "length": 8}}, "evaluate.divergence: .* windows"),
        ({"harness": {"tasks": ["nonesuch"]}}, "evaluate.lm_eval: unknown harness task 'nonesuch'"),
        ({"lm_eval": {"tasks": ["hellaswag"]}}, "evaluate.lm_eval: .*'hellaswag' cannot be loaded"),
        ({"accuracy": {"images": "digits"}}, "evaluate.accuracy: it needs an image classifier"),
        ({"psnr": True}, "evaluate.psnr: it needs a super-resolution model"),
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
    with pytest.raises(InvalidInputError, match=r"evaluate\.divergence: .*bare has no tokenizer"):
        evaluation_digest(open_checkpoint(bare), Evaluate(agreement=True))


def test_an_encoder_is_measured_by_its_hidden_states(
    tiny: Any, wordy_text: Path, wordy_model: Path
) -> None:
    """It has no perplexity; agreement reads the same windows."""
    encoder = tiny("tiny-bert", auto="AutoModel")
    changed = copy.deepcopy(encoder)
    changed.encoder.layer[0].output.dense.weight.data.mul_(1.5)
    tokenizer = open_checkpoint(wordy_model).tokenizer
    windows = {"data": str(wordy_text), "windows": 2, "length": 16}
    wanted = Evaluate(perplexity=windows, agreement=True, generate=None, speed=None)
    subject = Subject(changed, tokenizer, reference=Subject(encoder, tokenizer))
    metrics, left_out = supported(wanted, subject)
    assert [note.partition(":")[0] for note in left_out] == [
        "perplexity is not measured",
        "second_text is not measured",
    ]
    found, seconds = measure_all(metrics, subject, SILENT)
    assert set(found) == set(seconds) == {"divergence"}
    assert 0 < found["divergence"]["cosine"] < 1
    assert "kl" not in found["divergence"]


def test_a_metric_that_is_asked_for_by_name_is_refused_and_one_by_default_left_out(
    tiny: Any, wordy_model: Path
) -> None:
    subject = Subject(tiny("tiny-bert", auto="AutoModel"), open_checkpoint(wordy_model).tokenizer)
    names = [metric.name for metric in supported(Evaluate(), subject)[0]]
    assert names == ["speed"]
    with pytest.raises(
        InvalidInputError, match=r"evaluate\.perplexity: it needs a causal language"
    ):
        supported(Evaluate(perplexity=True), subject)
    assert supported(Evaluate(perplexity={"required": False}), subject)[0][0].name == "speed"


# One model, or two


def test_two_models_are_measured_by_the_same_recipes_in_one_call(
    tiny: Any, wordy_model: Path, wordy_text: Path, folder: Path, tmp_path: Path
) -> None:
    other = write_checkpoint(tiny("tiny-llama", intermediate_size=64), tmp_path / "other")
    windows = {"data": str(wordy_text), "windows": 2, "length": 16}
    text = make_metric("perplexity", windows)
    asked = [text, make_metric("divergence", windows)]
    asked.append(make_metric("lm_eval", {"tasks": ["words"], "include_path": str(folder)}))
    found = evaluate(open_checkpoint(other), asked, against=open_checkpoint(wordy_model))
    assert found.against is not None
    one, two = found.against.measured, found.measured
    assert set(one) == {"perplexity", "lm_eval"} and set(two) == {*one, "divergence"}
    assert one["perplexity"]["recipe"] == two["perplexity"]["recipe"]
    assert one["perplexity"]["value"] != two["perplexity"]["value"]
    assert one["lm_eval"]["recipe"] == two["lm_eval"]["recipe"]
    assert two["divergence"]["recipe"]["teacher"] == found.against.model
    alone = evaluate(open_checkpoint(other), [text])
    assert alone.measured["perplexity"]["value"] == two["perplexity"]["value"]
    assert set(alone.measured) == {"perplexity"} and alone.against is None


def test_two_vocabularies_are_refused_before_any_pass(
    tiny: Any, wordy_model: Path, wordy_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wordy import word_tokenizer

    other = write_checkpoint(tiny("tiny-llama"), tmp_path / "other", tokenizer=False)
    word_tokenizer(100).save_pretrained(other)
    opened, original = open_checkpoint(other), open_checkpoint(wordy_model)
    for model in (opened.model, original.model):
        monkeypatch.setattr(model, "forward", None)
    options = {"data": str(wordy_text), "windows": 2, "length": 16}
    text = [make_metric(name, options) for name in ("perplexity", "divergence")]
    with pytest.raises(
        InvalidInputError, match=r"different tokenizers: 128 and 100 tokens, .* id 100"
    ):
        evaluate(opened, text, against=original)


@pytest.mark.parametrize("perplexity", [True, False])
def test_fault_A27_divergence_of_a_model_of_images_without_images_is_refused_before_work(
    tmp_path: Path, perplexity: bool
) -> None:
    from modwright.models import create_model

    model = create_model("poolformer_s12", depths=[1], hidden_sizes=[8], num_classes=3)
    model.save_pretrained(tmp_path / "small")
    asked = Evaluate(agreement=True, perplexity={} if perplexity else None)
    with pytest.raises(
        InvalidInputError, match=r"evaluate\.divergence: it is measured on images .* `images`"
    ):
        evaluation_digest(open_checkpoint(tmp_path / "small"), asked)
