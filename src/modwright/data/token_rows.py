"""Synthetic tasks of language models as data: stored sequences, or batches that are drawn anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from modwright.core.errors import InvalidInputError
from modwright.data.dataset import Data, Rows
from modwright.data.registry import data_kind, dataset
from modwright.data.synthetic import TokenDataset, induction_heads, selective_copying

__all__ = ["DrawnBatches", "DrawnRows", "token_rows"]

_DRAW = "draw"
_PRIME = 1_000_003  # keeps the draws of two epochs apart


@dataclass(frozen=True)
class DrawnBatches:
    """A task whose batches are drawn as a whole, so that its rows may share something.

    Attributes:
        draw: makes ``input_ids`` and ``labels`` (B, T) of so many rows with a generator.
        rows: of an epoch.
        seed: of the draws.
    """

    draw: Callable[[int, torch.Generator], dict[str, Tensor]]
    rows: int
    seed: int = 0


@dataclass(eq=False)
class DrawnRows:
    """Rows that are a number each, of which collating draws the batch.

    Example:
        >>> rows = DrawnRows(DrawnBatches(lambda rows, generator: {}, rows=2))
        >>> len(rows), int(rows[1]["draw"])
        (2, 1)
    """

    batches: DrawnBatches
    epoch: int = 0

    def __len__(self) -> int:
        return self.batches.rows

    def __getitem__(self, index: int) -> Rows:
        index = range(len(self))[index]
        return {_DRAW: torch.tensor((self.batches.seed + self.epoch) * _PRIME + index)}

    def set_epoch(self, epoch: int) -> None:
        """What follows is drawn for this epoch."""
        self.epoch = epoch


def _drawn(rows: Sequence[Rows], draw: Any, collate: Any) -> dict[str, Tensor]:
    if _DRAW not in rows[0]:
        found: dict[str, Tensor] = collate(rows)
        return found
    generator = torch.Generator().manual_seed(int(rows[0][_DRAW]))
    batch: dict[str, Tensor] = draw(len(rows), generator)
    return batch


@data_kind("tokens", measured_by="answer_accuracy")
def token_rows(made: Any) -> Data:
    """Rows of ``input_ids`` (T,) and ``labels`` (T,), as causal language models take them.

    Args:
        made: one :class:`~modwright.data.synthetic.TokenDataset`, two of them, the second to
            measure on, or :class:`DrawnBatches` and a set to measure on.

    Raises:
        InvalidInputError: it is something else.

    Example:
        >>> data = token_rows((selective_copying(4, length=5, marked=2), None))
        >>> len(data.train), data.train[0]["input_ids"].shape
        (4, torch.Size([8]))
    """
    train, test = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(test, TokenDataset | None):
        raise InvalidInputError(
            f"tokens to measure on are a TokenDataset, not {type(test).__name__}"
        )
    if isinstance(train, DrawnBatches):
        data = Data(DrawnRows(train), test)
        return Data(data.train, test, partial(_drawn, draw=train.draw, collate=data.collate))
    if not isinstance(train, TokenDataset):
        raise InvalidInputError(f"tokens are a TokenDataset, not {type(train).__name__}")
    return Data(train, test)


@dataset("selective-copying", "tokens", license="CC0-1.0", source="drawn (arXiv 2312.00752)")
def _selective_copying(
    sequences: int = 4096,
    test: int = 512,
    length: int = 64,
    marked: int = 8,
    symbols: int = 8,
    seed: int = 0,
) -> tuple[TokenDataset, TokenDataset]:
    """Tokens to be copied lie among noise.

    Args:
        sequences: to learn from.
        test: sequences to measure on.
        length: of noise and what is to be copied.
        marked: tokens to be copied.
        symbols: kinds of them.
        seed: of the draw; those to measure on have the next.
    """
    train, held_out = (
        selective_copying(count, length, marked, symbols, at)
        for count, at in ((sequences, seed), (test, seed + 1))
    )
    return train, held_out


@dataset("induction-heads", "tokens", license="CC0-1.0", source="drawn (arXiv 2312.00752)")
def _induction_heads(
    sequences: int = 4096,
    test: int = 512,
    length: int = 64,
    symbols: int = 15,
    returns: int = 1,
    seed: int = 0,
) -> tuple[TokenDataset, TokenDataset]:
    """What followed a token when it was seen before follows it again.

    Args:
        sequences: to learn from.
        test: sequences to measure on, where the token returns once.
        length: of a sequence.
        symbols: other tokens.
        returns: how often the token comes back in those to learn from.
        seed: of the draw; those to measure on have the next.
    """
    train = induction_heads(sequences, length, symbols, returns, seed)
    return train, induction_heads(test, length, symbols, 1, seed + 1)
