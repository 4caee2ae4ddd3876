from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import modwright
from modwright.analysis import stream_mean
from modwright.anatomy import Anatomy
from modwright.calibration import Similarity, calibrate
from modwright.core.modes import copy_modes, eval_mode, set_eval, set_mode
from modwright.cost import measure_speed
from modwright.data.text import from_sequences
from modwright.edits import Plan, apply, remove, verify
from modwright.edits.verify import check_reopens
from modwright.models import create_model
from modwright.recipes.dry_run import dry_run_block
from modwright.surgery import make_method
from modwright.surgery.routing import expert_usage


def _modes(model: nn.Module) -> dict[str, bool]:
    return {name: part.training for name, part in model.named_modules()}


def _partly_frozen(model: Any) -> Any:
    """A model in training mode whose second block, and every other dropout, is frozen."""
    set_mode(model, True)
    frozen = [part for name, part in model.named_modules() if ".1" in name or name.endswith("norm")]
    for part in frozen:
        part.training = False
    assert len(set(_modes(model).values())) == 2
    return model


def _windows() -> Any:
    return from_sequences([torch.arange(1, 9), torch.arange(3, 11)], pad_id=0)


def _split(model: Any) -> Any:
    method = make_method("emoe", {"num_experts": 4, "top_k": 1, "layers": [0]})
    return modwright.apply(model, method).model


_LOOKS: dict[str, Callable[[Any], object]] = {
    "verify": verify,
    "calibrate": lambda m: calibrate(Anatomy.of(m), _windows(), [Similarity()]),
    "dry_run_block": lambda m: dry_run_block(Anatomy.of(m), _windows(), [Similarity()]),
    "expert_usage": lambda m: expert_usage(m, [{"input_ids": torch.arange(12).view(2, 6)}]),
    "stream_mean": lambda m: stream_mean(Anatomy.of(m), _windows()),
    "measure_speed": lambda m: measure_speed(m, batch=1, prompt=4, new_tokens=2, repeats=1),
}


@pytest.mark.parametrize("look", _LOOKS)
def test_fault_B1_what_looks_at_a_model_leaves_every_module_in_its_mode(look: str) -> None:
    model = _partly_frozen(_split(modwright.open("preset:tiny-llama").model))
    before = _modes(model)
    _LOOKS[look](model)
    assert _modes(model) == before


def test_fault_B1_a_frozen_batch_norm_keeps_its_statistics_through_verify() -> None:
    model = _partly_frozen(create_model("smt_tiny", depths=[1, 1, 1, 1], num_classes=3))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.training = False
    before = _modes(model)
    numbers = {name: value.clone() for name, value in model.named_buffers()}
    verify(model)
    assert _modes(model) == before
    assert all(torch.equal(value, numbers[name]) for name, value in model.named_buffers())


@pytest.mark.slow
def test_fault_B1_reopening_leaves_every_module_in_its_mode(tmp_path: Any) -> None:
    model = _partly_frozen(modwright.open("preset:tiny-llama").model)
    model.save_pretrained(tmp_path)
    before = _modes(model)
    check_reopens(model, tmp_path)
    assert _modes(model) == before


def test_fault_B1_an_edited_model_is_frozen_where_its_source_was() -> None:
    model = _partly_frozen(modwright.open("preset:tiny-llama").model)
    anatomy = Anatomy.of(model)
    model.model.layers[2].mlp.training = False
    plan = Plan.of(anatomy, "by hand", remove(anatomy.blocks[0]))
    edited = apply(model, plan).model
    before, after = _modes(model), _modes(edited)
    assert after["model.layers.0"] is False  # it was block 1
    assert after["model.layers.1.mlp"] is False and after["model.layers.1"] is True
    assert after == {
        name: before[name.replace(f"layers.{i}", f"layers.{i + 1}")]
        for name in after
        for i in [int(name.split(".")[2]) if ".layers." in name else -9]
    }


def test_modes_come_back_when_the_work_fails() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(ValueError, match="in the middle"), eval_mode(model):
        assert not model[0].training
        raise ValueError("in the middle")
    assert [part.training for part in model.modules()] == [True, True, False]


def test_several_models_and_parts_that_two_of_them_share() -> None:
    shared = nn.Dropout()
    one, two = nn.Sequential(shared), nn.Sequential(shared).eval()
    before = [one.training, two.training, shared.training]
    with eval_mode(one, two):
        assert not (one.training or two.training or shared.training)
    assert [one.training, two.training, shared.training] == before


def test_set_eval_asks_the_module_itself() -> None:
    class Stubborn(nn.Module):
        def train(self, mode: bool = True) -> Any:
            return super().train(True)

    assert set_eval(Stubborn()).training


def test_copied_modes_follow_renamed_parts() -> None:
    source = nn.ModuleDict({"a": nn.Dropout(), "b": nn.Dropout().eval()})
    target = nn.ModuleDict({"c": nn.Dropout(), "d": nn.Sequential(nn.Dropout())})
    copy_modes(source, target, {"c": "b", "d": "a", "d.0": "a.0"})
    assert not target["c"].training
    assert target["d"][0].training
