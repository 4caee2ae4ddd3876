"""Distillation on logits: against its formulas, at the tokens that count, of two vocabularies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from modwright.core.errors import InvalidInputError
from modwright.training.objectives import CrossEntropy, Distillation, NextToken
from modwright.training.objectives.distillation import (
    divergence_of,
    naive_divergence,
    top_k_divergence,
)
from modwright.training.teachers import TopK

from .stubs import Says, logits, tokens

IDS = tokens()


def speakers(*shape: int, generates: bool = True) -> tuple[Says, Says]:
    return Says(logits(*shape), generates), Says(logits(*shape, seed=2), generates)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_divergence_and_its_gradient_are_those_of_the_formula(temperature: float) -> None:
    wanted, given = logits(5, 9), logits(5, 9, seed=3)
    fast, slow = given.clone().requires_grad_(), given.clone().requires_grad_()
    found = divergence_of(fast, wanted, temperature)
    truth = naive_divergence(slow, wanted, temperature)
    found.sum().backward()
    truth.sum().backward()
    assert torch.allclose(found.double(), truth, atol=1e-5)
    assert torch.allclose(fast.grad, slow.grad, atol=1e-5)


def test_cross_entropy_with_the_teacher_has_the_gradients_of_the_divergence() -> None:
    gradients = []
    for divergence in ("kl", "cross_entropy"):
        teacher, student = speakers(4, 9, generates=False)
        how = Distillation(teacher, 1.0, 2.0, divergence=divergence)
        how(student, {"pixel_values": IDS})[0].backward()
        gradients.append(student.logits.grad)
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize("kind", ["plain", "prompts", "padding"])
def test_a_language_model_is_taught_where_a_token_is_asked_for(kind: str) -> None:
    teacher, student = speakers(2, 7, 9)
    counted = torch.ones(2, 7, dtype=torch.bool)
    batch = {"input_ids": IDS}
    if kind == "prompts":
        batch["labels"] = IDS.masked_fill(torch.arange(7) < 3, -100)
        counted[:, :2] = False
    if kind == "padding":
        batch["attention_mask"] = torch.tensor([[1] * 5 + [0] * 2, [1] * 7])
        counted[0, 4:] = False
    counted[:, -1] = False
    loss, named = Distillation(teacher, weight=0.75)(student, batch)
    of_teacher = naive_divergence(student.logits, teacher.logits)[counted].mean()
    of_text = NextToken()(student, batch)[0]
    assert torch.allclose(loss.double(), 0.25 * of_text + 0.75 * of_teacher, atol=1e-5)
    assert set(named) == {"classes", "teacher"}
    loss.backward()
    assert not student.logits.grad[~counted].any() and teacher.logits.grad is None
    assert student.logits.grad[counted].abs().sum(-1).all()


def test_labels_of_each_token_are_not_shifted_where_a_model_does_not_generate() -> None:
    teacher, student = speakers(2, 7, 9, generates=False)
    labels = IDS.masked_fill(torch.arange(7) % 2 == 0, -100)
    loss, _ = Distillation(teacher, weight=0.5)(student, {"input_ids": IDS, "labels": labels})
    kept = labels != -100
    of_labels = F.cross_entropy(student.logits[kept], labels[kept])
    of_teacher = naive_divergence(student.logits, teacher.logits)[kept].mean()
    assert torch.allclose(loss.double(), 0.5 * of_labels + 0.5 * of_teacher, atol=1e-5)
    assert torch.allclose(CrossEntropy().of_logits(student.logits, labels), of_labels)


def test_labels_are_needed_unless_the_teacher_is_all() -> None:
    teacher, student = speakers(2, 9, generates=False)
    Distillation(teacher, weight=1.0)(student, {"pixel_values": IDS})
    with pytest.raises(InvalidInputError, match="no labels; with weight 1 none are needed"):
        Distillation(teacher, weight=0.5)(student, {"pixel_values": IDS})


def test_fault_B25_padded_vocabularies_are_compared_over_the_tokens_there_are() -> None:
    teacher, student = Says(logits(2, 7, 12, seed=2), True), Says(logits(2, 7, 9), True)
    with pytest.raises(InvalidInputError, match="the model gives 9 logits and its teacher 12; if"):
        Distillation(teacher, 1.0)(student, {"input_ids": IDS})
    loss, _ = Distillation(teacher, 1.0, vocab_size=8)(student, {"input_ids": IDS})
    truth = naive_divergence(student.logits[:, :-1, :8], teacher.logits[:, :-1, :8]).mean()
    assert torch.allclose(loss.double(), truth, atol=1e-5)
    with pytest.raises(InvalidInputError, match="vocab_size is 10, and the two models know 9 and"):
        Distillation(teacher, 1.0, vocab_size=10)(student, {"input_ids": IDS})


def test_the_best_k_and_the_rest_are_the_whole_where_k_is_all() -> None:
    wanted, given = logits(6, 9), logits(6, 9, seed=3)
    whole = naive_divergence(given, wanted, 1.5)
    for k in (1, 3, 8, 9):
        stored = TopK.of_logits(wanted, k, 1.5)
        found = top_k_divergence(given, stored, 1.5).double()
        p, q = (torch.log_softmax(x.double() / 1.5, -1).exp() for x in (wanted, given))
        best = p.topk(k).indices
        kept = [x.gather(-1, best) for x in (p, q)]
        rest = [(1 - x.sum(-1)).clamp(min=1e-12) for x in kept]
        truth = (kept[0] * (kept[0] / kept[1]).log()).sum(-1)
        truth += (rest[0] * (rest[0] / rest[1]).log()) * (k < 9)
        assert torch.allclose(found, truth, atol=1e-4), k
        assert (found <= whole + 1e-4).all()
    assert torch.allclose(found, whole, atol=1e-5)


def test_gradients_through_the_best_k_are_finite_and_near_the_whole() -> None:
    wanted = logits(6, 9)
    given = [logits(6, 9, seed=3).requires_grad_() for _ in range(2)]
    top_k_divergence(given[0], TopK.of_logits(wanted, 9), 1.0).sum().backward()
    divergence_of(given[1], wanted).sum().backward()
    assert torch.isfinite(given[0].grad).all()
    assert torch.allclose(given[0].grad, given[1].grad, atol=1e-4)


def test_a_teacher_that_nobody_opened_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="the teacher 'source' is not open"):
        Distillation()(Says(logits(2, 9)), {"pixel_values": IDS})


def test_a_wrapped_model_is_told_by_what_it_wraps(tiny: Any) -> None:
    model = torch.nn.DataParallel(tiny("tiny-llama"))
    loss, _ = Distillation(tiny("tiny-llama"), 1.0)(model, {"input_ids": tokens(2, 9, 100)})
    assert float(loss) < 1e-6
