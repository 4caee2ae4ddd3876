"""Small language models that read bytes of a text: a Llama whose MLPs are given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modwright.data.synthetic import TokenDataset
from modwright.data.text import load_text
from modwright.edits import compose
from modwright.edits.compose import Part

__all__ = ["Bytes", "byte_llama", "own_loss", "windows"]

FORTUNES = Path("/usr/share/games/fortunes")
_PIECE = 8192
"""Bytes of a text that are held out, or learned from, in a row."""


def own_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective that a model gives itself, of the labels in a batch."""
    return model(**batch).loss, {}


def windows(ids: Tensor, vocab_size: int, name: str = "text") -> TokenDataset:
    """Rows of token ids (N, T), each token to be told from those before it."""
    rows = ids.long()
    return TokenDataset(name, rows, rows, vocab_size)


@dataclass(frozen=True)
class Bytes:
    """A text as bytes: a stretch to learn from (N,), and windows (M, T) that are held out."""

    learned: Tensor
    held_out: Tensor

    @classmethod
    def of(cls, name: str, length: int, most: int) -> Bytes:
        """``fortunes``: every tenth piece is held out. ``lee``: ``lee-background`` is learned from.

        Where Debian's fortunes are not installed, the test is skipped; with
        MODWRIGHT_REQUIRE_FORTUNES=1 it fails.
        """
        if name == "lee":
            learned, held_out = (_bytes_of(one) for one in ("lee-background", "lee"))
        else:
            if not FORTUNES.is_dir():
                told = pytest.fail if _required() else pytest.skip
                told("Debian's fortunes are not installed")
            pieces = _bytes_of(name).split(_PIECE)
            held_out = torch.cat(pieces[9::10])
            learned = torch.cat([piece for i, piece in enumerate(pieces) if i % 10 != 9])
        whole = held_out[: len(held_out) // length * length].view(-1, length)
        chosen = torch.linspace(0, len(whole) - 1, min(most, len(whole))).long()
        return cls(learned, whole[chosen])

    def drawn(self, count: int, seed: int) -> TokenDataset:
        """Windows from places that are drawn by chance."""
        length = self.held_out.shape[1]
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(self.learned) - length, (count, 1), generator=generator)
        return windows(self.learned[starts + torch.arange(length)], 256)

    @torch.no_grad()
    def loss(self, model: Any) -> float:
        """Nats for a byte, on the windows that are held out."""
        model.eval()
        total = 0.0
        for rows in self.held_out.split(128):
            total += float(model(input_ids=rows.long(), labels=rows.long()).loss) * len(rows)
        return total / len(self.held_out)


def _required() -> bool:
    return os.environ.get("MODWRIGHT_REQUIRE_FORTUNES") == "1"


def _bytes_of(name: str) -> Tensor:
    return torch.frombuffer(bytearray(load_text(name).encode()), dtype=torch.uint8)


def byte_llama(mlp: Part, *, seed: int, swiglu_width: int, **fields: Any) -> Any:
    """A Llama that reads bytes, with a component in place of every MLP; "" leaves the SwiGLU."""
    sizes = {"vocab_size": 256, "tie_word_embeddings": True, "intermediate_size": swiglu_width}
    parts = {} if mlp == "" else {"mlp[*]": mlp}
    return compose("llama", parts, seed=seed, check=False, **sizes, **fields)
