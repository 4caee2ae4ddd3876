"""Rows, batches and what is said of a dataset."""

from __future__ import annotations

import json

import pytest
import torch

from modwright.core.errors import InvalidInputError
from modwright.data import Data, TensorRows, pad_rows, stack_rows
from modwright.data.dataset import IGNORED


class Listed:
    """A split that gives no digest of its own."""

    def __init__(self, rows: list[dict[str, torch.Tensor]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


def numbers(count: int = 5) -> TensorRows:
    return TensorRows(
        {"x": torch.arange(count * 2.0).view(count, 2), "labels": torch.arange(count)}
    )


def test_rows_lie_one_after_the_other() -> None:
    rows = numbers()
    assert len(rows) == 5 and rows[-1]["labels"] == 4
    assert stack_rows([rows[1], rows[3]])["x"].tolist() == [[2.0, 3.0], [6.0, 7.0]]
    with pytest.raises(IndexError):
        rows[5]
    assert [int(row["labels"]) for row in rows] == [0, 1, 2, 3, 4], "iterating ends"  # type: ignore[attr-defined]


def test_padding_is_filled_and_masked() -> None:
    rows = [
        {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)} for ids in ([1, 2, 3], [4])
    ]
    batch = pad_rows(rows, {"input_ids": 9, "labels": IGNORED})
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert pad_rows(rows, {}, mask=None).keys() == {"input_ids", "labels"}


def test_a_digest_is_of_all_rows_splits_and_classes() -> None:
    first = Data(numbers()).digest
    assert Data(numbers(), name="other", license="MIT", notes=("x",)).digest == first
    assert (
        len({first, Data(numbers(), numbers()).digest, Data(numbers(), labels=("a",)).digest}) == 3
    )
    for index, key in ((4, "x"), (0, "labels")):
        changed = numbers()
        changed.tensors[key][index] += 1
        assert Data(changed).digest != first
    other = TensorRows({"x": numbers().tensors["x"].double(), "labels": torch.arange(5)})
    assert Data(other).digest != first
    rows = [{"x": torch.tensor(i)} for i in range(3)]
    assert Data(Listed(rows)).digest == Data(Listed(list(rows))).digest
    assert Data(Listed(rows)).digest != Data(Listed(rows[::-1])).digest


def test_what_is_said_of_a_dataset_is_json() -> None:
    data = Data(numbers(), numbers(2), labels=("a", "b"), kind="toys", name="n", license="MIT")
    facts = json.loads(json.dumps(data.facts()))
    assert facts["rows"] == {"train": 5, "test": 2} and facts["sha256"] == data.digest
    assert data.describe() == "n: 5 rows to learn from, 2 to measure on, 2 classes, MIT"


def test_batches_are_the_first_rows_in_order() -> None:
    data = Data(numbers(), name="n")
    found = [batch["labels"].tolist() for batch in data.batches(batch_size=2)]
    assert found == [[0, 1], [2, 3], [4]]
    assert [len(b["x"]) for b in data.batches(batch_size=2, rows=3)] == [2, 1]
    for split, rows, said in (
        ("train", 6, "5 rows of train, not 6"),
        ("test", None, "0 rows of test"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            list(data.batches(split, rows=rows))
