"""Hidden states: against their formulas, of edited students, of other widths."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers import edit, snapshot, unchanged
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.edits import remove
from modwright.training import HiddenStates, Training, train
from modwright.training.objectives.hidden_states import (
    _LOSSES,
    naive_hidden_loss,
    paired,
)

from .stubs import tokens

IDS = tokens(2, 8, 100)


@pytest.mark.parametrize("loss", sorted(_LOSSES))
def test_each_loss_and_its_gradient_are_those_of_the_formula(loss: str) -> None:
    ours, theirs = torch.randn(5, 6), torch.randn(5, 6)
    fast, slow = ours.clone().requires_grad_(), ours.clone().requires_grad_()
    found, truth = _LOSSES[loss](fast, theirs), naive_hidden_loss(slow, theirs, loss)
    found.backward()
    truth.backward()
    assert torch.allclose(found.double(), truth, atol=1e-6)
    assert torch.allclose(fast.grad, slow.grad, atol=1e-6)


def test_blocks_are_paired_by_where_they_stand() -> None:
    assert paired("last", 3, 5) == {2: 4}
    assert paired("uniform", 2, 4) == {0: 1, 1: 3} and paired("uniform", 3, 3) == {0: 0, 1: 1, 2: 2}
    assert paired("uniform", 4, 2) == {0: 0, 1: 0, 2: 1, 3: 1}
    with pytest.raises(InvalidInputError, match="the teacher has no block 5; it has 0 to 4"):
        paired({0: 5}, 3, 5)
    with pytest.raises(InvalidInputError, match="last, uniform, or a mapping"):
        paired("first", 3, 5)


@pytest.mark.parametrize("padded", [False, True])
def test_a_student_without_a_part_learns_what_its_blocks_should_give(
    tiny: Any, padded: bool
) -> None:
    teacher = tiny.copy("tiny-llama")
    student = edit(teacher, remove(Anatomy.of(teacher).blocks[1].attention), check=False).model
    how = HiddenStates(teacher, layers={1: 1, 3: 3}, loss="mse")
    how.prepare(student)
    assert how.parts is None
    batch = {"input_ids": IDS}
    if padded:
        batch["attention_mask"] = torch.tensor([[1] * 6 + [0] * 2, [1] * 8])
    found, named = how(student, batch)
    states = [m(**batch, output_hidden_states=True).hidden_states for m in (student, teacher)]
    real = batch.get("attention_mask", torch.ones_like(IDS)).bool()
    truth = (states[0][2][real] - states[1][2][real]).square().mean()
    assert torch.allclose(named["hidden_states"], found)
    part = HiddenStates(teacher, layers={1: 1}, loss="mse")
    part.prepare(student)
    assert torch.allclose(part(student, batch)[0], truth, atol=1e-6)
    before = snapshot(teacher)
    rows = [{"input_ids": row} for row in IDS]
    train(student, rows, Training(how, arguments={"max_steps": 2}), log=lambda said: None)
    assert unchanged(teacher, before)


def test_other_widths_are_mapped_by_parts_that_learn(tiny: Any) -> None:
    teacher = tiny.copy("tiny-llama")
    student = tiny.copy("tiny-llama", hidden_size=36, head_dim=6)
    how = HiddenStates(teacher, layers="last", loss="mse")
    how.prepare(student)
    start = {name: t.clone() for name, t in how.parts.state_dict().items()}
    rows = [{"input_ids": row} for row in IDS]
    asked = Training(how, arguments={"max_steps": 3, "learning_rate": 1e-2})
    found = train(student, rows, asked, log=lambda said: None)
    now = how.parts.state_dict()
    assert set(now) == {"3.weight"} and not torch.equal(now["3.weight"], start["3.weight"])
    assert not any("parts" in name for name in student.state_dict()) and found.steps == 3
