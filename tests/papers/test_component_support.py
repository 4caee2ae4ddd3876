"""What the table says of each kind of component is what these do, and each refusal is a line."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from documents import ROOT
from modwright.anatomy import Anatomy
from modwright.edits import Change, Replace
from modwright.nn.component import COMPONENTS
from modwright.papers.component_support import Answer, component_support
from modwright.papers.support import Use, in_a_word
from modwright.surgery import method_names
from own_components import TOYS, placed_in

WANTED: dict[str, dict[str, str]] = {
    "toy_memory": {
        "keep some of its neurons": "a ToyMemory has no neurons",
        "keep some of its heads": "a ToyMemory is no plain softmax attention",
        "assisted generation": "cannot be rolled back",
        "pre_rmsnorm": "is a ToyMemory, and what reads and writes in it is not plain",
    },
    "toy_turn": {
        "keep some of its neurons": "a ToyTurn has no neurons",
        "keep some of its heads": "a ToyTurn is no plain MLP",
        "replace_activation": "shows no activation",
        "extract": "4 widths for 3 nested MLPs",
        "pre_rmsnorm": "is a ToyTurn, and what reads and writes in it is not plain",
    },
    "toy_hinge": {"keep some of its heads": "a Mlp has no heads"},
    "toy_share": {
        "keep some of its neurons": "normalizes over the neurons",
        "keep some of its heads": "a Mlp has no heads",
        "emoe": "normalizes over the neurons",
        "modegpt": "normalizes over its neurons",
        "nest": "normalizes over the neurons",
        "extract": "the model has no nested MLP",
    },
}
"""Toy -> what is refused of it, at least in part, and why. What it stands in is no stock model, so
``plain`` and ``gguf`` refuse all."""


def refused(answers: list[Answer]) -> dict[str, tuple[str, ...]]:
    return {one.what: one.refusals for one in answers if one.refusals}


@pytest.mark.parametrize("toy", TOYS)
def test_what_is_refused_of_a_component_and_nothing_else(tiny: Any, toy: str) -> None:
    source = tiny("tiny-gpt2")
    before = refused(component_support(source, "blocks.1.mlp"))
    made = placed_in(source, toy)
    answers = component_support(made.model, made.address)
    found = refused(answers)
    for what, why in WANTED[toy].items():
        assert any(why in reason for reason in found[what]), found[what]
    own = {"plain", "gguf"} | {
        what for what in before if what.startswith(("replace_token", "fast"))
    }
    assert found.keys() - WANTED[toy].keys() <= own
    assert not [line for lines in found.values() for line in lines if "\n" in line]
    asked = {one.what for one in answers}
    assert {*method_names(), "standalone", "onnx", "pt2", "static cache", "beams"} <= asked


def test_a_part_without_linear_layers_says_how_it_shows_them(tiny: Any) -> None:
    source = tiny("tiny-vit")
    block = Anatomy.of(source).blocks[1]

    class Silent(COMPONENTS["toy_turn"].make):  # type: ignore[name-defined, misc]
        def projections(self) -> dict[str, Any]:
            return {}

    from helpers import edit
    from modwright.core.registry import registries_restored
    from modwright.nn.component import component

    with registries_restored():
        component("silent", "channel_mixer")(Silent)
        values = {f"{block.address}.mlp.{n}": t for n, t in Silent(48).state_dict().items()}
        made = edit(
            source, Change((Replace("blocks.1.mlp", "silent", {"hidden_size": 48}),), values)
        )
        answers = {one.what: one for one in component_support(made.model, "blocks.1.mlp")}
    (why,) = answers["store its linear layers in factors"].refusals
    assert (
        "a Silent shows no linear layers; a component says which it has in `projections()`" in why
    )
    assert not {"beams", "assisted generation"} & answers.keys()  # nothing is generated


def test_the_model_stays_as_it_is(tiny: Any) -> None:
    source = tiny("tiny-llama")
    before = {name: p.clone() for name, p in source.named_parameters()}
    component_support(source, "blocks.0.mlp")
    assert all(torch.equal(p, before[name]) for name, p in source.named_parameters())


def test_words_count_the_uses_that_are_refused() -> None:
    fine, not_so = Use("a", {}, None), Use("b", {}, "no room")
    words = [in_a_word(uses) for uses in ((fine,), (fine, not_so), (not_so, not_so))]
    assert words == ["yes", "in part", "no"]
    answer = Answer("methods", "m", (not_so, fine, not_so))
    assert (answer.word, answer.refusals) == ("in part", ("no room",))


# The table of the docs


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    before = set(sys.modules)
    yield importlib.import_module("component_kinds")
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "docs")):
            del sys.modules[name]


@pytest.mark.slow
def test_the_table_has_every_kind_and_every_refusal_a_reason(kinds: Any) -> None:
    text = (ROOT / "docs" / "reference" / "components.md").read_text(encoding="utf-8")
    for name in kinds.MAKERS:
        assert f"\n<!-- modwright: {name} -->\n" in text
    lines = kinds.MAKERS["component-kinds"]().splitlines()
    reasons = kinds.MAKERS["component-reasons"]().splitlines()
    head, _, *rows = [line.strip("| ").split(" | ") for line in lines]
    assert head == [*kinds.KINDS]
    words: dict[str, list[str]] = {}
    for name, *cells in rows:
        what = name.rpartition("**: ")[2]
        words[what] = [cell.partition(" <")[0] for cell in cells]
        assert set(words[what]) <= {"yes", "in part", "no", "–"} and len(cells) == len(head)
        for cell, word in zip(cells, words[what], strict=True):
            numbers = re.findall(r"\d+", cell)
            assert bool(numbers) == (word in ("in part", "no"))
            assert all(reasons[int(n) - 1].startswith(f"{n}. “") for n in numbers)
    assert words["in decoders"] == ["yes", "yes", "no", "yes", "yes", "yes", "yes"]
    neurons = ["no", "no", "no", "yes", "no", "yes", "no"]
    assert words["keep some of its neurons"] == neurons
    assert words["keep some of its heads"] == ["yes", *["no"] * 6]
    assert words["assisted generation"] == ["yes", "no", "–", "yes", "yes", "yes", "yes"]
    assert words["`modegpt`"] == [*["yes"] * 6, "in part"]
    assert words["`standalone`"] == words["verify it"] == words["remove it"] == ["yes"] * 7
