"""What came of a healing, and whether it paid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modwright.training.held_out import HeldOut

__all__ = ["HealPoint", "HealResult", "summary_sentence"]

Texts = Mapping[str, HeldOut]


@dataclass(frozen=True)
class HealPoint:
    """What held-out texts said after some steps.

    Attributes:
        step: of the optimizer.
        tokens: learned from so far.
        texts: by name.
    """

    step: int
    tokens: int
    texts: Texts


@dataclass(frozen=True)
class HealResult:
    """What came of a healing.

    Attributes:
        baseline: the teacher on the held-out texts.
        curve: the model there, before the first step, at every quarter and after the last.
        best_step: whose state the model has: the nearest to the teacher.
        steps: optimizer steps.
        seconds: of the training, measuring included.
        parameters: numbers that learned.
        control: the baseline trained the same way; None where that was not asked for.
        notes: what is to be known, in sentences.
        options: of the healing, with the number of steps.
        sentence: what did not pay; empty where it did.
    """

    baseline: Texts
    curve: tuple[HealPoint, ...]
    best_step: int
    steps: int
    seconds: float
    parameters: int
    control: Texts | None = None
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    sentence: str = ""

    @property
    def before(self) -> Texts:
        """The model before it was healed."""
        return self.curve[0].texts

    @property
    def after(self) -> Texts:
        """The model as it is now."""
        return next(point.texts for point in self.curve if point.step == self.best_step)

    @property
    def tokens(self) -> int:
        """Learned from until the state that was kept."""
        return next(point.tokens for point in self.curve if point.step == self.best_step)

    def gap_closed(self, name: str) -> float | None:
        """The share of the gap in log-perplexity to the baseline, or to its control, that is gone.

        1 - ln(after / reference) / ln(before / baseline), the reference being the control where
        there is one; None where there was no gap.
        """
        reference = (self.control or self.baseline)[name].perplexity
        gap = math.log(self.before[name].perplexity / self.baseline[name].perplexity)
        if not math.isfinite(gap) or gap <= 0:
            return None
        return 1 - math.log(self.after[name].perplexity / reference) / gap

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for reports."""
        plain = dataclasses.asdict(self)
        closed = {name: self.gap_closed(name) for name in self.baseline}
        return {**plain, "tokens": self.tokens, "gap_closed": closed}


def summary_sentence(result: HealResult, own_loss: float = 0.0) -> str:
    """A sentence where healing did not pay; empty where it did.

    Args:
        result: of the healing.
        own_loss: the share of the text's own loss in it.
    """
    if result.best_step == 0:
        return (
            "healing did not pay: no state of it is nearer to the baseline on the held-out texts "
            "than the model was before"
        )
    told = []
    for name, after in result.after.items():
        before = result.before[name]
        if after.divergence >= before.divergence:
            told.append(
                f"on {name} it is farther from the baseline than before ({before.divergence:.4f} "
                f"-> {after.divergence:.4f} nats)"
            )
        elif after.perplexity > before.perplexity:
            told.append(
                f"on {name} its perplexity rose ({before.perplexity:.2f} -> {after.perplexity:.2f})"
            )
        elif own_loss and result.control is not None:
            closed = result.gap_closed(name)
            if closed is not None and closed <= 0:
                told.append(
                    f"on {name} the baseline gains as much from the same text, so what was gained "
                    "is its domain"
                )
    return f"healing did not pay everywhere: {'; '.join(told)}" if told else ""
