"""Registered parts of kinds that nobody knows, at the place of an attention or an MLP."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modwright
from helpers import edit, outputs, random_data, snapshot, unchanged
from models.tiny import tiny as tiny_image_model
from modwright.anatomy import Anatomy, OpaqueMixer
from modwright.calibration import Similarity, calibrate
from modwright.checkpoint import save
from modwright.core.errors import InvalidInputError, VerificationError
from modwright.core.registry import registries_restored
from modwright.cost import activation_bytes, inspect, kv_cache_bytes
from modwright.edits import Change, Replace, register_part, remove, verify
from modwright.surgery.method import make_method


class CumMean(nn.Module):
    """The mean of all positions so far, through a linear layer; with tables of every kind."""

    def __init__(self, width: int, causal: bool = True) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width))
        self.causal = causal
        self.register_buffer("flags", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("bytes", torch.zeros(2, dtype=torch.uint8))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mixed: Tensor = self.inner(x)
        return mixed


class Unrunnable(nn.Module):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x[..., :1].expand(3, 3)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registries_restored():
        register_part("cum_mean")(lambda config, width: CumMean(width))
        register_part("unrunnable")(lambda config: Unrunnable())
        yield


def placed(address: str, width: int) -> Change:
    torch.manual_seed(1)
    part = CumMean(width)
    part.flags[1], part.bytes[0] = True, 7
    values = {f"{address}.{name}": value.clone() for name, value in part.state_dict().items()}
    return Change((Replace(address, "cum_mean", {"width": width}),), values)


@pytest.mark.parametrize("place", ["attention", "mlp"])
def test_fault_B2_a_registered_part_stands_at_every_place(
    tiny: Any, preset: str, place: str, tmp_path: Path
) -> None:
    source = tiny(preset)
    before = snapshot(source)
    anatomy = Anatomy.of(source)
    change = placed(f"blocks.1.{place}", anatomy.hidden_size)
    result = edit(source, change)
    assert unchanged(source, before) and result.verification is not None
    edited = Anatomy.of(result.model)
    part = edited.blocks[1].at(place)
    assert isinstance(part, OpaqueMixer) and isinstance(part.module, CumMean)
    for name, value in change.tensors.items():
        assert torch.equal(part.parameters()[name.split(f"{place}.")[1]], value), name
    assert "CumMean" in repr(edited.blocks[1])
    answers = outputs(result.model)
    for twin in (copy.deepcopy(result.model), pickle.loads(pickle.dumps(result.model))):
        assert torch.equal(outputs(twin), answers)
    inspect(result.model)
    kv_cache_bytes(edited, 16)
    activation_bytes(edited, 16)
    data = random_data(source, count=2, batch_size=2)
    assert len(calibrate(edited, data, [Similarity()])) == len(edited.blocks)
    save(result.model, tmp_path / "saved")
    again = modwright.open(tmp_path / "saved").model
    assert torch.equal(outputs(again), answers)


def test_fault_B2_an_edited_part_is_edited_again(tiny: Any) -> None:
    source = tiny("tiny-llama")
    both = placed("blocks.0.attention", 48) + placed("blocks.2.mlp", 48)
    once = edit(source, both).model
    anatomy = Anatomy.of(once)
    gone = edit(
        once, remove(anatomy.blocks[0].at("attention")) + remove(anatomy.blocks[2].at("mlp"))
    )
    assert Anatomy.of(gone.model).blocks[0].at("attention") is None
    narrower = edit(once, remove(anatomy.blocks[1])).model
    assert isinstance(Anatomy.of(narrower).blocks[1].at("mlp"), OpaqueMixer)
    dropped = make_method("drop", {"parts": "attention[0]; mlp[2]"}).plan(anatomy)
    assert modwright.apply(once, dropped).verification is not None
    assert verify(once).ok


@pytest.mark.parametrize("architecture", ["vision_transformer", "t2t_vit"])
@pytest.mark.parametrize("place", ["attention", "mlp"])
def test_fault_B2_image_models_alike(architecture: str, place: str) -> None:
    source = tiny_image_model(architecture)
    block = Anatomy.of(source).blocks[-1]
    assert block.attention is not None
    result = edit(source, placed(f"{block.address}.{place}", block.attention.hidden_size))
    part = Anatomy.of(result.model).blocks[-1].at(place)
    assert isinstance(part, OpaqueMixer)
    inspect(result.model)


@pytest.mark.parametrize("place", ["attention", "mlp"])
def test_fault_B2_a_part_that_does_not_run_is_told_in_one_line(tiny: Any, place: str) -> None:
    source = tiny("tiny-gpt2")
    with pytest.raises(VerificationError, match="it does not run") as failure:
        edit(source, Change((Replace(f"blocks.1.{place}", "unrunnable"),)))
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("kind", ["flags", "bytes", "steps"])
def test_fault_B20_a_buffer_of_any_type_is_filled_by_the_plan(tiny: Any, kind: str) -> None:
    source = tiny("tiny-llama")
    change = placed("blocks.0.attention", 48)
    result = edit(source, change)
    found = Anatomy.of(result.model).blocks[0].at("attention")
    assert found is not None
    assert torch.equal(found.parameters()[kind], change.tensors[f"blocks.0.attention.{kind}"])
    lacking = {n: t for n, t in change.tensors.items() if not n.endswith(kind)}
    with pytest.raises(InvalidInputError, match=f"no value for blocks.0.attention.{kind}"):
        edit(source, Change(change.edits, lacking))
