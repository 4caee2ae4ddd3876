"""Assisted generation, and how much of what a draft proposes its model accepts (2310.07707)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modwright.anatomy.coerce import model_of
from modwright.core.capture import Call, on_forward
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode

__all__ = ["Assisted", "generate_assisted"]


@dataclass(frozen=True)
class Assisted:
    """What a model wrote with a draft's help, and what that cost.

    Attributes:
        tokens: (1, prompt and new tokens); those that the model writes alone.
        new_tokens: how many are new.
        drafted: tokens that the draft proposed.
        passes: forward passes of the model.
        draft_passes: of the draft.
    """

    tokens: Tensor
    new_tokens: int
    drafted: int
    passes: int
    draft_passes: int

    @property
    def acceptance_rate(self) -> float:
        """The share of the proposed tokens that were accepted: every pass of the model gives one
        token of its own beside them."""
        return max(0, self.new_tokens - self.passes) / self.drafted if self.drafted else 0.0

    @property
    def passes_per_token(self) -> float:
        """1 without a draft."""
        return self.passes / self.new_tokens if self.new_tokens else 0.0


@torch.no_grad()
def generate_assisted(
    model: Any, draft: Any, ids: Tensor, max_new_tokens: int = 64, num_draft_tokens: int = 4
) -> Assisted:
    """Greedy generation by transformers' ``assistant_model``, with what it cost counted.

    Args:
        draft: a model of the same vocabulary, such as one that was cut out of a nested model.
        ids: (1, t) the prompt.
        num_draft_tokens: what the draft proposes at once.

    Raises:
        InvalidInputError: several prompts, another vocabulary, or no tokens asked for.

    Example:
        >>> import modwright
        >>> from modwright.surgery.nest import extract
        >>> nested = modwright.apply(modwright.open("preset:tiny-llama"), "nest").model
        >>> found = generate_assisted(nested, extract(nested, "XL"), torch.tensor([[7, 8, 9]]), 10)
        >>> found.acceptance_rate, found.passes
        (1.0, 2)
    """
    model, draft = model_of(model), model_of(draft)
    if ids.dim() != 2 or len(ids) != 1:
        raise InvalidInputError(f"one prompt of shape (1, t) is needed, not {tuple(ids.shape)}")
    if min(max_new_tokens, num_draft_tokens) < 1:
        raise InvalidInputError("max_new_tokens and num_draft_tokens are at least 1")
    sizes = [one.config.get_text_config().vocab_size for one in (model, draft)]
    if sizes[0] != sizes[1]:
        raise InvalidInputError(f"the draft has {sizes[1]} tokens and the model {sizes[0]}")
    read: dict[str, list[int]] = {"model": [], "draft": []}

    def note(which: str, call: Call) -> None:
        given = call.kwargs.get("input_ids")
        read[which].append((call.args[0] if given is None else given).shape[1])

    settings = draft.generation_config
    kept = {name: getattr(settings, name) for name in _PROPOSING}
    settings.update(
        num_assistant_tokens=num_draft_tokens,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
    )
    try:
        with eval_mode(model, draft), on_forward({"model": model, "draft": draft}, note):
            tokens = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                assistant_model=draft,
                do_sample=False,
                max_new_tokens=max_new_tokens,
            )
    finally:
        settings.update(**kept)
    passes = len(read["model"])
    # A pass reads what is new since the last one: the prompt or one token, and the proposed ones.
    drafted = sum(read["model"]) - ids.shape[1] - (passes - 1)
    new = tokens.shape[1] - ids.shape[1]
    return Assisted(tokens, new, drafted, passes, len(read["draft"]))


_PROPOSING = (
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
)
