"""Attention maps: against the formula, of heads as they are, with the setting put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers import edit
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.edits import remove
from modwright.training import AttentionMaps
from modwright.training.objectives.attention_maps import map_divergence, naive_map_divergence

from .stubs import tokens

IDS = tokens(2, 6, 100)


def test_the_divergence_and_its_gradient_are_those_of_the_formula() -> None:
    shape = (1, 2, 3, 3)
    hidden = torch.ones(3, 3).tril().bool()
    ours, theirs = (
        torch.randn(shape).masked_fill(~hidden, -torch.inf).softmax(-1) for _ in range(2)
    )
    assert torch.allclose(
        map_divergence(ours, theirs).double(), naive_map_divergence(ours, theirs), atol=1e-6
    )
    ours.requires_grad_()
    map_divergence(ours, theirs).sum().backward()
    expected = (-theirs / ours.detach()).masked_fill(theirs == 0, 0)
    assert torch.allclose(ours.grad, expected, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_maps_of_attentions_that_are_there_are_compared(tiny: Any, padded: bool) -> None:
    teacher = tiny.copy("tiny-llama")
    student = tiny.copy("tiny-llama")
    with torch.no_grad():
        student.model.layers[2].self_attn.q_proj.weight.mul_(-1)
    student = edit(student, remove(Anatomy.of(student).blocks[0].attention), check=False).model
    how = AttentionMaps(teacher)
    how.prepare(student)
    batch = {"input_ids": IDS}
    if padded:
        batch["attention_mask"] = torch.tensor([[1] * 4 + [0] * 2, [1] * 6])
    before = [m.config._attn_implementation for m in (student, teacher)]
    found, _ = how(student, batch)
    assert [m.config._attn_implementation for m in (student, teacher)] == before
    found.backward()
    learned = [n for n, p in student.named_parameters() if p.grad is not None and p.grad.any()]
    assert any("layers.3.self_attn.q_proj" in name for name in learned)
    for model in (student, teacher):
        model.set_attn_implementation("eager")
    maps = [m(**batch, output_attentions=True).attentions for m in (student, teacher)]
    real = batch.get("attention_mask", torch.ones_like(IDS)).bool()[:, None]
    each = [
        naive_map_divergence(maps[0][i], maps[1][i])[real.expand_as(maps[1][i][..., 0])].mean()
        for i in (1, 2, 3)
    ]
    assert torch.allclose(found.double(), torch.stack(each).mean(), atol=1e-5)


def test_other_numbers_of_heads_are_compared_in_the_mean(tiny: Any) -> None:
    teacher = tiny.copy("tiny-llama")
    student = tiny.copy("tiny-llama", num_attention_heads=2, num_key_value_heads=2)
    how = AttentionMaps(teacher, layers="last")
    how.prepare(student)
    assert torch.isfinite(how(student, {"input_ids": IDS})[0])
    each = AttentionMaps(teacher, layers="last", heads="each")
    each.prepare(student)
    with pytest.raises(InvalidInputError, match="heads: each needs as many in both; 2 and 6"):
        each(student, {"input_ids": IDS})
