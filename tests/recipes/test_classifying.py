"""A ViT is fine-tuned on a folder of images: its classes, its image processor, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

import modwright
from modwright.checkpoint import open as open_checkpoint
from modwright.checkpoint import save
from modwright.core.errors import InvalidInputError
from modwright.metrics.images import predict_classes
from modwright.recipes.dry_run import dry_run
from modwright.recipes.load import parse_recipe, resolved
from modwright.recipes.run import run

PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 16, "width": 16},
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and light images."""
    place, draw = tmp_path_factory.mktemp("images") / "shades", np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, low in (("dark", 0), ("light", 190)):
            (place / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(low, low + 60, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / split / name / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone without a classifier and without an image processor."""
    place = tmp_path_factory.mktemp("vit") / "vit"
    return save(modwright.open("preset:tiny-vit").model, place)


def recipe(vit: Path, folder: Path, *, num_classes: int | None = 2, **more: Any) -> Any:
    data = {"images": str(folder), "image_size": 16, **more.pop("data", {})}
    keys = {"objective": "cross_entropy", "max_steps": 12, "learning_rate": "3e-3"}
    step = {"data": data, **keys, "per_device_train_batch_size": 8, **more}
    model: Any = {"checkpoint": str(vit), "num_classes": num_classes}
    evaluate = {"accuracy": {"images": str(folder)}, "speed": None}
    tree = {"model": model, "steps": [{"train": step}], "evaluate": evaluate, "threads": 1}
    return parse_recipe(tree)


def test_a_backbone_learns_the_classes_of_a_folder_and_a_pipeline_answers(
    vit: Path, folder: Path, tmp_path: Path
) -> None:
    asked = recipe(vit, folder, data={"mean": 0.4, "std": 0.3, "augment": ["hflip"]})
    done = run(asked, tmp_path / "out", check=False)
    before, after = (stage.measured["accuracy"] for stage in done.report.stages)
    assert after["top1"] == 1.0 and before["images"] == 8
    assert before["recipe"] == after["recipe"] and before["recipe"]["classes"] == "by name"
    assert "mean=(0.4, 0.4, 0.4)" in after["recipe"]["prepared"].replace("[", "(").replace("]", ")")
    stored = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert stored["image_mean"] == [0.4] * 3 and stored["crop_size"] == {"height": 16, "width": 16}
    classify = pipeline("image-classification", str(tmp_path / "out"), device="cpu")
    opened = open_checkpoint(tmp_path / "out")
    for name in ("dark", "light"):
        image = folder / "val" / name / "0.png"
        found = classify(str(image))
        assert found[0]["label"] == name
        shares = predict_classes(opened, image)
        assert {one["label"]: pytest.approx(one["score"], abs=1e-5) for one in found} == shares
    assert run(asked, tmp_path / "out").done_before
    written = parse_recipe(resolved(asked))
    assert resolved(written) == resolved(asked)


def test_a_model_keeps_its_own_processor_and_images_are_normalized_as_it_says(
    vit: Path, folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    save(modwright.open(vit).model, own)
    (own / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    with pytest.raises(InvalidInputError, match=r"with mean 0\.45, and .* say mean: 0\.5 in data"):
        run(recipe(own, folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    same = {"mean": 0.5, "std": 0.5}
    with pytest.raises(InvalidInputError, match=r"say mean: 0\.5 in data"):
        dry_run(recipe(own, folder), tmp_path / "out")
    done = run(recipe(own, folder, data=same, max_steps=1), tmp_path / "out", check=False)
    kept = (tmp_path / "out" / "preprocessor_config.json").read_bytes()
    assert kept == (own / "preprocessor_config.json").read_bytes()
    (prepared,) = {stage.measured["accuracy"]["recipe"]["prepared"] for stage in done.report.stages}
    assert prepared == "by the model's processor"


def test_what_is_named_learns_and_the_rest_stays(vit: Path, folder: Path, tmp_path: Path) -> None:
    learns = {"lora": {"r": 2, "target": "mlp[*]", "modules_to_save": "classifier.*"}}
    done = run(recipe(vit, folder, learns=learns, max_steps=2), tmp_path / "out", check=False)
    begun = modwright.open(vit).model.state_dict()
    ended = modwright.open(tmp_path / "out").model.state_dict()
    moved = {
        name.removeprefix("vit.")
        for name, tensor in ended.items()
        if (old := begun.get(name.removeprefix("vit."))) is None or not torch.equal(tensor, old)
    }
    weights = {f"layers.{i}.mlp.{layer}.weight" for i in range(4) for layer in ("fc1", "fc2")}
    assert moved == weights | {"classifier.weight", "classifier.bias"}
    assert done.report.stages[1].reasons["parameters"] == 4 * 2 * 2 * (48 + 96) + 2 * 49


@pytest.mark.parametrize(
    ("num_classes", "data", "says"),
    [
        (None, {}, "model: ViTModel is no classifier of images"),
        (1, {}, "model: has 1 classes, the images 2; num_classes gives it others"),
        (2, {"image_size": 24}, "model: does not take images of .*shades: "),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    num_classes: int | None, data: Any, says: str, vit: Path, folder: Path, tmp_path: Path
) -> None:
    asked = recipe(vit, folder, num_classes=num_classes, data=data)
    with pytest.raises(InvalidInputError, match=says) as refused:
        run(asked, tmp_path / "out")
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_steps_that_prepare_images_in_two_ways_are_refused(
    vit: Path, folder: Path, tmp_path: Path
) -> None:
    tree = resolved(recipe(vit, folder))
    other = {"train": {**tree["steps"][0]["train"]}}
    other["train"]["data"] = {**other["train"]["data"], "std": 0.5}
    asked = parse_recipe({**tree, "steps": [*tree["steps"], other]})
    with pytest.raises(InvalidInputError, match="are not prepared as in the step before"):
        run(asked, tmp_path / "out")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"checkpoint": "vit", "classes": 3}, r"model\.classes: unknown key 'classes'"),
        ({"checkpoint": 3}, r"model\.checkpoint: must be text, not 3"),
        ({"checkpoint": "vit", "num_classes": 0}, r"model\.num_classes: is a whole number above"),
        ({"checkpoint": "vit", "num_classes": True}, r"model\.num_classes: is a whole number"),
    ],
)
def test_a_model_with_other_classes_is_checked_when_it_is_read(model: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        parse_recipe({"model": model, "steps": [{"method": "drop", "parts": "mlp[0]"}]})
