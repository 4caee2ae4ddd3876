"""LLM-Drop on blocks that hold what is no attention: pooling, convolutions, mixers of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import random_data
from models.tiny import TINY
from models.tiny import tiny as classifier
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.surgery import apply, make_method, plan

KINDS = sorted(TINY.keys() - {"residual_network"})  # which has neither attentions nor MLPs


def gone(model: Any, decided: Any) -> int:
    left = apply(model, decided, check=False).model
    return sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in left.parameters())


def parts(model: Any, place: str) -> list[int]:
    return [block.index for block in Anatomy.of(model).blocks if block.at(place) is not None]


@pytest.mark.parametrize("target", ["attention", "mlp", "joint", "block"])
@pytest.mark.parametrize("kind", KINDS)
def test_fault_B3_the_forecast_brackets_what_goes(kind: str, target: str) -> None:
    model = classifier(kind)
    places = ("attention", "mlp") if target in ("joint", "block") else (target,)
    if not any(parts(model, place) for place in places):
        pytest.skip("it has none of these parts")
    method = make_method("llm_drop", {"n": 1, "target": target})
    try:
        decided = plan(model, method, random_data(model, count=2))
    except InvalidInputError as refused:  # no number of its config counts blocks of this kind
        assert target == "block" and str(refused).endswith("instead")
        return
    low, high = method.parameter_bounds(Anatomy.of(model))
    assert 0 < low <= gone(model, decided) <= high


@pytest.mark.parametrize("kind", KINDS)
def test_fault_B3_lists_name_mixers_too(kind: str, tmp_path: Path) -> None:
    model = classifier(kind)
    lists = tmp_path / "config.json"
    first = {place: parts(model, place)[:1] for place in ("attention", "mlp")}
    for place, name in (("attention", "drop_attn_list"), ("mlp", "drop_mlp_list")):
        if not first[place]:
            continue
        lists.write_text(json.dumps({name: first[place]}))
        method = make_method("llm_drop", {"lists": str(lists)})
        size = gone(model, plan(model, method))
        assert size > 0 and method.parameter_bounds(Anatomy.of(model)) == (size, size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["attention", "mlp"])
def test_fault_B3_what_goes_is_known_exactly(kind: str, place: str) -> None:
    """With the gain of a branch, which is a part of the block."""
    model = classifier(kind)
    for index in parts(model, place):
        method = make_method("drop", {"parts": f"{place}[{index}]"})
        size = gone(model, plan(model, method))
        assert size > 0 and method.parameter_bounds(Anatomy.of(model)) == (size, size)


@pytest.mark.parametrize("place", ["attention", "mlp"])
@pytest.mark.parametrize("name", ["tiny-opt-post", "tiny-bert"])
def test_fault_B3_so_is_a_post_norm_that_goes_along(tiny: Any, name: str, place: str) -> None:
    model = tiny(name)
    for drop_post_norm in (False, True):
        options = {"parts": f"{place}[1]", "drop_post_norm": drop_post_norm}
        method = make_method("drop", options)
        size = gone(model, plan(model, method))
        assert method.parameter_bounds(Anatomy.of(model)) == (size, size)


def test_fault_B3_a_list_that_names_nothing_is_refused_alike(tmp_path: Path) -> None:
    """By the estimate as by the plan."""
    model = classifier("metaformer")
    method = make_method("llm_drop", {"n": 1, "target": "attention"})
    less = apply(model, plan(model, method, random_data(model, count=2)), check=False).model
    missing = next(b.index for b in Anatomy.of(less).blocks if b.at("attention") is None)
    lists = tmp_path / "config.json"
    lists.write_text(json.dumps({"drop_attn_list": [missing]}))
    again = make_method("llm_drop", {"lists": str(lists)})
    for ask in (lambda: again.parameter_bounds(Anatomy.of(less)), lambda: plan(less, again)):
        with pytest.raises(InvalidInputError, match=f"block {missing} has no attention any more"):
            ask()
