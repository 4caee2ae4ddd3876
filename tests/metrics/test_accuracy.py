"""Accuracy and divergence of image classifiers equal what is counted by hand."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import disturbed

from labeled_images import digits
from modwright.cli.entry import run_command
from modwright.core.errors import InvalidInputError
from modwright.metrics.accuracy import image_accuracy
from modwright.metrics.divergence import image_divergence
from modwright.metrics.images import eval_images
from modwright.metrics.registry import Subject, make_metric
from modwright.models import create_model
from modwright.training.fitting import accuracy

CLASSES = ("ant", "bee", "cat", "dog", "emu", "fox", "gnu")


def classifier(classes: tuple[str, ...] = CLASSES, **more: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"depths": [1, 1], "hidden_sizes": [8, 16], "image_size": 32, **more}
    model = create_model("poolformer_s12", num_classes=len(classes), **sizes)
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {name: index for index, name in enumerate(classes)}
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of each class."""
    draws = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(3):
            pixels = draws.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    return tmp_path / "images"


def prepared(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of a folder by hand: 32 x 32, as images are prepared for training."""
    pixels, labels = [], []
    for path in sorted(folder.rglob("*.png")):
        resized = Image.open(path).resize((38, 32), Image.Resampling.BICUBIC)
        fitted = np.asarray(resized.crop((3, 0, 35, 32)))  # the middle
        raw = torch.from_numpy(fitted.copy()).permute(2, 0, 1).float() / 255
        pixels.append((raw - 0.45) / 0.225)
        labels.append(CLASSES.index(path.parent.name))
    return torch.stack(pixels), torch.tensor(labels)


@torch.no_grad()
def test_a_folder_is_counted_image_by_image(folder: Path) -> None:
    model = classifier().train()
    pixels, labels = prepared(folder)
    images = eval_images(Subject(model), str(folder), batch_size=5)
    found = image_accuracy(model, images)
    assert model.training, "modes are restored"
    logits = model.eval()(pixel_values=pixels).logits
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert found.images == 21 and found.finite
    assert found.top1 == pytest.approx(float((ranks < 1).float().mean()))
    assert found.top5 == pytest.approx(float((ranks < 5).float().mean()))
    assert 0 < found.top5 < 1
    assert sum(found.by_window["counts"]) == 21
    assert found.recipe["classes"] == "by name"
    assert json.loads(json.dumps(found.recipe)) == found.recipe


def test_digits_are_counted_as_training_counts_them() -> None:
    names = tuple("0123456789")
    model = classifier(names)
    subject = Subject(model.eval())
    found = image_accuracy(model, eval_images(subject, "digits"))
    assert found.images == 500
    assert found.top1 == pytest.approx(accuracy(model, digits().test))
    half = eval_images(subject, "digits", limit=250)
    assert len(half) == 250 and half.digest != eval_images(subject, "digits").digest


def test_classes_are_found_by_name_whatever_their_order(folder: Path) -> None:
    order = (*reversed(CLASSES), "hen")
    images = eval_images(Subject(classifier(order)), str(folder))
    assert images.labels[0] == order.index("ant")
    unnamed = classifier(tuple(f"LABEL_{index}" for index in range(7)))
    told = eval_images(Subject(unnamed), str(folder)).recipe["classes"]
    assert told.startswith("by the order of their names")
    with pytest.raises(InvalidInputError, match="class 'gnu', which m has not; it has 6: ant, bee"):
        eval_images(Subject(classifier(CLASSES[:6]), name="m"), str(folder))


def test_a_folder_with_splits_is_measured_on_the_one_held_out(folder: Path) -> None:
    (folder / "train").mkdir()
    for name in CLASSES:
        (folder / name).rename(folder / "train" / name)
        (folder / "val" / name).mkdir(parents=True)
        (folder / "train" / name / "0.png").rename(folder / "val" / name / "0.png")
    images = eval_images(Subject(classifier()), str(folder))
    assert len(images) == 7


def test_logits_that_are_no_numbers_are_never_right(folder: Path) -> None:
    model = classifier()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    found = image_accuracy(model, eval_images(Subject(model), str(folder)))
    assert (found.top1, found.top5, found.finite) == (0.0, 0.0, False)


def test_the_images_processor_of_the_model_prepares_where_it_has_one(
    folder: Path, tmp_path: Path
) -> None:
    model = classifier()
    stored = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    images = eval_images(Subject(model, folder=tmp_path), str(folder))
    pixels, _ = next(images.batches())
    assert images.recipe["prepared"] == "by the model's processor"
    assert pixels.shape == (21, 3, 32, 32) and float(pixels.abs().max()) <= 1


# Divergence


@torch.no_grad()
def test_divergence_of_classifiers_is_the_mean_over_images(folder: Path) -> None:
    one = classifier()
    other = disturbed(one)
    images = eval_images(Subject(one), str(folder), batch_size=4)
    found = image_divergence(one, other, images)
    pixels, _ = prepared(folder)
    p, q = (m.eval()(pixel_values=pixels).logits.double().log_softmax(-1) for m in (one, other))
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-6)
    assert found.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))
    assert found.tokens == 21 and found.recipe["unit"] == "nats per image"
    same = image_divergence(one, one, images)
    assert (same.kl, same.top1) == (0.0, 1.0)
    with pytest.raises(InvalidInputError, match="have different classes"):
        image_divergence(one, classifier(CLASSES[:6]), images)


def test_fault_A27_a_recipe_measures_accuracy_and_divergence_of_classifiers(
    folder: Path, tmp_path: Path
) -> None:
    from modwright.recipes.load import parse_recipe
    from modwright.recipes.run import run
    from modwright.report import render_markdown, summary_sentences

    classifier().save_pretrained(tmp_path / "model")
    images = {"images": str(folder)}
    tree = {
        "model": str(tmp_path / "model"),
        "steps": [{"method": "drop", "parts": "attention[0]"}],
        "evaluate": {"speed": None, "accuracy": images, "divergence": images},
    }
    report = run(parse_recipe(tree), tmp_path / "out", check=False).report
    before, after = report.stages
    assert set(before.measured) == {"accuracy"}
    assert set(after.measured) == {"accuracy", "divergence"}
    assert after.measured["divergence"]["kl"] > 0
    page = render_markdown(report)
    assert "Top-1 accuracy" in page and "Top-1 agreement" in page and "points" in page
    said = " ".join(summary_sentences(report))
    assert "Top-1 accuracy" in said and "mean KL of 21 images" in said
    assert "Perplexity" not in page


def test_eval_measures_images_and_refuses_what_does_not_go_with_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = classifier()
    model.save_pretrained(tmp_path / "model")
    disturbed(model).save_pretrained(tmp_path / "other")
    line = f"eval {tmp_path / 'other'} --images {folder}"
    assert run_command(shlex.split(f"{line} --against {tmp_path / 'model'} --json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"]["images"] == found["against"]["accuracy"]["images"] == 21
    assert found["divergence"]["kl"] > 0 and "perplexity" not in found
    assert run_command(shlex.split(line)) == 0
    printed = capsys.readouterr().out
    assert "top-1 " in printed and "top-5 " in printed and "of 21 images" in printed
    for wrong, told in (
        (f"eval {tmp_path / 'model'}", "perplexity is measured on text, and"),
        (f"eval {tmp_path / 'model'} --images gone", "unknown images dataset 'gone'"),
        (f"eval preset:tiny-llama --images {folder}", "accuracy needs an image classifier"),
    ):
        assert run_command(shlex.split(wrong)) == 2
        err = capsys.readouterr().err
        assert told in err and len(err.splitlines()) == 1


def test_a_metric_of_images_checks_its_options() -> None:
    with pytest.raises(InvalidInputError, match="needs the option images"):
        make_metric("accuracy")
    with pytest.raises(InvalidInputError, match="limit: must be 1 or more, not 0"):
        make_metric("accuracy", {"images": "digits", "limit": 0})


def test_a_model_of_images_without_a_head_is_refused_before_any_work(
    folder: Path, tiny: Any
) -> None:
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    bare = ViTModel(ViTConfig(**sizes, num_attention_heads=2, image_size=8, patch_size=4))
    bare.config.id2label = dict(enumerate(CLASSES))
    with pytest.raises(InvalidInputError, match="gives no logits over classes"):
        make_metric("accuracy", {"images": str(folder)}).require(Subject(bare))
