"""``train``, ``import``, ``rename`` and ``upscale``, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from modwright.models import create_model, to_checkpoint_format

Command = Callable[[str], Any]

RECIPE: dict[str, Any] = {
    "model": {
        "name": "poolformer_s12",
        "depths": [1, 1],
        "hidden_sizes": [8, 16],
        "stem": [3, 4, 1],
    },
    "data": {"images": "digits", "train": 64},
    "settings": {"epochs": 2, "batch_size": 16},
    "threads": 1,
}


@pytest.fixture
def recipe(place: Path) -> Path:
    (place / "train.yaml").write_text(yaml.safe_dump(RECIPE))
    return place / "train.yaml"


# train


def test_a_training_leaves_a_checkpoint_with_its_course(command: Command, recipe: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    done = command("train train.yaml -o out")
    assert done.code == 0, done.err
    assert "accuracy on test images: " in done.out
    auto = "AutoModelForImageClassification"
    load = f"import modwright; from transformers import {auto}; {auto}.from_pretrained('out')"
    assert f"load: {load}" in done.out
    assert "learns from digits: 64 rows to learn from, 1,733 to measure on" in done.err
    info = json.loads(Path("out/training.json").read_text())
    assert (info["steps"], info["data"]["rows"]["test"]) == (8, 1733)
    assert [entry["step"] for entry in info["log"] if "eval_accuracy" in entry] == [4, 8]
    assert [entry["loss"] > 0 for entry in info["log"] if "loss" in entry] == [True, True]
    assert info["recipe"]["settings"]["clip"] == 1.0
    assert Path("out/curves.svg").read_text().startswith("<svg")
    assert "accuracy on the test images" in Path("out/curves.svg").read_text()
    model: Any = AutoModelForImageClassification.from_pretrained("out").eval()
    assert model.config.id2label[3] == "3"
    from modwright.data import make_data
    from modwright.training import accuracy

    data = make_data({"images": "digits", "train": 64})
    assert accuracy(model, data.test) == info["accuracy"]
    processor = AutoImageProcessor.from_pretrained("out")
    assert processor.crop_size == {"height": 32, "width": 32}
    again = command("train train.yaml -o out --json")
    assert again.code == 0 and json.loads(again.out) == info
    assert again.err == "out holds the result of this recipe already; --force makes it again\n"
    # the resolved recipe makes the same again
    made = command("train out/recipe.yaml -o again")
    assert made.code == 0, made.err
    weights = [Path(folder, "model.safetensors").read_bytes() for folder in ("out", "again")]
    assert weights[0] == weights[1]


def test_a_checkpoint_teaches_and_is_trained_further(command: Command, recipe: Path) -> None:
    assert command("train train.yaml -o teacher").code == 0
    (recipe.parent / "more.yaml").write_text(
        "extends: train.yaml\nmodel: {checkpoint: teacher}\n"
        "objective: {distillation: {teacher: teacher, temperature: 2}}\n"
        "settings: {average: 0.9}\n"
    )
    tree = {**RECIPE, "model": {"checkpoint": "teacher"}, "checkpoint_every": 3}
    tree["objective"] = {"distillation": {"teacher": "teacher", "temperature": 2}}
    (recipe.parent / "more.yaml").write_text(yaml.safe_dump(tree))
    done = command("train more.yaml -o out --set settings.average=0.9")
    assert done.code == 0, done.err
    info = json.loads(Path("out/training.json").read_text())
    assert {"classes", "teacher"} <= set().union(*info["log"])
    other = command(
        "train train.yaml -o other --set 'model={checkpoint: teacher, num_classes: 12}'"
    )
    assert other.code == 0, other.err


def shades(folder: Path, *names: str) -> str:
    """Ten images for each class, and the key that names them."""
    drawn = np.random.default_rng(0)
    for level, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(10):
            pixels = drawn.integers(0, 60, (40, 50, 3)) + 90 * level
            Image.fromarray(pixels.astype("uint8")).save(folder / name / f"{index}.png")
    return f"'data={{images: {folder.name}, image_size: 32, held_out: 0.3}}'"


def test_fault_A8_a_model_that_is_trained_further_answers_in_the_new_names(
    command: Command, recipe: Path
) -> None:
    first = shades(recipe.parent / "first", "blue", "green", "red")
    second = shades(recipe.parent / "second", "amber", "blue", "green")

    def labels(folder: str) -> list[str]:
        return list(json.loads(Path(folder, "config.json").read_text())["id2label"].values())

    assert command(f"train train.yaml -o one --set {first}").code == 0
    assert labels("one") == ["blue", "green", "red"]
    done = command(f"train train.yaml -o two --set {second} --set 'model={{checkpoint: one}}'")
    assert done.code == 0, done.err
    assert labels("two") == ["amber", "blue", "green"]
    assert "classes were blue, green, red and are now" in done.err
    more = "'model={checkpoint: one, num_classes: 4}'"
    assert command(f"train train.yaml -o more --set {second} --set {more}").code == 0
    assert labels("more") == ["amber", "blue", "green", "LABEL_3"]
    given = "'model.id2label={0: Amber, 1: Blue, 2: Green}'"
    assert command(f"train train.yaml -o given --set {second} --set {given}").code == 0
    assert labels("given") == ["Amber", "Blue", "Green"]
    teacher = "'objective={distillation: {teacher: one}}'"
    done = command(f"train train.yaml -o taught --set {second} --set {teacher}")
    assert done.code == 2 and "objective.teacher: its classes are blue, green, red" in done.err


def test_images_of_a_folder(command: Command, recipe: Path) -> None:
    drawn = np.random.default_rng(0)
    for name in ("dark", "light"):
        folder = recipe.parent / "images" / name
        folder.mkdir(parents=True)
        for index in range(10):
            pixels = drawn.integers(0, 120, (40, 50, 3)) + 130 * (name == "light")
            Image.fromarray(pixels.astype("uint8")).save(folder / f"{index}.png")
    data = "'data={pictures: folder, folder: images, side: 32, test: 0.3}'"
    done = command(f"train train.yaml -o out --set {data}")
    assert done.code == 0, done.err
    info = json.loads(Path("out/training.json").read_text())
    assert info["data"]["labels"] == ["dark", "light"]
    assert json.loads(Path("out/config.json").read_text())["id2label"] == {
        "0": "dark",
        "1": "light",
    }


REFUSED = [
    ("", "--set settings.epohs=3", ("unknown key", "did you mean 'epochs'?")),
    ("", "--set settings.epochs=0", ("settings.epochs=0", "epochs is above 0")),
    ("", "--set settings.schedule=cosin", ("unknown schedule", "did you mean 'cosine'?")),
    ("", "--set settings.more.bf15=true", ("TrainingArguments", "did you mean 'bf16'?")),
    ("", "--set settings.more.output_dir=x", ("say it with the key output",)),
    ("", "--set model.name=poolformer_s13", ("unknown model", "did you mean 'poolformer_s")),
    ("", "--set model.dephts=[1]", ("model.dephts", "did you mean 'depths'?")),
    ("", "--set model.depths=[1]", ("model: hidden_sizes has 2 entries for 1 stages",)),
    ("", "--set model.layer_scale_init=x", ("layer_scale_init is float | None, not 'x'",)),
    ("", "--set model={}", ("one of the keys name and checkpoint",)),
    ("", "--set model.num_classes=3", ("has 3 classes, the images 10",)),
    ("", "--set 'model={name: craft_x2}'", ("model.name", "craft_x2 is no classifier")),
    ("", "--set 'model={checkpoint: gone}'", ("gone",)),
    ("", "--set data.images=digit", ("unknown images dataset 'digit'", "'digits'?")),
    ("", "--set 'data={pictures: idx}'", ("data: folder: is missing",)),
    ("", "--set 'data={pictures: idx, folder: gone}'", ("unknown images dataset 'gone'",)),
    ("", "--set data.train=9999", ("of 1797 digits 1 to 1796",)),
    ("", "--set data.image_size=8", ("model: does not take images of", "at least 32")),
    ("", "--set 'objective={loss: distillation}'", ("distillation.teacher", "is missing")),
    ("", "--set 'objective={loss: cross_entropy, mixup: -1}'", ("mixup is at least 0",)),
    ("", "--set tensorboard=true", ("pip install tensorboard",)),
    ("", "--set steps=[]", ("unknown key", "valid keys: model, data, objective")),
    ("full", "", ("'full'", "something else", "--force")),
]


@pytest.mark.parametrize(("out", "change", "said"), REFUSED)
def test_what_is_wrong_with_a_recipe_is_one_line(
    out: str,
    change: str,
    said: tuple[str, ...],
    command: Command,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (recipe.parent / "full").mkdir()
    (recipe.parent / "full" / "x").write_text("")
    monkeypatch.setattr("modwright.recipes.training.find_spec", lambda name: None)
    done = command(f"train train.yaml -o {out or 'out'} {change}")
    assert done.code == 2, done.err
    assert done.out == "" and done.err.count("\n") == 1, done.err
    for words in said:
        assert words in done.err
    assert sorted(entry.name for entry in recipe.parent.iterdir()) == ["full", "train.yaml"]


def test_the_schema_knows_every_option(command: Command) -> None:
    done = command("schema --train")
    assert done.code == 0
    schema = json.loads(done.out)
    kinds = {one["title"]: one for one in schema["properties"]["data"]["anyOf"][1]["oneOf"]}
    assert {"images: digits", "images: a path", "text: lee"} <= set(kinds)
    assert kinds["images: a path"]["required"] == ["images"]
    assert kinds["images: digits"]["properties"]["image_size"]["description"] == "Pixels of a side."
    assert schema["anyOf"][1]["required"] == ["model", "data"]


# import and rename


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return to_checkpoint_format(create_model("poolformer_s12", num_classes=7), "official")


def test_a_file_comes_in_and_goes_back_with_its_bits(
    command: Command, place: Path, official: Any
) -> None:
    torch.save({"model": official}, place / "a.pth")
    done = command("import poolformer_s12 a.pth -o out")
    assert done.code == 0, done.err
    assert "poolformer_s12: " in done.out and "7 classes" in done.out
    assert f"format official: {len(official)} tensors taken" in done.out
    assert "not in the file, left as made: none" in done.out
    assert "no config.json beside the weights" in done.out
    for name in ("back.safetensors", "back.pth"):
        assert command(f"rename out --to official -o {name}").code == 0
        from modwright.models.importing import read_weights

        back = read_weights(name)
        assert back.keys() == official.keys()
        assert all(back[key].equal(tensor) for key, tensor in official.items())
    info = json.loads(command("import poolformer_s12 a.pth -o o2 --set num_classes=3 --json").out)
    assert info["fresh"] == ["head.fc.bias", "head.fc.weight"]
    again = command("rename out -o back.pth")
    assert again.code == 2 and "--force" in again.err
    assert command("rename out -o back.pth --force").code == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import metafomer a.pth -o out", ("unknown model", "did you mean 'metaformer'?")),
        ("import poolformer_m36 a.pth -o out", ("missing from the file: ", "of another shape")),
        ("import poolformer_s12 gone.pth -o out", ("gone.pth: no such file",)),
        ("import poolformer_s12 words.pth -o out", ("words.pth cannot be read",)),
        ("import poolformer_s12 a.pth -o out --set num_clases=3", ("num_clases",)),
        ("import poolformer_s12 a.pth -o out --set x", ("KEY=VALUE", "num_classes=10")),
        ("import poolformer_s12 a.pth -o out --set name=x", ("--set name: the config has no",)),
        ("import poolformer_s12 a.pth -o out --set pretrained=1", ("--set pretrained: the",)),
        (
            "import poolformer_s12 a.pth -o out --layout tim",
            ("unknown format", "auto, official, transformers"),
        ),
        ("import metaformer a.pth -o out --resize", ("name it, not the paper",)),
        ("import poolformer_s12 a.pth -o full", ("'full'", "not empty")),
        ("import poolformer_s12 a.pth", ("usage: modwright import NAME CHECKPOINT -o DIR",)),
        ("rename gone -o a.bin", ("gone",)),
        ("rename full -o x.gguf", (".safetensors, .pth, .pt, .bin", "'.gguf'")),
        ("upscale full small.png -o full", ("it is a directory",)),
        ("upscale full gone.png -o large.png", ("gone.png: no such file",)),
        ("upscale full words.pth -o large.png", ("no image that can be read",)),
        ("upscale full alpha.png -o large.png", ("alpha channel",)),
        ("upscale full clear.png -o large.png", ("alpha channel",)),
        ("upscale full moving.gif -o large.png", ("several frames",)),
        ("upscale full small.png -o words.pth", ("exists", "--force")),
    ],
)
def test_what_cannot_be_read_or_written_is_one_line(
    line: str, said: tuple[str, ...], command: Command, place: Path, official: Any
) -> None:
    torch.save({"model": official}, place / "a.pth")
    (place / "words.pth").write_text("words")
    (place / "full").mkdir()
    (place / "full" / "x").write_text("")
    Image.new("RGB", (8, 8)).save(place / "small.png")
    Image.new("RGBA", (8, 8)).save(place / "alpha.png")
    Image.new("P", (8, 8)).save(place / "clear.png", transparency=0)
    frames = [Image.new("L", (8, 8), level) for level in (0, 200)]
    frames[0].save(place / "moving.gif", save_all=True, append_images=frames[1:])
    done = command(line)
    assert done.code == 2, done.err
    assert done.out == "" and done.err.count("\n") == 1, done.err
    for words in said:
        assert words in done.err
    assert not (place / "out").exists()


# upscale


def test_an_image_is_made_larger(command: Command, place: Path) -> None:
    from modwright.models.upscaling import upscale_image

    torch.manual_seed(0)
    model = create_model(
        "craft_x2", hidden_size=32, depths=[1], num_heads=[4], window=[2, 4]
    ).eval()
    model.save_pretrained(place / "craft")
    pixels = np.random.default_rng(0).integers(0, 255, (21, 30, 3)).astype("uint8")
    Image.fromarray(pixels).save(place / "small.png")
    done = command("upscale craft small.png -o large.png")
    assert done.code == 0, done.err
    assert "60 x 42 pixels from 30 x 21" in done.err
    given = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    found = torch.from_numpy(np.asarray(Image.open(place / "large.png")).copy()).permute(2, 0, 1)
    assert found.equal(upscale_image(model, given))
    assert command("upscale craft small.png -o tiled.png --tile 16 --overlap 4").code == 0
    Image.fromarray(pixels).convert("L").save(place / "gray.png")
    assert command("upscale craft gray.png -o large.png --force").code == 0
    odd = command("upscale craft small.png -o odd.png --tile 15")
    assert odd.code == 2 and "tile must be a multiple of" in odd.err
    other = command("upscale craft small.png -o large.xyz")
    assert other.code == 2 and ".png" in other.err
    poolformer = create_model("poolformer_s12", num_classes=2, depths=[1, 1], hidden_sizes=[8, 16])
    poolformer.save_pretrained(place / "poolformer")
    wrong = command("upscale poolformer small.png -o x.png")
    assert wrong.code == 2 and "is not a super-resolution model" in wrong.err
