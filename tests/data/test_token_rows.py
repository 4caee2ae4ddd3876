"""Synthetic tasks by name, and tasks whose batches are drawn as a whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modwright.core.errors import InvalidInputError
from modwright.core.registry import registries_restored
from modwright.data import dataset, make_data
from modwright.data.synthetic import TokenDataset, induction_heads, selective_copying
from modwright.data.token_rows import DrawnBatches, token_rows


def test_tasks_are_those_of_their_functions() -> None:
    data = make_data({"tokens": "selective-copying", "sequences": 5, "test": 3, "length": 9})
    expected, held_out = selective_copying(5, 9), selective_copying(3, 9, seed=1)
    assert isinstance(data.train, TokenDataset) and isinstance(data.test, TokenDataset)
    assert torch.equal(data.train.input_ids, expected.input_ids)
    assert torch.equal(data.test.labels, held_out.labels)
    data = make_data({"tokens": "induction-heads", "sequences": 4, "returns": 2, "seed": 7})
    assert torch.equal(data.train[3]["labels"], induction_heads(4, returns=2, seed=7)[3]["labels"])
    assert data.test is not None and int((data.test[0]["labels"] != -100).sum()) == 1
    batch = next(iter(data.batches("test", 2)))
    assert batch["input_ids"].shape == (2, 65)


def shifted(rows: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """All rows of a batch are shifted by the same number."""
    start = torch.randint(100, (1,), generator=generator)
    ids = (start + torch.arange(4)).repeat(rows, 1)
    return {"input_ids": ids, "labels": ids.clone()}


def test_batches_may_be_drawn_as_a_whole_and_anew_in_each_epoch() -> None:
    with registries_restored():

        @dataset("shifted", kind="tokens")
        def make(seed: int = 0) -> tuple[DrawnBatches, TokenDataset]:
            return DrawnBatches(shifted, rows=8, seed=seed), selective_copying(2, 5, 2)

        data, again = make_data({"tokens": "shifted"}), make_data({"tokens": "shifted"})
    rows: Any = data.train
    first = data.collate([rows[i] for i in (3, 1)])
    assert len(rows) == 8 and first["input_ids"].shape == (2, 4)
    assert torch.equal(first["input_ids"][0], first["input_ids"][1])
    assert torch.equal(
        again.collate([again.train[i] for i in (3, 1)])["input_ids"], first["input_ids"]
    )
    seen = set()
    for epoch in range(6):
        rows.set_epoch(epoch)
        seen.add(int(data.collate([rows[3]])["input_ids"][0, 0]))
    assert len(seen) > 3
    assert data.test is not None and data.collate([data.test[0]])["input_ids"].shape == (1, 8)
    with pytest.raises(IndexError):
        rows[8]


def test_what_is_no_task_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="tokens are a TokenDataset, not list"):
        token_rows([])
    with pytest.raises(InvalidInputError, match="measure on are a TokenDataset, not str"):
        token_rows((selective_copying(2, 5, 2), "x"))
