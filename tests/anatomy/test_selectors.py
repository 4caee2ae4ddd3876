"""The selector language: what it picks, and that nothing is passed over in silence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modwright.anatomy import Anatomy, pick_layers, select
from modwright.core.errors import InvalidInputError
from modwright.edits import apply, remove
from modwright.edits.plan import Plan


def addresses(model: Any, text: str) -> list[str]:
    return [part.address for part in select(Anatomy.of(model), text)]


def test_clauses_name_parts_in_their_order(tiny: Any) -> None:
    model = tiny("tiny-llama")
    assert addresses(model, "mlp[2]; attention[3, 1];block[0:1]") == [
        "blocks.2.mlp",
        "blocks.3.attention",
        "blocks.1.attention",
        "blocks.0",
    ]
    assert addresses(model, "attention[*]") == [f"blocks.{i}.attention" for i in range(4)]
    assert addresses(model, "mlp [ -1 ] ;") == ["blocks.3.mlp"]


@given(
    st.integers(1, 40),
    st.one_of(st.none(), st.integers(-50, 50)),
    st.one_of(st.none(), st.integers(-50, 50)),
    st.one_of(st.none(), st.integers(1, 5)),
)
def test_slices_are_those_of_python_or_refused(
    layers: int, start: int | None, stop: int | None, step: int | None
) -> None:
    text = f"{'' if start is None else start}:{'' if stop is None else stop}"
    text += "" if step is None else f":{step}"
    wanted = list(range(layers))[start:stop:step]
    inside = all(b is None or -layers <= b <= layers for b in (start, stop))
    if wanted and inside and start != layers:
        assert pick_layers(text, layers) == wanted
    else:
        with pytest.raises(InvalidInputError):
            pick_layers(text, layers)


@pytest.mark.contract("H1")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the selector is empty"),
        (" ; ", "the selector is empty"),
        ("attention", "cannot read 'attention'; a clause is a kind and layers in brackets"),
        ("attention[3", "cannot read"),
        ("atention[3]", "unknown kind of part 'atention'; .*attention"),
        ("mlp[4]", r"there is no layer 4; there are 0 to 3"),
        ("mlp[-5]", "there is no layer -5"),
        ("mlp[2:2]", "'2:2' matches no layer"),
        ("mlp[3:9]", "there is no layer 9"),
        ("mlp[]", "cannot read 'nothing'; valid are 3, -1"),
        ("mlp[1;2]", "cannot read"),
        ("mlp[one]", "cannot read 'one'"),
        ("mlp[::0]", "cannot read '::0'"),
        ("mlp[1, 1]", "names blocks.1.mlp twice"),
        ("mlp[1]; mlp[*]", "names blocks.1.mlp twice"),
    ],
)
def test_what_matches_nothing_is_refused_in_one_line(tiny: Any, text: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as refusal:
        select(Anatomy.of(tiny("tiny-llama")), text)
    assert "\n" not in str(refusal.value)


def test_a_part_that_went_before_is_refused(tiny: Any) -> None:
    anatomy = Anatomy.of(tiny("tiny-gpt2"))
    gone = apply(anatomy.model, Plan.of(anatomy, "test", remove(anatomy.blocks[1].mlp))).model
    with pytest.raises(
        InvalidInputError, match=r"'mlp\[1\]': block 1 has no mlp, it was removed before"
    ):
        select(Anatomy.of(gone), "mlp[1]")
    assert addresses(gone, "attention[1]") == ["blocks.1.attention"]
