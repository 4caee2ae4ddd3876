"""The one-line ways to use modwright take what is meant, or refuse in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import modwright
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.edits import factorize, keep_heads, keep_neurons, remove
from modwright.surgery import make_method

DATA = torch.arange(3, 35).view(2, 16)


def shape(given: Any) -> list[str]:
    return [repr(block) for block in Anatomy.of(given).blocks]


def test_fault_B4_apply_takes_what_is_meant(tiny: Any) -> None:
    opened = modwright.open(tiny("tiny-llama"))
    attention = opened.anatomy.blocks[0].attention
    expected = shape(modwright.apply(opened.model, make_method("drop", parts="attention[0]")))
    plan = modwright.plan(opened, make_method("drop", {"parts": "attention[0]"}))
    for what in (remove(attention), remove("blocks.0.attention"), [remove(attention)], plan):
        assert shape(modwright.apply(opened, what)) == expected
        assert shape(modwright.edits.apply(opened.anatomy, what)) == expected
    done = modwright.apply(opened, sum([remove(attention), remove("blocks.1.mlp")]))
    assert shape(done)[1] != shape(opened)[1]
    # A result is what the next edit begins with.
    assert shape(modwright.apply(done, remove("blocks.2.mlp")))[2] != shape(done)[2]
    assert "tensors kept" in repr(done) and len(repr(done)) < 200


def test_fault_B4_a_method_is_named_and_its_data_given_as_they_are(tiny: Any) -> None:
    model = tiny("tiny-llama")
    found = modwright.apply(model, make_method("llm_drop", n=1), DATA.tolist())
    assert shape(found) == shape(modwright.apply(model, make_method("llm_drop", {"n": 1}), DATA))
    with pytest.raises(InvalidInputError, match="needs calibration data"):
        modwright.apply(model, "modegpt")
    with pytest.raises(InvalidInputError, match="unknown method 'llmdrop'"):
        modwright.apply(model, "llmdrop")


def _attention(anatomy: Anatomy) -> Any:
    return anatomy.blocks[0].attention


REFUSED: dict[str, tuple[Callable[[Anatomy], Any], str]] = {
    "no plan": (lambda a: modwright.apply(a, 3), "expected a method, such as"),
    "a class": (
        lambda a: modwright.apply(a, type(make_method("drop", parts="mlp[0]"))),
        "expected a method",
    ),
    "no change": (lambda a: modwright.edits.apply(a, "drop"), "expected a plan or a change"),
    "no changes": (lambda a: modwright.apply(a, []), "expected a plan or a change"),
    "no model": (lambda a: modwright.apply("tiny", remove("blocks.0.mlp")), "open it first"),
    "texts": (
        lambda a: modwright.apply(a, make_method("llm_drop", n=1), ["hello"]),
        "token_windows",
    ),
    "heads of an MLP": (
        lambda a: keep_heads(a.blocks[0].mlp, [0]),
        r"blocks\.0\.mlp: a Mlp has no heads",
    ),
    "heads of an address": (
        lambda a: keep_heads("blocks.0.attention", [0]),
        r"anatomy\.part\('blocks",
    ),
    "neurons of an attention": (lambda a: keep_neurons(_attention(a), [0]), "has no neurons"),
    "neurons of nothing": (lambda a: keep_neurons(None, [0]), "a NoneType has no neurons"),
    "no such address": (lambda a: modwright.apply(a, remove("blocks.9.mlp")), "no block 9"),
    "outside the blocks": (lambda a: remove("embed"), "stands outside the blocks"),
    "no address": (lambda a: remove(7), "expected a part of an anatomy or its address"),
    "a name of from_pretrained": (
        lambda a: modwright.open("x", torch_dtype="float16"),
        "use dtype=",
    ),
    "another": (lambda a: modwright.open("x", device_map="auto"), "use device="),
    "an unknown name": (lambda a: modwright.open("x", dtpye="float16"), "did you mean 'dtype'"),
    "factors of another shape": (
        lambda a: factorize(a.blocks[0].mlp.down, torch.ones(4, 4), torch.ones(4, 4)),
        r"outer is \(4, 4\) and inner \(4, 4\); valid are \(\d+, 4\) and \(4, \d+\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_fault_B4_what_is_not_meant_is_refused_in_one_line(tiny: Any, name: str) -> None:
    call, said = REFUSED[name]
    with pytest.raises(InvalidInputError, match=said) as refusal:
        call(Anatomy.of(tiny("tiny-llama")))
    assert "\n" not in str(refusal.value)


def test_fault_B4_results_are_saved_as_they_are(tiny: Any, tmp_path: Path) -> None:
    done = modwright.apply(tiny("tiny-llama"), remove("blocks.0.attention"))
    modwright.save(done, tmp_path / "one")
    assert shape(modwright.open(tmp_path / "one")) == shape(done)
    modwright.save(modwright.open(tmp_path / "one"), tmp_path / "two")
    assert shape(modwright.open(tmp_path / "two")) == shape(done)


def test_fault_B4_packages_are_found_without_an_import() -> None:
    assert modwright.surgery.make_method is make_method
    assert {"surgery", "edits", "apply"} <= set(dir(modwright))
    with pytest.raises(AttributeError, match="no attribute 'surgrey'"):
        modwright.surgrey


def test_fault_B4_what_measures_takes_what_holds_a_model(tiny: Any) -> None:
    from modwright.cost import compare_speed, count, inspect

    opened = modwright.open(tiny("tiny-llama"))
    done = modwright.apply(opened, remove("blocks.0.mlp"))
    few = {"prompt": 4, "new_tokens": 1, "repeats": 1, "max_seconds": 0}
    assert set(compare_speed(opened, done, **few).ratios) == {"prefill", "decode"}
    assert count(done, length=4).parameters < count(opened, length=4).parameters
    assert inspect(opened, length=4).root.parameters == opened.anatomy.num_parameters
    assert modwright.verify(done).ok
