"""What a component keeps in float32 is so wherever the model goes, and keeps its digits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kept_toy
import pytest
import torch
import transformers
from torch import nn

import modwright
from helpers import edit, outputs
from modwright.anatomy import Anatomy
from modwright.checkpoint import save
from modwright.core.errors import InvalidInputError
from modwright.core.registry import registries_restored
from modwright.edits import Change, Replace, remove
from modwright.edits.precision import kept_in_float32, wide_enough

PLACE = "model.layers.1.self_attn."
KEPT = {f"{PLACE}A_log", f"{PLACE}inner.bias", f"{PLACE}scale"}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registries_restored():
        kept_toy.register()
        yield


def placed(model: Any, address: str = "blocks.1.attention") -> Any:
    torch.manual_seed(1)
    toy = kept_toy.Decaying(48)
    values = {f"{address}.{name}": t.clone() for name, t in toy.state_dict().items()}
    values[f"{address}.scratch"] = torch.full((2,), 3.0)
    change = Change((Replace(address, "decaying", {"width": 48}),), values)
    return edit(model, change).model


def narrow(model: Any) -> set[str]:
    """Names of what is no float32 in a model."""
    return {name for name, t in model.state_dict().items() if t.dtype is not torch.float32}


def check(model: Any, dtype: torch.dtype = torch.bfloat16) -> None:
    state = model.state_dict()
    assert state.keys() >= KEPT and kept_in_float32(model).keys() == KEPT
    for name, tensor in state.items():
        assert tensor.dtype is (torch.float32 if name in KEPT else dtype), name
    assert model.dtype is dtype


def same(model: Any, other: Any) -> None:
    expected = other.state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.equal(expected[name].to(tensor.dtype)), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_opened_saved_and_opened_again(tiny: Any, dtype: str, tmp_path: Path) -> None:
    model, kind = placed(tiny("tiny-llama")), getattr(torch, dtype)
    save(model, tmp_path / "wide")
    opened = modwright.open(tmp_path / "wide", dtype=dtype)
    check(opened.model, kind)
    same(opened.model, model)
    (note,) = opened.notes
    assert note.endswith(f"opened as float32, as the component asks, not {dtype}.")
    assert f"{PLACE}A_log" in note
    save(opened, tmp_path / "narrow")
    for again in (
        modwright.open(tmp_path / "narrow"),
        modwright.open(tmp_path / "narrow", head="base"),
    ):
        prefix = "" if again.model.base_model_prefix in dict(again.model.named_children()) else "x."
        assert not again.notes and again.model.dtype is kind
        kept = {name for name, t in again.model.state_dict().items() if t.dtype is torch.float32}
        assert kept == ({name.removeprefix("model.") for name in KEPT} if prefix else KEPT)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "narrow")
    check(stock, kind)
    same(stock, opened.model)
    assert torch.equal(outputs(stock.eval()), outputs(opened.model))
    wide = modwright.open(tmp_path / "narrow", dtype="float64").model
    assert {t.dtype for t in wide.state_dict().values()} == {torch.float64}


def test_a_backbone_s_file_is_opened_with_a_head_in_its_own_type(tiny: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = placed(tiny.copy("tiny-llama", "AutoModel")).to(torch.bfloat16)
    base.save_pretrained(tmp_path)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    check(opened)
    assert modwright.open(tmp_path).model.dtype is torch.bfloat16


def test_what_was_stored_narrow_is_opened_wide_and_said(tiny: Any, tmp_path: Path) -> None:
    model = placed(tiny("tiny-llama"))
    state = {name: t.to(torch.bfloat16) for name, t in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    opened = modwright.open(tmp_path)
    check(opened.model)
    (note,) = opened.notes
    assert "opened as float32, as the component asks, and stored as BF16." in note
    assert all(name in note for name in KEPT)
    check(modwright.open(tmp_path, dtype="float16").model, torch.float16)


def test_a_model_that_is_cast_keeps_them_and_their_values(tiny: Any) -> None:
    model = placed(tiny.copy("tiny-llama").double())
    for cast in (
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to(dtype=torch.bfloat16),
        lambda m: m.to("cpu", torch.bfloat16),
        lambda m: m.bfloat16(),
    ):
        mine = copy.deepcopy(model)
        assert cast(mine) is mine
        check(mine)
        for name in KEPT:  # from the double, not by way of bfloat16
            assert mine.state_dict()[name].equal(model.state_dict()[name].float())
        assert torch.isfinite(outputs(mine)).all()
    check(copy.deepcopy(model).half(), torch.float16)
    assert narrow(copy.deepcopy(model).to(torch.float32)) == set()
    assert {t.dtype for t in model.to("cpu").state_dict().values()} == {torch.float64}


def test_a_cast_of_a_model_without_wishes_is_the_stock_one(tiny: Any) -> None:
    source = tiny.copy("tiny-llama")
    edited = edit(source, remove("blocks.0.attention")).model
    own = copy.deepcopy(edited).to(torch.bfloat16)
    assert {t.dtype for t in own.state_dict().values()} == {torch.bfloat16}


def test_in_a_narrow_model_a_component_is_placed_wide(tiny: Any) -> None:
    source = tiny.copy("tiny-llama").to(torch.bfloat16)
    model = placed(source)
    check(model)
    assert model.state_dict()[f"{PLACE}A_log"].equal(_toy().A_log)
    again = edit(model, remove("blocks.0")).model
    part = Anatomy.of(again).blocks[0].at("attention")
    assert part is not None and part.module.A_log.dtype is torch.float32


def _toy() -> Any:
    torch.manual_seed(1)
    return kept_toy.Decaying(48)


def test_start_values_are_drawn_wide(tiny: Any) -> None:
    model = placed(tiny("tiny-llama"))
    made = type(model)._from_config(model.config, dtype=torch.bfloat16)
    check(made)
    a_log = made.state_dict()[f"{PLACE}A_log"]
    assert not a_log.equal(a_log.bfloat16().float())
    name = f"{PLACE}A_log"
    weights = {key: t for key, t in model.state_dict().items() if key != name}
    lacking = type(model).from_pretrained(
        None, config=model.config, state_dict=weights, dtype=torch.bfloat16
    )
    check(lacking)
    assert not lacking.state_dict()[name].equal(a_log.bfloat16().float())


def test_training_learns_them_in_float32(tiny: Any) -> None:
    model = placed(tiny.copy("tiny-llama").to(torch.bfloat16)).requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    ids = torch.randint(3, 128, (2, 12))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    check(model)
    a_log = model.state_dict()[f"{PLACE}A_log"]
    assert not a_log.equal(before[f"{PLACE}A_log"])


def test_a_list_of_what_is_not_there_is_refused(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = placed(tiny("tiny-llama"))
    monkeypatch.setattr(kept_toy.Decaying, "keep_in_fp32", ("A_lag",))
    with pytest.raises(InvalidInputError, match="keep_in_fp32 names 'A_lag', which is not there"):
        type(model)(model.config)


@pytest.mark.parametrize(
    ("given", "wide"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.int64),
        (torch.bool, torch.bool),
    ],
)
def test_wide_enough(given: torch.dtype, wide: torch.dtype) -> None:
    assert wide_enough(given) is wide


def test_names_reach_into_modules_and_leave_out_other_variants() -> None:
    toy = nn.ModuleDict({"a": nn.Sequential(kept_toy.Decaying(4))})
    assert set(kept_in_float32(toy)) == {"a.0.A_log", "a.0.inner.bias", "a.0.scale"}
