"""What is measured in a block while it runs. Axes: n tokens without padding, d width, I neurons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.anatomy import Block, HookPoint
from modwright.anatomy.views import Neurons

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

    Results: "attention" (d, d) and "attention_mean" (d,) of the attention's input, whatever mixer
    it is whose maps are known, "mlp" (I, I) of the input of the down projection, and "influence" =
    1 - mean cosine of block input and output.
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
        width, neurons = _attention_width(block), _neurons(block)
        square = 0 if neurons is None else math.prod(neurons.moments_shape)
        experts = 0 if neurons is None else neurons.num_experts or 0
        return 8 * (self.attention * (width + 1) * width + self.mlp * (square + experts) + 2)


class _MomentAccumulator:
    def __init__(self, block: Block, attention: bool, mlp: bool, all_tokens: bool) -> None:
        self.neurons, self.all_tokens = _neurons(block) if mlp else None, all_tokens
        self.hook_points: dict[str, HookPoint] = {}
        self.sums: dict[str, Tensor] = {
            "cosines": _zeros(block),
            "tokens": _zeros(block, dtype=torch.int64),
        }
        mixer, width = block.at("attention"), _attention_width(block)
        if attention and mixer is not None and width:
            self.hook_points["attention"] = mixer.sublayer_input
            self.sums["attention"] = _zeros(block, width, width)
            self.sums["attention_mean"] = _zeros(block, width)
        if self.neurons is not None:
            self.hook_points["mlp"] = self.neurons.point
            self.sums["mlp"] = _zeros(block, *self.neurons.moments_shape)
            if (experts := self.neurons.num_experts) is not None:
                self.sums["expert_tokens"] = _zeros(block, experts, dtype=torch.int64)

    def _add_neurons(self, neurons: Neurons, x: Tensor) -> None:
        """Adds their moments, each expert's over the tokens that it works on."""
        if neurons.num_experts is None:
            _add_product(self.sums["mlp"], _wide(x))
            return
        for expert, inner in neurons.of_experts(x, self.all_tokens):
            _add_product(self.sums["mlp"][expert], _wide(inner))
            self.sums["expert_tokens"][expert] += len(inner)

    def update(self, activations: Mapping[str, Tensor], previous: Sequence[Tensor]) -> None:
        self.sums["tokens"] += activations["resid_pre"].shape[0]
        self.sums["cosines"] += _cosines(activations["resid_pre"], activations["resid_post"])
        if self.neurons is not None:
            self._add_neurons(self.neurons, activations["mlp"])
        if "attention" in self.hook_points:
            x = _wide(activations["attention"])
            _add_product(self.sums["attention"], x)
            self.sums["attention_mean"] += x.sum(0).double()

    def result(self) -> dict[str, Tensor]:
        tokens, cosines = self.sums.pop("tokens"), self.sums.pop("cosines")
        # In place: the sums are the largest thing in memory.
        found = {"influence": 1 - cosines / tokens, "tokens": tokens}
        if "expert_tokens" in self.sums:
            own = found["expert_tokens"] = self.sums.pop("expert_tokens")
            found["mlp"] = self.sums.pop("mlp").div_(own.clamp(min=1)[:, None, None])
        return {**{name: total.div_(tokens) for name, total in self.sums.items()}, **found}


def _attention_width(block: Block) -> int:
    """Channels that the linear layers of an attention read; 0 where no layer is known."""
    mixer = block.at("attention")
    return 0 if mixer is None else mixer.hidden_size or 0


def _neurons(block: Block) -> Neurons | None:
    mixer = block.at("mlp")
    return None if mixer is None else mixer.neurons


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _add_product(total: Tensor, x: Tensor) -> None:
    """Adds x^T x, an eighth of the rows at a time: no second matrix of its size is needed."""
    width = x.shape[1]
    step = -(-width // 8)
    for start in range(0, width, step):
        rows = slice(start, start + step)
        total[rows] += x[:, rows].T @ x
