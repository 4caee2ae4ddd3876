"""Weights that are stored as something else than floating-point numbers are not cast in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modwright.checkpoint import open as open_checkpoint
from modwright.core.errors import CheckpointError

FILE = "model.safetensors"


def stored_as(model: Any, place: Path, change: Any) -> Path:
    model.save_pretrained(place)
    tensors = load_file(place / FILE)
    change(tensors)
    save_file(tensors, place / FILE, metadata={"format": "pt"})
    return place


@pytest.mark.parametrize(
    ("dtype", "note"),
    [
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.int64, "I64"),
        (torch.bool, "BOOL"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
    ],
)
def test_one_odd_weight_is_named(dtype: torch.dtype, note: str, tiny: Any, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    place = stored_as(
        tiny("tiny-llama"), tmp_path / "model", lambda t: t.update({name: t[name].to(dtype)})
    )
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(place)
    line = str(caught.value)
    assert f"{name} is stored as {note} in {FILE}" in line
    assert line.endswith("dequantize or convert it first: F64, F32, F16, BF16")


def test_scales_beside_the_weights_give_a_quantized_file_away(tiny: Any, tmp_path: Path) -> None:
    scale = torch.ones(4).to(torch.float8_e4m3fn)
    place = stored_as(
        tiny("tiny-llama"), tmp_path / "model", lambda t: t.update({"some.weight_scale": scale})
    )
    with pytest.raises(CheckpointError, match=r"some\.weight_scale is stored as F8_E4M3"):
        open_checkpoint(place)


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForCausalLM"])
def test_masks_and_counters_of_old_files_are_no_weights(
    auto: str, tiny: Any, tmp_path: Path
) -> None:
    """GPT-2's causal masks are called ``h.0.attn.bias`` and are no parameters."""
    model = tiny("tiny-gpt2", auto=auto)
    prefix = "" if auto == "AutoModel" else "transformer."

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{prefix}h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
        tensors[f"{prefix}h.0.attn.steps"] = torch.zeros(1, dtype=torch.int64)

    open_checkpoint(stored_as(model, tmp_path / "model", add))


def test_a_bare_file_in_a_model_with_a_head(tiny: Any, tmp_path: Path) -> None:
    """Names without the prefix of the class."""
    bare = tiny("tiny-llama", auto="AutoModel")
    name = "layers.0.self_attn.q_proj.weight"
    place = stored_as(bare, tmp_path / "m", lambda t: t.update({name: t[name].to(torch.int8)}))
    with pytest.raises(CheckpointError, match=f"{name} is stored as I8"):
        open_checkpoint(place)
