"""What is measured in a block while it runs. Axes: n tokens without padding, d width, I neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.anatomy import Block, HookPoint, MixtureOfExperts, Mlp

__all__ = ["Accumulator", "BlockDistance", "Collector", "SecondMoments", "Similarity"]


class Accumulator(Protocol):
    """Accumulates one block's statistics."""

    @property
    def hook_points(self) -> Mapping[str, HookPoint]:
        """What to read inside the block, by name."""

    @property
    def sums(self) -> Mapping[str, Tensor]:
        """Sums over tokens and counts so far; names, shapes and types follow from the block alone.

        Those of other processes are added to these in place before ``result``.
        """

    def update(self, activations: Mapping[str, Tensor], previous: Sequence[Tensor]) -> None:
        """Takes one batch: the tapped tensors and "resid_pre", "resid_post", each (n, d).

        ``previous`` holds residual streams, latest first: ``previous[0]`` is "resid_pre".
        """

    def result(self) -> dict[str, Tensor]:
        """The finished statistics, from the sums; asked for once."""


class Collector(Protocol):
    """A kind of statistic."""

    @property
    def history(self) -> int:
        """How many earlier residual streams it looks back on, "resid_pre" included."""

    def start(self, block: Block) -> Accumulator:
        """Starts on a block."""

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON values."""

    def bytes(self, block: Block) -> int:
        """Of a block's finished statistics."""


