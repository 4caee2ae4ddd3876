"""Texts that nothing is trained on: how well a model predicts them, and how far it is from its
teacher there.

Axes: W windows, T tokens of a window, K tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.anatomy.coerce import model_of
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode
from modwright.data import make_data
from modwright.data.text import tokenizer_of
from modwright.metrics.divergence import (
    compare_distributions,
    require_comparable,
    shared_ids,
    wide_of,
)
from modwright.metrics.forward import call, position_limit, require_causal, require_known_ids
from modwright.training.batches import Batch

__all__ = ["HeldOut", "HeldOutTexts", "compared_tokens"]

_NEEDS = "healing needs a causal language model"
# Logits of a teacher on all windows are kept up to this many bytes, else computed each time.
_KEPT = 1 << 28


@dataclass(frozen=True)
class HeldOut:
    """Of one text.

    Attributes:
        perplexity: of the model.
        divergence: mean KL(teacher || model) before each token, in nats.
        top1: share of the tokens before which both put the same token first.
        tokens: that were counted.
    """

    perplexity: float
    divergence: float
    top1: float
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compared_tokens(model: Any, teacher: Any, tokenizer: Any) -> int | None:
    """How many logits of two models are compared: those of the tokenizer, where their vocabularies
    are padded to different sizes; None for all.

    Raises:
        InvalidInputError: one knows fewer tokens than the tokenizer has, or is no language model.
    """
    require_comparable(teacher, model, tokenizer)
    return shared_ids(teacher, model, tokenizer)


class HeldOutTexts:
    """Windows of held-out texts, and what the teacher says there.

    Args:
        teacher: a model.
        tokenizer: of both models.
        texts: by name: a key ``data`` of a recipe, as a packaged name or a path, or rows of tokens.
        windows: of each text.
        length: tokens of a window; cut to what the model has positions for.
        vocab_size: so many logits are compared; None for all.

    Raises:
        InvalidInputError: no text, too little of it, or a teacher that is no causal language model.
    """

    def __init__(
        self,
        teacher: Any,
        tokenizer: Any,
        texts: Mapping[str, Any],
        windows: int = 6,
        length: int = 512,
        vocab_size: int | None = None,
    ) -> None:
        if not texts:
            raise InvalidInputError("healing is judged by held-out texts; give at least one")
        self.teacher, self.vocab_size = model_of(teacher), vocab_size
        length = min(length, position_limit(self.teacher) or length)
        self.rows: dict[str, Tensor] = {}
        self.sources: dict[str, tuple[str, ...]] = {}
        for name, text in texts.items():
            given = text
            if isinstance(text, str | Mapping):
                asked = {"text": text} if isinstance(text, str) else dict(text)
                asked = {"length": length, "windows": windows, **asked}
                given = make_data(asked, tokenizer_of(tokenizer))
            self.sources[name] = getattr(given, "sources", ())
            self.rows[name] = _stacked(getattr(given, "train", given))
        for rows in self.rows.values():
            require_known_ids(self.teacher, rows)
        with eval_mode(self.teacher), torch.no_grad():
            require_causal(self.teacher, _NEEDS)
        self._answers: dict[tuple[str, int], Tensor] = {}

    @torch.no_grad()
    def measure(self, model: Any) -> dict[str, HeldOut]:
        """Of a model, by the names of the texts."""
        with eval_mode(model, self.teacher):
            return {name: self._of_text(model, name) for name in self.rows}

    def _of_text(self, model: Any, name: str) -> HeldOut:
        rows = self.rows[name]
        nll = divergence = same = 0.0
        for index in range(len(rows)):
            ids = rows[index : index + 1]
            logits = call(model, ids).logits[0, :-1].float()
            wanted = self._answer(name, index).to(logits.device)
            asked = ids[0, 1:].to(logits.device)
            nll += float(F.cross_entropy(logits, asked, reduction="sum"))
            both = (one[:, : self.vocab_size].to(wide_of(one)) for one in (wanted, logits))
            found = compare_distributions(*both)
            divergence, same = divergence + found["kl"], same + found["top1"]
        tokens = len(rows) * (rows.shape[1] - 1)
        mean = nll / tokens
        perplexity = math.exp(mean) if mean < 700 else math.inf
        return HeldOut(perplexity, divergence / tokens, same / tokens, tokens)

    def _answer(self, name: str, index: int) -> Tensor:
        """What the teacher says before each token of a window but the first: (T - 1, K)."""
        key = name, index
        if key in self._answers:
            return self._answers[key]
        found: Tensor = call(self.teacher, self.rows[name][index : index + 1]).logits[0, :-1]
        found = found.float()
        windows = sum(map(len, self.rows.values()))
        if found.numel() * 4 * windows <= _KEPT:
            self._answers[key] = found
        return found


def _stacked(rows: Sequence[Batch]) -> Tensor:
    tokens = [rows[index]["input_ids"] for index in range(len(rows))]
    if not tokens or len({len(one) for one in tokens}) > 1:
        raise InvalidInputError("held-out rows have one length, and there is at least one")
    return torch.stack(tokens)
