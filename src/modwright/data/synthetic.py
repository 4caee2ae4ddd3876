"""Synthetic tasks of language models: what a token mixer can keep, and find again.

Sequences are drawn, not stored anywhere: the same arguments give the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modwright.core.errors import InvalidInputError

__all__ = ["TokenDataset", "answer_accuracy", "induction_heads", "selective_copying"]

_UNASKED = -100


@dataclass(frozen=True)
class TokenDataset:
    """Sequences of tokens with answers: a dataset as transformers' Trainer takes it.

    Attributes:
        input_ids: (S, L).
        labels: (S, L), as causal language models take them: what is asked at a token stands at the
            next one, and -100 stands where nothing is asked.
        vocab_size: tokens are below it.

    Example:
        >>> ids = torch.tensor([[1, 2, 0, 1, 2]])
        >>> data = TokenDataset("none", ids, ids.where(torch.arange(5) == 4, -100), 3)
        >>> len(data), data.answers, data[0]["labels"].tolist()
        (1, 1, [-100, -100, -100, -100, 2])
    """

    name: str
    input_ids: Tensor
    labels: Tensor
    vocab_size: int

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids[index], "labels": self.labels[index]}

    @property
    def answers(self) -> int:
        """How many are asked for."""
        return int((self.labels[:, 1:] != _UNASKED).sum())


def selective_copying(
    sequences: int, length: int = 64, marked: int = 8, symbols: int = 8, seed: int = 0
) -> TokenDataset:
    """Tokens to be copied lie among noise, at other places in each sequence (arXiv 2312.00752).

    After ``length`` tokens the model is asked ``marked`` times, and answers with the tokens in
    their order. Whoever treats all tokens alike cannot know which answer lies how far back.

    Args:
        sequences: how many.
        length: of noise (token 0) and what is to be copied.
        marked: tokens to be copied.
        symbols: kinds of them, from token 2 on; token 1 asks.
        seed: of the draw.

    Returns:
        Sequences of length + marked + 1 tokens: the last is only there to be given the last answer.

    Raises:
        InvalidInputError: a number below 1, or fewer places than tokens to be copied.

    Example:
        >>> data = selective_copying(2, length=5, marked=2, symbols=3)
        >>> data.input_ids.tolist()
        [[0, 0, 4, 4, 0, 1, 1, 1], [0, 2, 0, 2, 0, 1, 1, 1]]
        >>> data.labels[:, -2:].tolist()
        [[4, 4], [2, 2]]
    """
    _at_least(
        sequences=(sequences, 1), length=(length, 1), marked=(marked, 1), symbols=(symbols, 1)
    )
    if marked > length:
        raise InvalidInputError(f"{marked} tokens to be copied do not fit among {length}")
    draw = torch.Generator().manual_seed(seed)
    places = _places(sequences, length, marked, draw)
    values = torch.randint(2, 2 + symbols, (sequences, marked), generator=draw)
    ids = torch.zeros(sequences, length + marked + 1, dtype=torch.long)
    ids[:, length:] = 1
    ids.scatter_(1, places, values)
    labels = torch.full_like(ids, _UNASKED)
    labels[:, length + 1 :] = values
    name = f"selective copying of {marked} of {symbols} symbols among {length}"
    return TokenDataset(name, ids, labels, symbols + 2)


def induction_heads(
    sequences: int, length: int = 64, symbols: int = 15, returns: int = 1, seed: int = 0
) -> TokenDataset:
    """What followed a token when it was seen before follows it again (arXiv 2312.00752).

    One token, 0, stands somewhere in a sequence of others that are drawn by chance, and at its end;
    what came after it is asked for there.

    Args:
        sequences: how many.
        length: of a sequence, to the last token 0; the answer follows.
        symbols: other tokens, from 1 on.
        returns: how often token 0 comes back, the last time at the end. More than one gives a
            training more answers for a sequence.
        seed: of the draw.

    Raises:
        InvalidInputError: a number below 1, or less length than the pairs of tokens need.

    Example:
        >>> data = induction_heads(2, length=7, symbols=4)
        >>> data.input_ids.tolist()
        [[0, 1, 2, 1, 4, 4, 0, 1], [2, 4, 2, 3, 0, 1, 0, 1]]
        >>> data.labels[:, -2:].tolist()
        [[-100, 1], [-100, 1]]
    """
    _at_least(sequences=(sequences, 1), returns=(returns, 1), symbols=(symbols, 1))
    _at_least(length=(length, 2 * returns + 1))
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, symbols + 1, (sequences, length + 1), generator=draw)
    value = torch.randint(1, symbols + 1, (sequences, 1), generator=draw)
    # Pairs that do not overlap: each is drawn as one place, and moved up by those before it.
    pairs = _places(sequences, length - 1 - returns, returns, draw) + torch.arange(returns)
    asked = torch.cat([pairs, torch.full((sequences, 1), length - 1)], 1)
    ids.scatter_(1, asked, 0)
    ids.scatter_(1, asked + 1, value.expand_as(asked))
    labels = torch.full_like(ids, _UNASKED)
    labels.scatter_(1, asked[:, 1:] + 1, value.expand(-1, returns))
    name = f"induction heads over {length} tokens, {returns} returns"
    return TokenDataset(name, ids, labels, symbols + 1)


@torch.no_grad()
def answer_accuracy(model: Any, data: TokenDataset, batch_size: int = 64) -> float:
    """Share of the answers whose best token is right; in the mode that the model is in.

    Args:
        model: gives ``logits`` (B, L, vocabulary) for ``input_ids``.
    """
    right = 0
    device = next(model.parameters()).device
    for start in range(0, len(data), batch_size):
        ids, labels = (t[start : start + batch_size] for t in (data.input_ids, data.labels[:, 1:]))
        best = model(input_ids=ids.to(device), use_cache=False).logits[:, :-1].argmax(-1).cpu()
        right += int((best == labels).sum())
    return right / data.answers


def _places(rows: int, length: int, count: int, draw: torch.Generator) -> Tensor:
    """(rows, count): different places below the length, in order."""
    drawn = torch.rand(rows, length, generator=draw)
    return drawn.argsort(1)[:, :count].sort(1).values


def _at_least(**numbers: tuple[int, int]) -> None:
    for name, (number, least) in numbers.items():
        if number < least:
            raise InvalidInputError(f"{name} is at least {least}, not {number}")
