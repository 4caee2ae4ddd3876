"""DeiT's distillation: the class head learns from labels, the other from a teacher's answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from modwright.core.capture import HookPoint, capture
from modwright.core.errors import InvalidInputError
from modwright.training.batches import Batch, inputs_of, unwrapped
from modwright.training.objectives.base import Losses, Objective, check_share, objective
from modwright.training.objectives.cross_entropy import CrossEntropy
from modwright.training.objectives.distillation import divergence_of
from modwright.training.teachers import TopK, as_teacher, opened

__all__ = ["TwoHeads"]


@objective("two_heads")
@dataclass(frozen=True)
class TwoHeads(Objective):
    """Each of a model's two heads has a target of its own (arXiv 2012.12877).

    The head of the class token is trained with the labels, that of the distillation token with the
    teacher's answers; what the model says is their mean. It takes modwright's distilled vision
    transformers and transformers' ``DeiTForImageClassificationWithTeacher``.

    Attributes:
        teacher: a model, the path of one, or "source".
        weight: of the teacher's part.
        hard: the teacher's best class is the target; else its probabilities.
        temperature: of soft targets.
        label_smoothing: share of a label that is spread over all classes.

    Raises:
        InvalidInputError: a number out of its range, or a model without two heads.

    Example:
        >>> from modwright.models import create_model
        >>> sizes = {"depth": 1, "embed_dim": 8, "num_heads": 2, "image_size": 32}
        >>> student = create_model("deit_tiny_distilled_patch16_224", **sizes)
        >>> teacher = create_model("deit_tiny_patch16_224", **sizes)
        >>> batch = {"pixel_values": torch.zeros(2, 3, 32, 32), "labels": torch.tensor([0, 1])}
        >>> sorted(TwoHeads(teacher)(student, batch)[1])
        ['classes', 'teacher']
    """

    teacher: Any = "source"
    weight: float = 0.5
    hard: bool = True
    temperature: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_share(weight=self.weight)
        if not self.temperature > 0:
            raise InvalidInputError(f"temperature is above 0, not {self.temperature}")
        CrossEntropy(self.label_smoothing)
        if not isinstance(self.teacher, str):
            object.__setattr__(self, "teacher", as_teacher(self.teacher))

    def teachers(self) -> tuple[nn.Module, ...]:
        return opened(self.teacher).modules()

    def prepare(self, model: Any) -> None:
        if _head_of(model) is None and not hasattr(model, "distillation_classifier"):
            raise InvalidInputError(
                f"{type(model).__name__} has no second head for a teacher's answers; those of the "
                "deit_*_distilled_* models have"
            )

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        wanted = opened(self.teacher).answers(batch)
        of_labels, of_teacher = both_heads(model, batch)
        if isinstance(wanted, TopK):
            raise InvalidInputError("two heads learn from a live teacher, not from stored answers")
        if of_teacher.shape != wanted.shape:
            raise InvalidInputError(
                f"the model has {of_teacher.shape[-1]} classes and its teacher {wanted.shape[-1]}"
            )
        first = CrossEntropy(self.label_smoothing).of_logits(of_labels, batch["labels"])
        if self.hard:
            second = F.cross_entropy(of_teacher, wanted.argmax(-1))
        else:
            each = divergence_of(of_teacher, wanted, self.temperature)
            second = each.mean() * self.temperature**2
        loss = (1 - self.weight) * first + self.weight * second
        return loss, {"classes": first.detach(), "teacher": second.detach()}


def both_heads(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the two heads of a model say of a batch: (B, K) each."""
    head = _head_of(unwrapped(model))
    if head is None:
        output = model(**inputs_of(batch))
        return output.cls_logits, output.distillation_logits
    with capture({"tokens": HookPoint(head, "input")}, gradients=True) as seen:
        model(**inputs_of(batch))
    first, second = head.both(seen["tokens"])
    return first, second


def _head_of(model: nn.Module) -> Any:
    """The module that gives the answers of both heads; None where each has a name in the output."""
    return next((module for module in model.modules() if hasattr(module, "both")), None)