def _zeros(block: Block, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Room for a sum, where the block computes."""
    place = next((parameter.device for parameter in block.module.parameters()), None)
    return torch.zeros(shape, dtype=dtype, device=place)


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

    def start(self, block: Block) -> Accumulator:
        return _SimilarityAccumulator(block, self.drop_norm)

    def describe(self) -> dict[str, Any]:
        return {"collector": "similarity", "drop_norm": self.drop_norm}

    def bytes(self, block: Block) -> int:
        return 8 * (len(list(block.sublayers())) + 2)


class _SimilarityAccumulator:
    def __init__(self, block: Block, drop_norm: bool) -> None:
        self.drop_norm = drop_norm
        self.names = [name for name, _ in block.sublayers()]
        self.hook_points: dict[str, HookPoint] = {}
        for name, sublayer in block.sublayers():
            for kind in ("resid_pre", "sublayer_input", "sublayer_output", "resid_post"):
                if (point := getattr(sublayer, kind)) is not None:
                    self.hook_points[f"{name}.{kind}"] = point
        self.sums = {name: _zeros(block) for name in [*self.names, "block"]}
        self.sums["tokens"] = _zeros(block, dtype=torch.int64)

    def update(self, activations: Mapping[str, Tensor], previous: Sequence[Tensor]) -> None:
        self.sums["tokens"] += activations["resid_pre"].shape[0]
        self.sums["block"] += _cosines(activations["resid_pre"], activations["resid_post"])
        for name in self.names:
            self.sums[name] += _cosines(*self._pair(name, activations))

    def _pair(self, name: str, activations: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if not self.drop_norm:
            return activations[f"{name}.sublayer_input"], activations[f"{name}.sublayer_output"]
        before = activations[f"{name}.resid_pre"]
        after = activations.get(f"{name}.resid_post")
        return before, before + activations[f"{name}.sublayer_output"] if after is None else after

    def result(self) -> dict[str, Tensor]:
        tokens = self.sums.pop("tokens")
        return {**{name: total / tokens for name, total in self.sums.items()}, "tokens": tokens}


@dataclass(frozen=True)
class BlockDistance:
    """Mean cosine between the residual streams ``g`` blocks apart, for g = 1 to ``largest``.

    Results: "gaps" (largest,): entry g - 1 of block b compares its output with the stream g blocks
    earlier; minus infinity where there is none. Holds ``largest`` streams.
    """

    largest: int

    @property
    def history(self) -> int:
        return self.largest

    def start(self, block: Block) -> Accumulator:
        return _DistanceAccumulator(block, self.largest)

    def describe(self) -> dict[str, Any]:
        return {"collector": "stream gaps", "largest": self.largest}

    def bytes(self, block: Block) -> int:
        return 8 * self.largest


class _DistanceAccumulator:
    def __init__(self, block: Block, largest: int) -> None:
        self.hook_points: dict[str, HookPoint] = {}
        self.sums = {
            "gaps": _zeros(block, largest),
            "tokens": _zeros(block, largest, dtype=torch.int64),
        }

    def update(self, activations: Mapping[str, Tensor], previous: Sequence[Tensor]) -> None:
        for gap, earlier in enumerate(previous[: len(self.sums["gaps"])]):
            self.sums["gaps"][gap] += _cosines(earlier, activations["resid_post"])
            self.sums["tokens"][gap] += earlier.shape[0]

    def result(self) -> dict[str, Tensor]:
        tokens = self.sums["tokens"]
        return {"gaps": (self.sums["gaps"] / tokens.clamp(min=1)).where(tokens > 0, -torch.inf)}


@dataclass(frozen=True)
class SecondMoments:
    """Second moments of what the linear layers of a block read, in float64, divided by the tokens.

    Results: "attention" (d, d) and "attention_mean" (d,) of the attention's input, "mlp" (I, I) of
    the input of the down projection, and "influence" = 1 - mean cosine of block input and output.
    In a mixture of E experts "mlp" is (E, I, I), each expert's over its own tokens, and
    "expert_tokens" (E,) counts them.

    With ``all_tokens`` every expert sees every token, whatever the router says.
    """

    attention: bool = True
    mlp: bool = True
    all_tokens: bool = False
    history: int = 1

    def start(self, block: Block) -> Accumulator:
        return _MomentAccumulator(block, self.attention, self.mlp, self.all_tokens)

    def describe(self) -> dict[str, Any]:
        told = {"collector": "grams", "attention": self.attention, "mlp": self.mlp}
        return {**told, "all_tokens": True} if self.all_tokens else told

    def bytes(self, block: Block) -> int:
        width = 0 if block.attention is None else block.attention.shape.hidden_size
        inner = 0 if block.mlp is None else block.mlp.intermediate_size
        square = inner**2
        if isinstance(block.mlp, MixtureOfExperts):
            square = block.mlp.num_experts * (square + 1)
        return 8 * (self.attention * (width + 1) * width + self.mlp * square + 2)


class _MomentAccumulator:
    def __init__(self, block: Block, attention: bool, mlp: bool, all_tokens: bool) -> None:
        self.mixture, self.all_tokens = None, all_tokens
        self.hook_points: dict[str, HookPoint] = {}
        self.sums: dict[str, Tensor] = {
            "cosines": _zeros(block),
            "tokens": _zeros(block, dtype=torch.int64),
        }
        if attention and block.attention is not None:
            width = block.attention.shape.hidden_size
            self.hook_points["attention"] = block.attention.sublayer_input
            self.sums["attention"] = _zeros(block, width, width)
            self.sums["attention_mean"] = _zeros(block, width)
        if mlp and isinstance(block.mlp, Mlp):
            inner = block.mlp.intermediate_size
            self.hook_points["mlp"] = block.mlp.inner
            self.sums["mlp"] = _zeros(block, inner, inner)
        if mlp and isinstance(block.mlp, MixtureOfExperts):
            self.mixture = block.mlp
            inner, experts = block.mlp.intermediate_size, block.mlp.num_experts
            self.hook_points["mixture"] = block.mlp.sublayer_input
            self.sums["mlp"] = _zeros(block, experts, inner, inner)
            self.sums["expert_tokens"] = _zeros(block, experts, dtype=torch.int64)

    def _route(self, mixture: MixtureOfExperts, x: Tensor) -> None:
        """Adds up each expert's moments over the tokens that it works on."""
        chosen = mixture.choose(x)
        for expert in range(mixture.num_experts):
            here = x if self.all_tokens else x[(chosen == expert).any(-1)]
            if len(here):
                _add_product(self.sums["mlp"][expert], _wide(mixture.inner_of(expert, here)))
                self.sums["expert_tokens"][expert] += len(here)

    def update(self, activations: Mapping[str, Tensor], previous: Sequence[Tensor]) -> None:
        self.sums["tokens"] += activations["resid_pre"].shape[0]
        self.sums["cosines"] += _cosines(activations["resid_pre"], activations["resid_post"])
        if self.mixture is not None:
            self._route(self.mixture, activations["mixture"])
        for name in self.hook_points.keys() & {"attention", "mlp"}:
            x = _wide(activations[name])
            _add_product(self.sums[name], x)
            if name == "attention":
                self.sums["attention_mean"] += x.sum(0).double()

    def result(self) -> dict[str, Tensor]:
        tokens, cosines = self.sums.pop("tokens"), self.sums.pop("cosines")
        # In place: the sums are the largest thing in memory.
        found = {"influence": 1 - cosines / tokens, "tokens": tokens}
        if "expert_tokens" in self.sums:
            own = found["expert_tokens"] = self.sums.pop("expert_tokens")
            found["mlp"] = self.sums.pop("mlp").div_(own.clamp(min=1)[:, None, None])
        return {**{name: total.div_(tokens) for name, total in self.sums.items()}, **found}


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _add_product(total: Tensor, x: Tensor) -> None:
    """Adds x^T x, an eighth of the rows at a time: no second matrix of its size is needed."""
    width = x.shape[1]
    step = -(-width // 8)
    for start in range(0, width, step):
        rows = slice(start, start + step)
        total[rows] += x[:, rows].T @ x
