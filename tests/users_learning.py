"""A text, a metric and an objective of a user's; tests name a copy of it as a plugin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from modwright.data import dataset
from modwright.metrics import Metric, Result, metric
from modwright.training import NextToken, Objective, objective


@dataset("countdown", kind="text", license="CC0-1.0", source="written by a loop")
def countdown(to: int = 60) -> list[str]:
    """Numbers that are counted down.

    Args:
        to: where the longest begins.
    """
    return [" ".join(map(str, range(number, 0, -1))) for number in range(to)]


@metric("surety", unit="nats", direction="lower", title="Entropy of the next token")
@dataclass(frozen=True)
class Surety(Metric):
    """Mean entropy of the distribution over the next token.

    Attributes:
        tokens: how many tokens are read, the first ids of the vocabulary.
    """

    tokens: int = 8

    def measure(self, subject: Any, progress: Any = None) -> Result:
        ids = torch.arange(self.tokens)[None]
        with torch.no_grad():
            log_p = subject.model(input_ids=ids).logits.float().log_softmax(-1)
        return Result(float(-(log_p.exp() * log_p).sum(-1).mean()), {"tokens": self.tokens})


@objective("next_token_times")
@dataclass(frozen=True)
class NextTokenTimes(Objective):
    """Next token, times a number.

    Attributes:
        weight: what the loss is multiplied by.
    """

    weight: float = 2.0

    def __call__(self, model: Any, batch: Any) -> Any:
        loss, _ = NextToken()(model, batch)
        return self.weight * loss, {"unweighted": loss.detach()}
