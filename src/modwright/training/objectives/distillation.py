"""A teacher's answers as targets: soft or hard, beside the labels or alone (arXiv 1503.02531).

Axes: B rows of a batch, T tokens of a row, N answers that count, K classes or tokens of a
vocabulary, k of them that are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.core.errors import InvalidInputError
from modwright.training.batches import Batch, inputs_of, logits_of, unwrapped
from modwright.training.objectives.base import Losses, Objective, check_share, objective
from modwright.training.objectives.cross_entropy import CrossEntropy
from modwright.training.objectives.next_token import UNASKED, NextToken, next_tokens
from modwright.training.teachers import TopK, as_teacher, opened

__all__ = ["Distillation", "divergence_of", "naive_divergence", "top_k_divergence"]

Divergence = Literal["kl", "cross_entropy"]


def divergence_of(logits: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of each answer: logits (N, K), teacher's (N, K) -> (N,), float32.

    Example:
        >>> same = torch.tensor([[2.0, 0.0]])
        >>> divergence_of(same, same).tolist()
        [0.0]
    """
    ours = (logits.float() / temperature).log_softmax(-1)
    theirs = (wanted.float() / temperature).log_softmax(-1)
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def naive_divergence(logits: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """The truth: its formula, in float64."""
    p, q = ((x.double() / temperature).softmax(-1) for x in (wanted, logits))
    return (p * (p.log() - q.log())).sum(-1)


def top_k_divergence(logits: Tensor, wanted: TopK, temperature: float = 1.0) -> Tensor:
    """KL of the k classes that are stored and of all others as one: never more than the whole KL.

    logits (N, K), stored (N, k) -> (N,).
    """
    ours = (logits.float() / temperature).log_softmax(-1)
    picked = ours.gather(-1, wanted.index)
    theirs = wanted.log_probs.float()
    within = (theirs.exp() * (theirs - picked)).sum(-1)
    rest = wanted.rest
    # log of what the student gives to all others; where the k hold all, nothing is left
    others = torch.log(-torch.expm1(picked.logsumexp(-1).clamp(max=-1e-7)))
    return within + torch.where(rest > 0, rest * (rest.clamp(min=1e-30).log() - others), 0.0)


@objective("distillation")
@dataclass(frozen=True)
class Distillation(Objective):
    """A teacher's answers as targets, beside the labels.

    A language model is taught at every token whose next one is asked for, a classifier on every
    row. The rest of the loss is the data's own: next token or cross-entropy with the labels.

    Attributes:
        teacher: a model, the path of one or of a file of stored answers, or "source": the model
            that the recipe opened. It stays as it is: a student that was made of it gets tensors
            of its own before it is trained.
        weight: of the teacher's part; with 1 the data's own loss is not computed.
        temperature: of soft targets.
        hard: the teacher's best class is the target, instead of its probabilities
            (arXiv 2012.12877).
        divergence: "kl", which is 0 where both say the same, or "cross_entropy", which has the
            same gradients.
        vocab_size: so many tokens are compared, where two models of one tokenizer pad their
            vocabularies to different sizes.

    Raises:
        InvalidInputError: a number out of its range; later, logits of different widths.

    Example:
        >>> import modwright
        >>> model = modwright.open("preset:tiny-llama").model
        >>> batch = {"input_ids": torch.ones(1, 4, dtype=torch.long)}
        >>> loss, named = Distillation(model, weight=1.0)(model, batch)
        >>> bool(loss < 1e-6), list(named)
        (True, ['teacher'])
    """

    teacher: Any = "source"
    weight: float = 0.5
    temperature: float = 1.0
    hard: bool = False
    divergence: Divergence = "kl"
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        check_share(weight=self.weight)
        if not self.temperature > 0:
            raise InvalidInputError(f"temperature is above 0, not {self.temperature}")
        if not isinstance(self.teacher, str):
            object.__setattr__(self, "teacher", as_teacher(self.teacher))

    def teachers(self) -> tuple[nn.Module, ...]:
        return opened(self.teacher).modules()

    def prepare(self, model: Any) -> None:
        if not self.hard:
            opened(self.teacher).check(self.temperature)

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        wanted = opened(self.teacher).answers(batch)
        logits = logits_of(model(**inputs_of(batch)), model)
        of_teacher = self._of_teacher(model, logits, wanted, batch)
        named = {"teacher": of_teacher.detach()}
        if self.weight == 1:
            return of_teacher, named
        of_labels = self._of_labels(model, logits, batch)
        named = {"classes": of_labels.detach(), **named}
        return (1 - self.weight) * of_labels + self.weight * of_teacher, named

    def _of_labels(self, model: nn.Module, logits: Tensor, batch: Batch) -> Tensor:
        if predicts_next(model, logits):
            return NextToken().of_logits(logits, batch)
        if "labels" not in batch:
            raise InvalidInputError(
                f"the batch has no labels; with weight 1 none are needed; it has {', '.join(batch)}"
            )
        return CrossEntropy().of_logits(logits, batch["labels"])

    def _of_teacher(
        self, model: nn.Module, logits: Tensor, wanted: Tensor | TopK, batch: Batch
    ) -> Tensor:
        counted = _counted(model, logits, batch)
        ours, theirs = logits[counted].flatten(0, -2), wanted[counted].flatten(0, -2)
        ours, theirs = self._of_one_width(ours, theirs)
        found = self._each(ours, theirs)
        return found.sum() / max(len(found), 1)

    def _each(self, ours: Tensor, theirs: Tensor | TopK) -> Tensor:
        """The loss of each answer."""
        if self.hard:
            return F.cross_entropy(ours.float(), theirs.argmax(-1), reduction="none")
        scale = self.temperature**2
        if isinstance(theirs, TopK):
            return top_k_divergence(ours, theirs, self.temperature) * scale
        if self.divergence == "kl":
            return divergence_of(ours, theirs, self.temperature) * scale
        shares = (theirs / self.temperature).softmax(-1)
        return -(shares * (ours / self.temperature).log_softmax(-1)).sum(-1) * scale

    def _of_one_width(self, ours: Tensor, theirs: Tensor | TopK) -> tuple[Tensor, Tensor | TopK]:
        width = theirs.shape[-1] if isinstance(theirs, Tensor) else theirs.vocab_size
        own = ours.shape[-1]
        if self.vocab_size is not None:
            if self.vocab_size > min(width, own):
                raise InvalidInputError(
                    f"vocab_size is {self.vocab_size}, and the two models know {own} and {width}"
                )
            if isinstance(theirs, Tensor):
                theirs = theirs[..., : self.vocab_size]
            elif len(theirs.index) and int(theirs.index.max()) >= self.vocab_size:
                raise InvalidInputError(
                    f"a stored answer is token {int(theirs.index.max())}, and vocab_size is "
                    f"{self.vocab_size}"
                )
            return ours[..., : self.vocab_size], theirs
        if own != width:
            raise InvalidInputError(
                f"the model gives {own} logits and its teacher {width}; if both have one "
                "tokenizer, vocab_size says how many tokens it has"
            )
        return ours, theirs


def predicts_next(model: nn.Module, logits: Tensor) -> bool:
    """Whether logits (B, T, K) are of the tokens that come next: the model can generate."""
    able = getattr(unwrapped(model), "can_generate", None)
    return logits.dim() == 3 and callable(able) and bool(able())


def _counted(model: nn.Module, logits: Tensor, batch: Batch) -> Any:
    """Which answers of a batch count, as an index of its axes."""
    if logits.dim() != 3:
        return ...
    if predicts_next(model, logits):
        if "labels" not in batch and "attention_mask" not in batch:
            return slice(None), slice(-1)  # a view, which a mask would copy
        return F.pad(next_tokens(batch) != UNASKED, (0, 1), value=False)
    labels, mask = batch.get("labels"), batch.get("attention_mask")
    if labels is not None and labels.shape == logits.shape[:2]:
        return labels != UNASKED
    if mask is not None and mask.shape == logits.shape[:2]:
        return mask.bool()
    return ...
