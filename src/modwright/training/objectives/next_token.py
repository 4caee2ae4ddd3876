"""Prediction of the next token, as language models are trained by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.core.errors import InvalidInputError
from modwright.training.batches import Batch, inputs_of, logits_of
from modwright.training.objectives.base import Losses, Objective, objective

__all__ = ["UNASKED", "NextToken", "naive_next_token", "next_tokens"]

UNASKED = -100
"""The label of a token that is not asked for."""


def next_tokens(batch: Batch) -> Tensor:
    """(B, T - 1): what is asked for at every token but the last; -100 where nothing is.

    A batch's labels stand at the tokens themselves, as transformers has them: those of prompts are
    -100. Without labels every token is asked for that is not padding.

    Example:
        >>> ids, mask = torch.tensor([[5, 6, 7, 0]]), torch.tensor([[1, 1, 1, 0]])
        >>> next_tokens({"input_ids": ids, "attention_mask": mask}).tolist()
        [[6, 7, -100]]
    """
    labels = batch.get("labels")
    if labels is not None:
        return labels[:, 1:]
    if "input_ids" not in batch:
        raise InvalidInputError(
            f"the batch has neither labels nor input_ids; it has {', '.join(batch)}"
        )
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        # Behind padding on the left nothing predicts the first token.
        real = mask.bool() & F.pad(mask[:, :-1].bool(), (1, 0), value=False)
        ids = ids.masked_fill(~real, UNASKED)
    return ids[:, 1:]


@objective("next_token")
@dataclass(frozen=True)
class NextToken(Objective):
    """Cross-entropy with the next token, in float32, mean over the tokens that are asked for.

    Where a batch has no labels, every token but padding is asked for. What a model adds to its own
    loss (balance of experts) is left out.

    Attributes:
        label_smoothing: share of the target that is spread over the vocabulary.

    Raises:
        InvalidInputError: a number out of its range.

    Example:
        >>> import modwright
        >>> model = modwright.open("preset:tiny-llama").model
        >>> loss, _ = NextToken()(model, {"input_ids": torch.tensor([[3, 4, 5]])})
        >>> loss.dim(), loss.requires_grad
        (0, True)
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise InvalidInputError(f"label_smoothing lies in [0, 1), not {self.label_smoothing}")

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        logits = logits_of(model(**inputs_of(batch)), model)
        return self.of_logits(logits, batch), {}

    def of_logits(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of logits (B, T, K) on a batch."""
        asked = next_tokens(batch)
        total = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(),
            asked.flatten(),
            reduction="sum",
            label_smoothing=self.label_smoothing,
            ignore_index=UNASKED,
        )
        return total / (asked != UNASKED).sum().clamp(min=1)


def naive_next_token(logits: Tensor, batch: Batch) -> Tensor:
    """The truth: token by token, in float64."""
    losses = [
        -row[position].double().log_softmax(-1)[token]
        for row, asked in zip(logits, next_tokens(batch))
        for position, token in enumerate(asked.tolist())
        if token != UNASKED
    ]
    return torch.stack(losses).mean()
