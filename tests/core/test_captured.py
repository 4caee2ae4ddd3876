"""What passes hook points over many batches: in memory or in files, one after the other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers import number_of_hooks, random_data, snapshot, unchanged
from modwright.anatomy import Anatomy
from modwright.core import captured as module
from modwright.core.captured import Captured, capture_batches
from modwright.core.errors import CheckpointError, InvalidInputError


def points_of(model: Any) -> Any:
    blocks = Anatomy.of(model).blocks
    return {"first": blocks[0].resid_pre, "last": blocks[-1].resid_post}


def test_files_hold_what_memory_would(tiny: Any, preset: str, tmp_path: Path) -> None:
    model = tiny(preset)
    before, hooks = snapshot(model), number_of_hooks(model)
    data = list(random_data(model))
    held = capture_batches(model, data, points_of(model))
    stored = capture_batches(model, data, points_of(model), to=tmp_path / "out")
    assert unchanged(model, before) and number_of_hooks(model) == hooks
    assert len(held) == len(stored) == 2
    for name in ("first", "last"):
        assert torch.equal(held[name], stored[name])
        assert torch.equal(Captured.load(tmp_path / "out")[name], held[name])
        assert len(held[name]) == 8


def test_the_stream_behind_the_last_block_is_not_normed(tiny: Any) -> None:
    """Where ``hidden_states`` of transformers end with the normed state."""
    model = tiny("tiny-llama")
    data = list(random_data(model, count=4))
    states = model(**data[0].tensors(), output_hidden_states=True).hidden_states
    found = capture_batches(model, data, points_of(model))["last"]
    assert not torch.allclose(found, states[-1], atol=1e-3)
    assert torch.allclose(model.model.norm(found), states[-1], atol=1e-6)


def test_a_stopped_capture_goes_on(tiny: Any, tmp_path: Path) -> None:
    model, out = tiny("tiny-llama"), tmp_path / "out"
    data = list(random_data(model, count=12))
    ran: list[Any] = []

    def stopping(batches: Any, after: int) -> Iterator[Any]:
        for index, batch in enumerate(batches):
            if index == after:
                raise KeyboardInterrupt
            ran.append(index)
            yield batch

    with pytest.raises(KeyboardInterrupt):
        capture_batches(model, stopping(data, 2), points_of(model), to=out)
    times = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert sorted(times) == ["batch-000000.safetensors", "batch-000001.safetensors"]
    found = capture_batches(model, data, points_of(model), to=out)
    assert all((out / name).stat().st_mtime_ns == time for name, time in times.items())
    whole = capture_batches(model, data, points_of(model))
    assert torch.equal(found["last"], whole["last"])
    with pytest.raises(CheckpointError, match="other data, points or weights"):
        capture_batches(model, data[1:], points_of(model), to=out)
    with pytest.raises(CheckpointError, match="other data, points or weights"):
        capture_batches(model, data, {"last": points_of(model)["last"]}, to=out)
    other = tiny.copy("tiny-llama")
    with torch.no_grad():
        other.model.embed_tokens.weight[3] += 1
    with pytest.raises(CheckpointError, match="other data, points or weights"):
        capture_batches(other, data, points_of(other), to=out)


def test_what_the_disk_cannot_hold_is_refused_at_the_first_batch(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("tiny-llama")
    data = list(random_data(model, count=16))  # 4 batches of 2 x 4 x 24 x 48 float32
    free = SimpleNamespace(free=3 * 2 * 4 * 24 * 48 * 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with pytest.raises(CheckpointError, match=r"capturing 4 batches needs 147\.5 kB.*110\.6 kB"):
        capture_batches(model, data, points_of(model), to=tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_memory_holds_one_batch(tiny: Any, tmp_path: Path) -> None:
    """However many there are: tensors of earlier batches are let go."""
    import gc
    import weakref

    model = tiny("tiny-llama")
    alive: list[int] = []
    refs: list[Any] = []
    real = module._write

    def write(file: Path, seen: Any, *more: Any) -> None:
        gc.collect()
        refs.extend(weakref.ref(value) for value in seen.values())
        alive.append(sum(ref() is not None for ref in refs))
        real(file, seen, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_write", write)
        capture_batches(model, random_data(model, count=40), points_of(model), to=tmp_path / "out")
    assert len(alive) == 10 and max(alive) <= 4


def test_nothing_to_capture_is_refused(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-llama")
    with pytest.raises(InvalidInputError, match="there is no batch"):
        capture_batches(model, [], points_of(model))
    unused = {"unused": points_of(tiny("tiny-gpt2"))["last"]}
    with pytest.raises(InvalidInputError, match="no tensor passes unused"):
        capture_batches(model, random_data(model), unused)
    with pytest.raises(CheckpointError, match="holds no captured batches"):
        Captured.load(tmp_path)
