"""What is measured in a block while it runs.

Axes: n tokens (padding taken out), d hidden_size, I neurons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.anatomy import Block, Tap
from modwright.anatomy.parts import Sublayer

__all__ = ["Collector", "Grams", "Similarity", "StreamGaps", "Watch"]


class Watch(Protocol):
    """Accumulates one block's statistics."""

    @property
    def taps(self) -> Mapping[str, Tap]:
        """What to read inside the block, by name."""

    def update(self, seen: Mapping[str, Tensor], past: Sequence[Tensor]) -> None:
        """Takes one batch: the tapped tensors and "stream_in", "stream_out", each (n, d).

        ``past`` holds earlier residual streams, latest first: ``past[0]`` is "stream_in".
        """

    def result(self) -> dict[str, Tensor]:
        """The finished statistics; asked for once."""


class Collector(Protocol):
    """A kind of statistic."""

    @property
    def history(self) -> int:
        """How many earlier residual streams it looks back on, "stream_in" included."""

    def watch(self, block: Block) -> Watch:
        """Starts on a block."""

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON values."""

    def bytes(self, block: Block) -> int:
        """Of a block's finished statistics."""


def _sublayer_taps(name: str, sublayer: Sublayer) -> dict[str, Tap]:
    taps = {
        f"{name}.stream_in": sublayer.stream_in,
        f"{name}.core_in": sublayer.core_in,
        f"{name}.core_out": sublayer.core_out,
    }
    if sublayer.stream_out is not None:
        taps[f"{name}.stream_out"] = sublayer.stream_out
    return taps


def _cosines(before: Tensor, after: Tensor) -> Tensor:
    """Sum over tokens of the cosine between rows, in float32 whatever came in."""
    return F.cosine_similarity(before.float(), after.float(), dim=-1).double().sum()


@dataclass(frozen=True)
class Similarity:
    """Mean cosine between the residual stream before and after attention, MLP and block.

    With ``drop_norm`` (the measure of LLM-Drop, arXiv 2406.15786) a sublayer is its norm and its
    residual connection too: cos(h, h + M(norm h)). Without it, cos(norm h, M(norm h)).

    Results: "attention", "mlp", "block" (absent where the block has none) and "tokens".
    """

    drop_norm: bool = True
    history: int = 1

    def watch(self, block: Block) -> Watch:
        return _SimilarityWatch(block, self.drop_norm)

    def describe(self) -> dict[str, Any]:
        return {"collector": "similarity", "drop_norm": self.drop_norm}

    def bytes(self, block: Block) -> int:
        return 8 * (len(list(block.sublayers())) + 2)


