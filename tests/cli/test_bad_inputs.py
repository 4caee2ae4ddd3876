"""Files that are damaged, missing or of the wrong kind: one line, exit code 2, nothing touched."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"


def cut(file: Path, by: int) -> None:
    file.write_bytes(file.read_bytes()[:-by])


def change(model: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(model / WEIGHTS)
    how(tensors)
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})


def configure(model: Path, **fields: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **fields}))


def shards(model: Path) -> list[Path]:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(model).save_pretrained(model, max_shard_size="40KB")
    (model / WEIGHTS).unlink(missing_ok=True)
    return sorted(model.glob("model-*.safetensors"))


def rename_in_index(model: Path) -> None:
    first = shards(model)[0].name
    text = (model / INDEX).read_text()
    (model / INDEX).write_text(text.replace(first, "model-99999.safetensors"))


def set_value(value: float) -> Callable[[Path], None]:
    return lambda model: change(model, lambda t: t[UP].__setitem__((3, 3), value))


def set_type(dtype: torch.dtype) -> Callable[[Path], None]:
    return lambda model: change(model, lambda t: t.update({UP: t[UP].to(dtype)}))


# What is done to a copy of the model, and what the line must say.
MODELS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "cut short": (lambda m: cut(m / WEIGHTS, 999), (WEIGHTS, "damaged or cut short")),
    "no bytes": (lambda m: (m / WEIGHTS).write_bytes(b""), (WEIGHTS, "is empty; copy")),
    "no weights": (lambda m: (m / WEIGHTS).unlink(), ("no weights", WEIGHTS, INDEX)),
    "a folder": (lambda m: ((m / WEIGHTS).unlink(), (m / WEIGHTS).mkdir()), ("no weights",)),
    "a shard cut short": (lambda m: cut(shards(m)[1], 9), ("model-00002", "cut short")),
    "a shard missing": (lambda m: shards(m)[1].unlink(), (INDEX, "model-00002", "is missing")),
    "an index of others": (rename_in_index, (INDEX, "model-99999.safetensors", "is missing")),
    "an index of nothing": (
        lambda m: (shards(m), (m / INDEX).write_text("{}")),
        (INDEX, "is not a shard index"),
    ),
    "config cut short": (lambda m: cut(m / "config.json", 9), ("config.json", "is not JSON")),
    "config missing": (lambda m: (m / "config.json").unlink(), ("has no config.json",)),
    "config of nobody": (lambda m: configure(m, model_type="nobody"), ("'nobody'", "not known")),
    "no tokenizer": (
        lambda m: [file.unlink() for file in m.glob("token*")],
        ("calibration", "has no tokenizer"),
    ),
    "a broken tokenizer": (lambda m: cut(m / "tokenizer.json", 99), ("tokenizer", "cannot be")),
    "a tensor missing": (lambda m: change(m, lambda t: t.pop(UP)), (UP, "not in the weights")),
    "a tensor of other size": (
        lambda m: change(m, lambda t: t.update({UP: torch.zeros(3, 3)})),
        (UP, "(3, 3) in the file"),
    ),
    "NaN": (set_value(float("nan")), (UP, "NaN or infinity", "1 of")),
    "infinity": (set_value(float("-inf")), (UP, "NaN or infinity", "1 of")),
    "int8": (set_type(torch.int8), (UP, "stored as I8", "dequantize")),
    "fp8": (set_type(torch.float8_e4m3fn), (UP, "stored as F8_E4M3", "dequantize")),
    "quantized": (
        lambda m: configure(m, quantization_config={"quant_method": "gptq", "bits": 4}),
        ("stored quantized (gptq)", "dequantize them first"),
    ),
    "quantized below": (
        lambda m: configure(m, text_config={"quantization_config": {"quant_method": "fp8"}}),
        ("stored quantized (fp8)",),
    ),
}

TEXTS: dict[str, tuple[bytes, str, tuple[str, ...]]] = {
    "empty": (b"", "", ("calibration: text 'text.txt' is empty",)),
    "blank": (b" \n\t\n", "", ("calibration: text 'text.txt' is empty",)),
    "latin-1": ("äöü ".encode("latin-1") * 99, "", ("text.txt", "'utf-8' text", "latin-1")),
    "utf-16": ("w1 w2 ".encode("utf-16") * 99, "", ("text.txt", "'utf-8' text")),
    "binary": (bytes(range(256)) * 9, "", ("text.txt", "'utf-8' text")),
    "an encoding of nobody": (b"w1 w2 ", "utf-99", ("'utf-99'", "for example utf-8")),
    "too short": (b"w1 w2 w3", "", ("calibration: text 'text.txt' has 3 tokens", "valid values")),
}


@pytest.fixture
def own_model(recipe_file: Path, wordy_model: Path) -> Path:
    """A copy of the model that a test may spoil, named ``model`` in the recipe."""
    copy = recipe_file.parent / "model"
    shutil.copytree(wordy_model, copy)
    recipe_file.write_text(recipe_file.read_text().replace(str(wordy_model), "model"))
    return copy


def stamps(place: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time of change; nothing is read."""
    found = {str(path): path.lstat() for path in place.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def check_refused(done: Any, info: tuple[str, ...]) -> None:
    assert done.code == 2, done.err
    assert done.out == ""
    *narrated, last = done.err.splitlines()
    assert all(line.startswith(("opening ", "rehearsing ")) for line in narrated), narrated
    assert last.startswith("modwright: ") and "Traceback" not in done.err
    for part in info:
        assert part in last


@pytest.mark.parametrize("how", ["run recipe.yaml -o out", "run recipe.yaml -o out --dry-run"])
@pytest.mark.parametrize("name", MODELS)
def test_a_spoiled_model(
    name: str, how: str, own_model: Path, command: Callable[[str], Any]
) -> None:
    spoil, info = MODELS[name]
    spoil(own_model)
    before = stamps(own_model.parent)
    check_refused(command(how), info)
    assert stamps(own_model.parent) == before


def test_a_type_in_the_config_that_no_weight_has(
    own_model: Path, command: Callable[[str], Any]
) -> None:
    """The type that weights are stored in decides, whatever the config says."""
    configure(own_model, dtype="int8")
    done = command("run recipe.yaml -o out --dry-run")
    assert done.code == 0, done.err


@pytest.mark.parametrize("name", TEXTS)
def test_a_spoiled_text(
    name: str, own_model: Path, recipe_file: Path, command: Callable[[str], Any]
) -> None:
    content, encoding, info = TEXTS[name]
    (recipe_file.parent / "text.txt").write_bytes(content)
    more = f" --set calibration.encoding={encoding}" if encoding else ""
    before = stamps(recipe_file.parent)
    check_refused(command(f"run recipe.yaml -o out --set calibration.data=text.txt{more}"), info)
    assert stamps(recipe_file.parent) == before


# Permissions


@pytest.fixture
def forbidden(own_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Runs work as somebody whom permissions hold: root is let through everywhere."""
    place = Path(tempfile.mkdtemp())
    shutil.copytree(own_model.parent, place / "here")
    monkeypatch.chdir(place / "here")

    def work(run: Callable[[], Any]) -> Any:
        if os.geteuid() != 0:
            return run()
        for path in (place, *place.rglob("*")):
            os.chown(path, 65534, -1)
        os.seteuid(65534)
        try:
            return run()
        finally:
            os.seteuid(0)

    yield work
    for path in place.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(place)


@pytest.mark.parametrize(
    ("file", "info"),
    [
        ("model/model.safetensors", ("model.safetensors", "ermission denied")),
        ("model/config.json", ("config.json", "ermission denied")),
        ("text.txt", ("text.txt", "ermission denied")),
        ("recipe.yaml", ("recipe.yaml", "ermission denied")),
    ],
)
def test_a_file_that_may_not_be_read(
    file: str, info: tuple[str, ...], forbidden: Callable[..., Any], command: Callable[[str], Any]
) -> None:
    line = "run recipe.yaml -o out --set calibration.data=text.txt"
    Path("text.txt").write_text("w1 w2 " * 200)
    command("run recipe.yaml -o out --set calibration.data=gone")  # all is imported by now
    Path(file).chmod(0)
    check_refused(forbidden(lambda: command(line)), info)
    assert not Path("out").exists() and not Path("out.work").exists()


def test_a_place_that_may_not_be_written(
    forbidden: Callable[..., Any], command: Callable[[str], Any]
) -> None:
    Path("closed").mkdir()
    command("run recipe.yaml -o out --set calibration.data=gone")
    Path("closed").chmod(0o555)
    done = forbidden(lambda: command("run recipe.yaml -o closed/out"))
    check_refused(done, ("closed/out", "ermission denied"))
    assert list(Path("closed").iterdir()) == []
