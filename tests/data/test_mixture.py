"""Mixtures: rows in turn by weights, texts in turn for calibration."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modwright.core.errors import InvalidInputError
from modwright.data import Data, TensorRows, make_data
from modwright.data.mixture import in_turn, mixed
from modwright.data.text import token_windows
from modwright.data.text_mixture import mixed_windows
from modwright.data.tokenizers import byte_tokenizer

BYTES = byte_tokenizer()


def rows(count: int, first: int = 0, **more: object) -> Data:
    made = TensorRows({"labels": torch.arange(first, first + count)})
    return Data(made, name=f"from {first}", **more)  # type: ignore[arg-type]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.5, 1.0, 2.0, 3.5]), st.integers(1, 30)), min_size=1, max_size=4
    )
)
def test_every_beginning_of_a_mixture_has_its_shares(parts: list[tuple[float, int]]) -> None:
    weights, counts = zip(*parts)
    order = in_turn(weights, counts)
    taken: Counter[int] = Counter()
    for step, (part, row) in enumerate(order, start=1):
        assert row == taken[part] < counts[part]
        taken[part] += 1
        for at, weight in enumerate(weights):
            assert abs(taken[at] - step * weight / sum(weights)) < len(parts)
    behind = [w / sum(weights) * (len(order) + 1) - taken[i] for i, w in enumerate(weights)]
    first = max(range(len(behind)), key=lambda i: (round(behind[i], 9), -i))
    assert taken[first] == counts[first], "it ends where the next row is not there"


def test_equal_weights_are_in_turn() -> None:
    assert [part for part, _ in in_turn([1, 1, 1], [2, 3, 2])] == [0, 1, 2, 0, 1, 2]


def test_rows_of_a_mixture_are_those_of_its_parts() -> None:
    one, other = rows(4, test=rows(2, 90).train), rows(9, 100)
    both = mixed([one, other], [1, 2])
    found = [int(both.train[i]["labels"]) for i in range(len(both.train))]
    assert found == [100, 0, 101, 102, 1, 103, 104, 2, 105, 106, 3, 107, 108]
    assert both.test is not None and len(both.test) == 2
    assert both.notes == ()
    assert mixed([one, rows(50, 100)], [1, 1]).notes == (
        "from 100: 46 rows are not used, as the others of the mixture are used up",
    )


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(
        InvalidInputError, match=r"images \(from 9\) cannot be mixed with  \(from 0"
    ):
        mixed([rows(2), rows(2, 9, kind="images")], [1, 1])
    with pytest.raises(InvalidInputError, match="from 9 has other classes than from 0"):
        mixed([rows(2, labels=("a",)), rows(2, 9, labels=("b",))], [1, 1])
    with pytest.raises(InvalidInputError, match="batches of from 9 are not made as of from 0"):
        mixed([rows(2), rows(2, 9, collate=lambda rows: {})], [1, 1])


def test_a_list_in_a_recipe_is_a_mixture(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name * 64)
    given = [{"text": str(tmp_path / f"{name}.txt"), "length": 8} for name in "ab"]
    data = make_data([{**given[0], "weight": 3}, given[1]], BYTES)
    letters = [BYTES.decode(data.train[i]["input_ids"])[0] for i in range(len(data.train))]
    assert Counter(letters)["a"] == 8 and letters[:4] == ["a", "a", "b", "a"]
    assert Counter(letters)["b"] in (2, 3) and data.options[0]["weight"] == 3
    assert data.name == f"{given[0]['text']} + {given[1]['text']}"
    talk = {"chat": str(tmp_path / "a.txt")}
    with pytest.raises(InvalidInputError):
        make_data([given[0], talk], BYTES)


def test_calibration_windows_of_several_texts_are_in_turn(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{i:03}" for i in range(40)))
    a, b = (str(tmp_path / f"{name}.txt") for name in "ab")
    both = mixed_windows(BYTES, [a, b], windows=6, length=8, batch_size=4)
    rows = torch.cat([batch.input_ids for batch in both])
    one, other = (token_windows(BYTES, name, windows=3, length=8) for name in (a, b))
    for at, part in enumerate((one, other)):
        assert torch.equal(rows[at::2], torch.cat([batch.input_ids for batch in part]))
    assert [len(batch.input_ids) for batch in both] == [4, 2]
    assert both.recipe["data"] == f"{a} + {b}" and both.num_tokens == 48
    assert "texts in turn" in both.describe() and "6 windows x 8 tokens = 48" in both.describe()
    heavy = mixed_windows(BYTES, [{"text": a, "weight": 2}, b], windows=6, length=8)
    first = [chr(int(batch.input_ids[0, 0])) for batch in heavy]
    assert Counter(first) == {"a": 4, "b": 2}
    with pytest.raises(InvalidInputError, match="1 windows are too few for 2 texts"):
        mixed_windows(BYTES, [a, b], windows=1, length=8)
