"""``modwright heal`` and ``modwright predict``, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modwright.models import create_model
from wordy import write_text

Command = Callable[[str], Any]


def test_a_cut_model_is_healed_by_its_baseline(command: Command, place: Path) -> None:
    write_text(place / "words.txt", 400)
    write_text(place / "other.txt", 300, seed=5)
    assert command("edit drop preset:byte-llama --parts attention[1] -o cut --no-eval").code == 0
    sizes = "--set length=32 --set batch_tokens=64 --set held_out_windows=2"
    line = "heal cut --teacher preset:byte-llama --data words.txt --held-out other.txt"
    done = command(f"{line} --tokens 128 {sizes} --set held_out_length=32 -o out")
    assert done.code == 0, done.err
    report = json.loads(Path("out/report.json").read_text())
    curve = report["stages"][1]["reasons"]["on other.txt"]
    assert list(curve) == ["baseline", "0 tokens", "64 tokens", "128 tokens"]
    assert Path("out/tokenizer_config.json").is_file()
    both = command(f"{line} --tokens 128 --minutes 1 -o more")
    assert both.code == 2 and "give tokens or minutes, not both" in both.err
    gone = command("heal cut --teacher gone --data words.txt --held-out other.txt -o more")
    assert gone.code == 2 and gone.err.strip().splitlines()[-1].count("gone")


@pytest.fixture
def classifier(place: Path) -> Any:
    torch.manual_seed(0)
    sizes = {"depths": [1, 1], "hidden_sizes": [8, 16], "image_size": 32}
    model = create_model("poolformer_s12", num_classes=3, **sizes).eval()
    names = ("ant", "bee", "cat")
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    model.save_pretrained(place / "model")
    return model


def files_of(place: Path) -> dict[str, Path]:
    """One scene, stored in many ways."""
    drawn = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    image = Image.fromarray(drawn)
    image.save(place / "a.png")
    image.convert("CMYK").save(place / "cmyk.jpg", quality=95)
    ramp = (np.arange(40 * 48).reshape(40, 48) * 30).astype("uint16")
    Image.fromarray(ramp).save(place / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(place / "turned.png", exif=exif)
    return {name: place / name for name in ("a.png", "cmyk.jpg", "sixteen.png", "turned.png")}


def test_classes_are_printed_with_probabilities(
    command: Command, place: Path, classifier: Any
) -> None:
    files = files_of(place)
    done = command(f"predict model {' '.join(files)} --top 2")
    assert done.code == 0, done.err
    lines = done.out.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == list(files)
    assert all(line.count("%") == 2 for line in lines)
    found = json.loads(command("predict model a.png turned.png --json").out)
    assert found["a.png"] == pytest.approx(found["turned.png"], abs=1e-6)
    assert sum(found["a.png"].values()) == pytest.approx(1, abs=1e-5)
    from modwright.data.image_files import read_image
    from modwright.data.image_rows import ImagePreparation

    pixels = ImagePreparation(32).pixels(read_image(place / "a.png"))[None]
    with torch.no_grad():
        expected = classifier(pixel_values=pixels).logits.softmax(-1)[0]
    assert found["a.png"]["bee"] == pytest.approx(float(expected[1]), abs=1e-6)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("predict model broken.png", "broken.png is no image that can be read"),
        ("predict model empty.png", "empty.png is no image that can be read"),
        ("predict model gone.png", "gone.png: no such file"),
        ("predict model a.png --top 0", "top is 1 or more, not 0"),
        ("predict preset:tiny-llama a.png", "is no image classifier"),
    ],
)
def test_what_is_no_image_is_one_line(
    line: str, says: str, command: Command, place: Path, classifier: Any
) -> None:
    files_of(place)
    (place / "broken.png").write_bytes((place / "a.png").read_bytes()[:200])
    (place / "empty.png").write_bytes(b"")
    done = command(line)
    assert done.code == 2 and says in done.err and done.err.count("\n") == 1, done.err
