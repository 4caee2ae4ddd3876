"""Feed-forward parts; I is intermediate_size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from modwright.anatomy.forward_pass import Pass
from modwright.anatomy.projection import Projection
from modwright.anatomy.separable import (
    activations_of,
    is_separable,
    named_activation,
    stored_activation,
)
from modwright.anatomy.views.neurons import Neurons
from modwright.anatomy.views.part import Activation, ModulePart
from modwright.anatomy.views.sublayer import Scores, Sublayer
from modwright.core.capture import HookPoint
from modwright.nn import ExpertFeedForward, ExpertShape, FeedForward, FeedForwardShape

__all__ = ["Mlp"]


@dataclass
class Mlp(Sublayer):
    """A feed-forward part: down(act(up x)), or down(act(gate x) * up x) when it is gated."""

    writes_residual = ("down",)
    generic = (FeedForward,)

    up: Projection
    down: Projection
    activation: str
    gate: Projection | None = None

    @property
    def intermediate_size(self) -> int:
        return self.down.in_features

    @property
    def hidden_size(self) -> int:
        return self.up.in_features

    @property
    def shape(self) -> FeedForwardShape:
        """Every number that fixes its structure."""
        maps, sizes = self.projections(), (self.hidden_size, self.intermediate_size)
        biases = "".join(role[0] for role, map_ in maps.items() if map_.bias is not None)
        if isinstance(self.module, FeedForward):
            # What it was built with, but for maps that were replaced since.
            width, inner = sizes
            return replace(
                self.module.shape, hidden_size=width, intermediate_size=inner, biases=biases
            )
        return FeedForwardShape(*sizes, self.activation, self.gate is not None, biases)

    @property
    def experts(self) -> ExpertShape | None:
        """How its neurons are split into experts; None where they are not."""
        return None if self.routed is None else self.routed.shape

    @property
    def routed(self) -> ExpertFeedForward | None:
        return self.module if isinstance(self.module, ExpertFeedForward) else None

    @property
    def num_experts(self) -> int:
        """1 where the neurons are not split into experts."""
        return 1 if self.experts is None else self.experts.num_experts

    @property
    def top_k(self) -> int:
        """Experts by whose rank those of a token are chosen; 1 where there are none."""
        return 1 if self.experts is None else self.experts.top_k

    @property
    def act(self) -> Activation | None:
        """Its activation, where that has parameters."""
        maps = [projection.module for projection in self.projections().values()]
        found = stored_activation(self.module, maps, self.activation)
        return None if found is None else Activation(found, f"{self.address}.act")

    @property
    def placed_as(self) -> str:
        """The registered part of this structure."""
        return "feed_forward" if self.experts is None else "expert_feed_forward"

    @property
    def resized_as(self) -> str:
        return "feed_forward" if self.is_generic else ""

    @property
    def act_function(self) -> Callable[[Tensor], Tensor]:
        """Its activation as it stands there."""
        own: Any = self.module.act if isinstance(self.module, FeedForward) else self.act
        if own is None:
            own = named_activation(self.activation)
        return own.module if isinstance(own, Activation) else own

    @property
    def activation_point(self) -> HookPoint:
        """What tells what the activation reads: see :meth:`activation_inputs`."""
        reads = self.up if self.gate is None else self.gate
        if self.experts is not None:
            return self.sublayer_input
        return HookPoint(reads.module, "output", reads.axis)

    def activation_inputs(self, seen: Tensor) -> Iterator[Tensor]:
        """What passed :attr:`activation_point`, (n, c) -> what the activation reads, (m, neurons):
        of experts, the neurons of each one that a token uses.
        """
        reads = self.up if self.gate is None else self.gate
        if not isinstance(self.module, ExpertFeedForward):
            yield seen if reads.rows is None else seen[:, reads.rows]
            return
        neurons = F.linear(seen, reads.weight, reads.bias)
        yield neurons.unflatten(-1, (self.num_experts, -1))[self.module.route(seen)]

    @property
    def separable(self) -> bool:
        """Its neurons do not depend on each other: some may go and the others stay as they are."""
        maps = [projection.module for projection in self.projections().values()]
        acts = activations_of(self.module, maps, self.activation)
        return all(is_separable(act, self.intermediate_size) for act in acts)

    @property
    def inner(self) -> HookPoint:
        """What the down projection reads: (b, t, I)."""
        return HookPoint(self.down.module, "input", self.down.axis)

    @property
    def neurons(self) -> Neurons:
        return Neurons(self.intermediate_size, self.inner)

    def members(self) -> Mapping[str, Projection | ModulePart]:
        own = self.act
        return self.projections() if own is None else {**self.projections(), "act": own}

    def projections(self) -> dict[str, Projection]:
        gate = {} if self.gate is None else {"gate": self.gate}
        return {**gate, "up": self.up, "down": self.down}

    def projection_macs(self) -> dict[str, int]:
        """Where experts are dispatched, those of the chosen ones; masked, all neurons run."""
        every, shape = super().projection_macs(), self.experts
        if shape is None or shape.mode != "dispatch":
            return every
        chosen, among = shape.experts_per_token, shape.num_experts
        return {role: macs * chosen // among for role, macs in every.items()}

    def scores(self, run: Pass) -> Scores | None:
        """What chooses experts: their mean keys, neurons that are there anyway, or neurons that are
        computed for it."""
        shape = self.experts
        if shape is None:
            return None
        keys = shape.num_experts * shape.hidden_size
        if shape.mode == "mask":
            own = keys if shape.score == "avg_key" else 0
        elif shape.score in ("avg_key", "gate", "up"):
            own = keys
        else:
            every = super().projection_macs()
            own = sum(macs for role, macs in every.items() if role != "down")
        return Scores(f"{run.positions} x {self.num_experts} experts", run.positions * own)

    def activation_width(self, scored: int = 0) -> int:
        """What its linear layers give and the product before the last; where only chosen experts
        are computed, one after the other, the mean part of that."""
        inner, shape = self.intermediate_size * (2 if self.gate is None else 3), self.experts
        if shape is None or shape.mode != "dispatch":
            return inner
        return inner * shape.experts_per_token // shape.num_experts**2

    def describe(self) -> str:
        gated = "gated, " if self.gate is not None else ""
        split = "" if self.experts is None else f", {self.experts.describe()}"
        return f"{gated}{self.intermediate_size} wide, {self.activation}{split}"

    def __repr__(self) -> str:
        return f"Mlp({self.address}: {self.describe()})"
