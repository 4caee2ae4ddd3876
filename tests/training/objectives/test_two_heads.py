"""DeiT's two heads: each learns from its own target, in our models and in transformers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from helpers import snapshot, unchanged
from modwright.core.errors import InvalidInputError
from modwright.models import create_model
from modwright.training import Training, TwoHeads, train
from modwright.training.objectives.two_heads import both_heads

SIZES: dict[str, Any] = {"depths": 1, "hidden_size": 16, "num_heads": 2, "image_size": 32}
LABELS = torch.tensor([0, 1, 2, 3])


def students() -> list[Any]:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    torch.manual_seed(0)
    ours = create_model("deit_tiny_distilled_patch16_224", num_classes=4, **SIZES)
    config = DeiTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        num_labels=4,
    )
    return [ours, DeiTForImageClassificationWithTeacher(config)]


def teacher() -> Any:
    torch.manual_seed(1)
    return create_model("deit_tiny_patch16_224", num_classes=4, **SIZES).eval()


def batch() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(4, 3, 32, 32), "labels": LABELS}


@pytest.mark.parametrize("which", [0, 1], ids=["ours", "transformers"])
@pytest.mark.parametrize("hard", [False, True])
def test_fault_C4_each_head_has_its_own_target(which: int, hard: bool) -> None:
    student, source, given = students()[which], teacher(), batch()
    first, second = both_heads(student, given)
    mean = student(pixel_values=given["pixel_values"]).logits
    assert torch.allclose((first + second) / 2, mean, atol=1e-6)
    wanted = source(pixel_values=given["pixel_values"]).logits
    loss, named = TwoHeads(source, weight=0.3, hard=hard, temperature=2.0)(student, given)
    of_labels = F.cross_entropy(first, LABELS)
    if hard:
        of_teacher = F.cross_entropy(second, wanted.argmax(-1))
    else:
        shares = [(x / 2).softmax(-1) for x in (wanted, second)]
        of_teacher = 4 * (shares[0] * (shares[0] / shares[1]).log()).sum(-1).mean()
    assert torch.allclose(loss, 0.7 * of_labels + 0.3 * of_teacher, atol=1e-6)
    assert torch.allclose(named["classes"], of_labels)
    heads = [n for n, _ in student.named_modules() if "classifier" in n or "head.fc" in n]
    for weight, silent in ((0.0, "distill"), (1.0, "")):
        student.zero_grad()
        TwoHeads(source, weight=weight, hard=hard)(student, given)[0].backward()
        for name in heads:
            is_second = "distill" in name
            moved = bool(student.get_submodule(name).weight.grad.any())
            assert moved is (is_second if silent == "" else not is_second), name


def test_fault_C4_a_training_of_two_heads_leaves_its_teacher(tmp_path: Any) -> None:
    student, source = students()[0], teacher()
    before = snapshot(source)
    rows = [{"pixel_values": torch.randn(3, 32, 32), "labels": label} for label in LABELS]
    asked = Training(TwoHeads(source), arguments={"max_steps": 3, "learning_rate": 1e-2})
    train(student, rows, asked, log=lambda said: None)
    assert unchanged(source, before)
    assert not torch.equal(student.head.fc.weight, student.head.fc_distilled.weight)


def test_a_model_of_one_head_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="has no second head for a teacher's answers"):
        TwoHeads(teacher()).prepare(teacher())
