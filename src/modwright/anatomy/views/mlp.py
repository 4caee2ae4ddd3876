"""Feed-forward parts; I is intermediate_size."""

from __future__ import annotations

from dataclasses import dataclass

from modwright.anatomy.projection import Projection
from modwright.anatomy.separable import activations_of, is_separable
from modwright.anatomy.views.sublayer import Sublayer
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
        if isinstance(self.module, FeedForward):
            return self.module.shape
        maps = self.projections()
        return FeedForwardShape(
            self.hidden_size,
            self.intermediate_size,
            self.activation,
            self.gate is not None,
            "".join(role[0] for role, projection in maps.items() if projection.bias is not None),
        )

    @property
    def experts(self) -> ExpertShape | None:
        """How its neurons are split into experts; None where they are not."""
        return self.module.shape if isinstance(self.module, ExpertFeedForward) else None

    @property
    def num_experts(self) -> int:
        """1 where the neurons are not split into experts."""
        return 1 if self.experts is None else self.experts.num_experts

    @property
    def top_k(self) -> int:
        """Experts by whose rank those of a token are chosen; 1 where there are none."""
        return 1 if self.experts is None else self.experts.top_k

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

    def projections(self) -> dict[str, Projection]:
        gate = {} if self.gate is None else {"gate": self.gate}
        return {**gate, "up": self.up, "down": self.down}

    def __repr__(self) -> str:
        gated = "gated, " if self.gate is not None else ""
        split = "" if self.experts is None else f", {self.experts.describe()}"
        wide = f"{self.intermediate_size} wide, {self.activation}"
        return f"Mlp({self.address}: {gated}{wide}{split})"
