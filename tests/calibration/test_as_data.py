"""Calibration data is taken as it is meant, or refused in one line that says what is valid."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modwright.calibration import Similarity, calibrate, calibration_of, token_windows
from modwright.core.errors import InvalidInputError
from modwright.data.text import from_sequences

IDS = [[5, 6, 7], [8, 9, 10]]


@pytest.mark.parametrize(
    "given",
    [
        IDS,
        torch.tensor(IDS),
        [torch.tensor(row) for row in IDS],
        tuple(map(tuple, IDS)),
        from_sequences([torch.tensor(row) for row in IDS], pad_id=0),
    ],
)
def test_fault_B4_token_ids_of_any_form_are_one_data(given: Any) -> None:
    found = calibration_of(given)
    assert found.recipe["tokens"] == 6
    assert [batch.tensors()["input_ids"].tolist() for batch in found] == [[IDS[0]], [IDS[1]]]


def test_fault_B4_batches_by_keyword_are_taken(tiny: Any) -> None:
    batches = [{"input_ids": torch.tensor(IDS), "attention_mask": torch.ones(2, 3).long()}]
    for given in (batches, batches[0], iter(batches)):
        (batch,) = calibration_of(given)
        assert batch.tensors()["input_ids"].tolist() == IDS
    model = tiny("tiny-llama")
    found = calibrate(model, batches, Similarity())
    assert len(found.column("attention")) == 4
    assert repr(found) == "Statistics(4 blocks: similarity)"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["hello"], "a list of str"),
        ("hello", "a list of str"),
        ([], "list"),
        (None, "NoneType"),
        (torch.rand(2, 3), "a list of Tensor"),
        ([[0.5, 1.0]], "a list of list"),
        (7, "int"),
    ],
)
def test_fault_B4_other_data_is_refused_with_what_is_valid(given: Any, said: str) -> None:
    with pytest.raises(
        InvalidInputError, match=f"calibration data cannot be {said}; .*token_windows"
    ) as no:
        calibration_of(given)
    assert "\n" not in str(no.value)


def test_fault_B4_windows_need_a_tokenizer() -> None:
    for given in (None, "gpt2", torch.nn.Linear(1, 1)):
        with pytest.raises(InvalidInputError, match="expected a tokenizer"):
            token_windows(given, "lee", windows=1, length=4)
