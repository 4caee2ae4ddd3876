"""Files of training scripts: the tensors come out, whatever lies beside them, and no code runs."""

from __future__ import annotations

import collections
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.models.importing import read_weights

WEIGHTS = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2)}
EMA = {name: tensor + 1 for name, tensor in WEIGHTS.items()}


class Harmful:
    def __reduce__(self) -> Any:
        return (os.system, ("touch harm",))


def config_of_yacs() -> Any:
    """An object of a class whose package is not installed when the file is read."""
    module = types.ModuleType("yacs.config")
    kind = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    module.CfgNode = kind  # type: ignore[attr-defined]
    sys.modules |= {"yacs": types.ModuleType("yacs"), "yacs.config": module}
    node = kind(LR=0.1, MODEL=kind(DEPTH=3))
    node.frozen = True  # type: ignore[attr-defined]
    return node


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        {},
        {"config": config_of_yacs},
        {"best": lambda: np.float64(81.2), "mean": lambda: np.zeros(3)},
        {"args": lambda: types.SimpleNamespace(lr=1.0), "counts": lambda: collections.Counter("a")},
        {"hook": Harmful.__reduce__},
    ],
    ids=["nothing", "yacs", "numpy", "namespace", "function"],
)
def test_fault_B9_what_lies_beside_the_weights_is_inert(
    beside: dict[str, Any], zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extra = {}
    for name, make in beside.items():
        extra[name] = os.getcwd if name == "hook" else make()
    torch.save({"state_dict": WEIGHTS, **extra}, "a.pth", _use_new_zipfile_serialization=zipped)
    for name in ("yacs", "yacs.config"):
        sys.modules.pop(name, None)
    if "hook" in beside:
        with pytest.raises(CheckpointError, match=r"it would run posix\.getcwd when read"):
            read_weights("a.pth")
        return
    found = read_weights("a.pth")
    assert found.keys() == WEIGHTS.keys()


def test_fault_B9_no_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"params": WEIGHTS, "x": Harmful()}, "a.pth")
    with pytest.raises(CheckpointError, match=r"it would run posix\.system when read"):
        read_weights("a.pth")
    assert not Path("harm").exists()


def test_fault_B9_one_nested_dict_or_the_key(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"params": WEIGHTS}, file)
    assert read_weights(file)["conv.weight"].equal(WEIGHTS["conv.weight"])
    torch.save({"params": WEIGHTS, "params_ema": EMA}, file)
    assert read_weights(file)["conv.weight"].equal(EMA["conv.weight"])
    assert read_weights(file, "params")["conv.weight"].equal(WEIGHTS["conv.weight"])
    torch.save({"epoch": 3, "network": WEIGHTS}, file)
    assert read_weights(file)["conv.weight"].equal(WEIGHTS["conv.weight"])
    torch.save({"generator": WEIGHTS, "critic": {"g": EMA}, "other": EMA}, file)
    with pytest.raises(
        InvalidInputError, match=r"several sets of tensors; choose a key: generator, other"
    ):
        read_weights(file)
    assert read_weights(file, "critic.g")["conv.weight"].equal(EMA["conv.weight"])
    with pytest.raises(
        InvalidInputError, match=r"unknown key of a\.pth 'gen'; valid values: generator, cr"
    ):
        read_weights(file, "gen")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b"\n<!DOCTYPE html>\n<html>not found</html>", "web page"),
        (b"", "is empty"),
        (b"hello, here are no weights", "damaged, or no file of torch"),
        (b"PK\x03\x04 and nothing more", "cannot be read"),
    ],
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_fault_B9_what_is_no_file_of_weights_is_named(
    name: str, content: bytes, told: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_weights(tmp_path / name)
    line = str(caught.value)
    assert "\n" not in line and "weights_only" not in line
    if name == "a.pth" or told not in ("damaged, or no file of torch",):
        assert told in line


def test_fault_B9_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="is a pipe, not a file"):
        read_weights(tmp_path / "a.pth")
