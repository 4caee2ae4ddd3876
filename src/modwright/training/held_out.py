"""Texts that nothing is trained on: how well a model predicts them, and how far it is from its
teacher there.

Axes: W windows, T tokens of a window, K tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.anatomy.coerce import model_of
from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode
from modwright.data.special_tokens import special_tokens
from modwright.data.text import TextData, require_count, tokenize_text, tokenizer_of
from modwright.metrics.forward import call, position_limit, require_causal, require_known_ids
from modwright.training.batches import Batch

__all__ = ["HeldOut", "HeldOutTexts", "TokenRows", "compared_tokens", "token_rows"]

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


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Windows of tokens as rows that a training takes, and where they come from.

    Attributes:
        rows: (W, T).
        names: of the texts.
        digests: of the whole texts.
    """

    rows: Tensor
    names: tuple[str, ...]
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index]}


Texts = TextData | str | Sequence[TextData | str]


def token_rows(tokenizer: Any, texts: Texts, length: int, windows: int | None = None) -> TokenRows:
    """Windows of one text, or of several in turn, with the tokenizer's own special tokens.

    Args:
        tokenizer: of the model, or what holds it.
        texts: packaged names, paths or :class:`~modwright.data.text.TextData`.
        length: tokens of a window.
        windows: the first so many of each text; all of them by default.

    Raises:
        InvalidInputError: too little text.
    """
    tokenizer = tokenizer_of(tokenizer)
    given = [texts] if isinstance(texts, TextData | str) else list(texts)
    if not given:
        raise InvalidInputError("no text is given")
    parts, names, digests = [], [], []
    for data in given:
        text = tokenize_text(tokenizer, data)
        special = special_tokens(tokenizer, text.text)
        require_count("length", length, least=2 + len(special))
        content = length - len(special)
        count = text.available(content, content) if windows is None else windows
        text.require(max(count, 1), content, content)
        rows, _ = text.cut([content * index for index in range(count)], content, special)
        parts.append(rows)
        names.append(str(text.facts["data"]))
        digests.append(sha256_of(text.text))
    return TokenRows(torch.stack(list(_in_turn(parts))), tuple(names), tuple(digests))


def _in_turn(parts: Sequence[Iterable[Tensor]]) -> Iterable[Tensor]:
    """One of each, again and again; those that are longer go on alone."""
    left = [list(part) for part in parts]
    for index in range(max(map(len, left))):
        yield from (rows[index] for rows in left if index < len(rows))


def compared_tokens(model: Any, teacher: Any, tokenizer: Any) -> int | None:
    """How many logits of two models are compared: those of the tokenizer, where their vocabularies
    are padded to different sizes; None for all.

    Raises:
        InvalidInputError: one knows fewer tokens than the tokenizer has.
    """
    sizes = [one.get_output_embeddings().weight.shape[0] for one in (model, teacher)]
    if sizes[0] == sizes[1]:
        return None
    tokens = len(tokenizer_of(tokenizer))
    if tokens > min(sizes):
        raise InvalidInputError(
            f"the tokenizer has {tokens} tokens, and the two models know {sizes[0]} and {sizes[1]}"
        )
    return tokens


class HeldOutTexts:
    """Windows of held-out texts, and what the teacher says there.

    Args:
        teacher: a model.
        tokenizer: of both models.
        texts: by name: a packaged name, a path, or rows of tokens.
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
        self.digests: dict[str, str] = {}
        for name, text in texts.items():
            if isinstance(text, str | TextData):
                found = token_rows(tokenizer, text, length, windows)
                self.rows[name], self.digests[name] = found.rows, found.digests[0]
            else:
                self.rows[name] = _stacked(text)
                self.digests[name] = sha256_of(self.rows[name].long())
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
            ours, theirs = logits[:, : self.vocab_size], wanted[:, : self.vocab_size]
            same += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
            logs = theirs.log_softmax(-1), ours.log_softmax(-1)
            divergence += float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).double().sum())
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