class _SimilarityWatch:
    def __init__(self, block: Block, drop_norm: bool) -> None:
        self.drop_norm = drop_norm
        self.names = [name for name, _ in block.sublayers()]
        self.taps: dict[str, Tap] = {}
        for name, sublayer in block.sublayers():
            self.taps.update(_sublayer_taps(name, sublayer))
        self.sums = {name: torch.zeros((), dtype=torch.float64) for name in [*self.names, "block"]}
        self.tokens = 0

    def update(self, seen: Mapping[str, Tensor], past: Sequence[Tensor]) -> None:
        self.tokens += seen["stream_in"].shape[0]
        self.sums["block"] += _cosines(seen["stream_in"], seen["stream_out"])
        for name in self.names:
            before, after = self._pair(name, seen)
            self.sums[name] += _cosines(before, after)

    def _pair(self, name: str, seen: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if not self.drop_norm:
            return seen[f"{name}.core_in"], seen[f"{name}.core_out"]
        before = seen[f"{name}.stream_in"]
        after = seen.get(f"{name}.stream_out")
        return before, before + seen[f"{name}.core_out"] if after is None else after

    def result(self) -> dict[str, Tensor]:
        means = {name: total / self.tokens for name, total in self.sums.items()}
        return {**means, "tokens": torch.tensor(self.tokens)}


@dataclass(frozen=True)
class StreamGaps:
    """Mean cosine between the residual streams ``g`` blocks apart, for g = 1 to ``largest``.

    Results: "gaps" (largest,): entry g - 1 of block b compares its output with the stream g blocks
    earlier; minus infinity where there is none. Holds ``largest`` streams.
    """

    largest: int

    @property
    def history(self) -> int:
        return self.largest

    def watch(self, block: Block) -> Watch:
        return _GapWatch(self.largest)

    def describe(self) -> dict[str, Any]:
        return {"collector": "stream gaps", "largest": self.largest}

    def bytes(self, block: Block) -> int:
        return 8 * self.largest


class _GapWatch:
    def __init__(self, largest: int) -> None:
        self.taps: dict[str, Tap] = {}
        self.sums = torch.full((largest,), -torch.inf, dtype=torch.float64)
        self.tokens = 0

    def update(self, seen: Mapping[str, Tensor], past: Sequence[Tensor]) -> None:
        self.tokens += seen["stream_out"].shape[0]
        for gap, earlier in enumerate(past[: len(self.sums)]):
            so_far = self.sums[gap] if torch.isfinite(self.sums[gap]) else 0.0
            self.sums[gap] = so_far + _cosines(earlier, seen["stream_out"])

    def result(self) -> dict[str, Tensor]:
        return {"gaps": self.sums / self.tokens}


@dataclass(frozen=True)
class Grams:
    """Second moments of what the linear maps of a block read, in float64, divided by the tokens.

    Results: "attention" (d, d) and "attention_mean" (d,) of the attention's input, "mlp" (I, I) of
    the input of the down projection, and "influence" = 1 - mean cosine of block input and output.
    """

    attention: bool = True
    mlp: bool = True
    history: int = 1

    def watch(self, block: Block) -> Watch:
        return _GramWatch(block, self.attention, self.mlp)

    def describe(self) -> dict[str, Any]:
        return {"collector": "grams", "attention": self.attention, "mlp": self.mlp}

    def bytes(self, block: Block) -> int:
        width = 0 if block.attention is None else block.attention.shape.hidden_size
        inner = 0 if block.mlp is None else block.mlp.intermediate_size
        return 8 * (self.attention * (width + 1) * width + self.mlp * inner**2 + 2)


class _GramWatch:
    def __init__(self, block: Block, attention: bool, mlp: bool) -> None:
        self.taps: dict[str, Tap] = {}
        if attention and block.attention is not None:
            self.taps["attention"] = block.attention.core_in
        if mlp and block.mlp is not None:
            self.taps["mlp"] = block.mlp.inner
        self.sums: dict[str, Tensor] = {}
        self.cosines = torch.zeros((), dtype=torch.float64)
        self.tokens = 0

    def _add_product(self, name: str, x: Tensor) -> None:
        """Adds x^T x, an eighth of the rows at a time: no second matrix of its size is needed."""
        width = x.shape[1]
        if name not in self.sums:
            self.sums[name] = torch.zeros(width, width, dtype=torch.float64, device=x.device)
        step = -(-width // 8)
        for start in range(0, width, step):
            rows = slice(start, start + step)
            self.sums[name][rows] += x[:, rows].T @ x

    def update(self, seen: Mapping[str, Tensor], past: Sequence[Tensor]) -> None:
        self.tokens += seen["stream_in"].shape[0]
        self.cosines += _cosines(seen["stream_in"], seen["stream_out"])
        for name in self.taps:
            x = seen[name]
            x = x if x.dtype == torch.float64 else x.float()
            self._add_product(name, x)
            if name == "attention":
                mean = x.sum(0).double()
                self.sums["attention_mean"] = self.sums.get("attention_mean", 0) + mean

    def result(self) -> dict[str, Tensor]:
        # In place: the sums are the largest thing in memory.
        means = {name: total.div_(self.tokens) for name, total in self.sums.items()}
        return {
            **means,
            "influence": 1 - self.cosines / self.tokens,
            "tokens": torch.tensor(self.tokens),
        }
