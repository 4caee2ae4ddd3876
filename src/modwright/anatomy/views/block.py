"""One layer of a model, and what stands in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from modwright.anatomy.views.attention import Attention
from modwright.anatomy.views.experts import MixtureOfExperts
from modwright.anatomy.views.mlp import Mlp
from modwright.anatomy.views.part import Norm, Part
from modwright.anatomy.views.sublayer import OpaqueMixer, Sublayer
from modwright.core.capture import HookPoint

__all__ = ["Block", "Layout"]

Layout = Literal["pre", "post", "res-post", "parallel"]
"""Where norms stand, around a sublayer f: h + f(norm h), norm(h + f h), h + norm(f h), or two
sublayers that read one h."""


@dataclass
class Block:
    """One layer: how it is wired and what stands in it. A removed part is None.

    Attributes:
        others: what stands at the place "attention" or "mlp" and is of another kind.
        extras: what else belongs to the layer, by name: the numbers that scale its residuals, or
            a module beside it that no sublayer holds.
        axis: where the channels of the stream lie.
    """

    index: int
    module: nn.Module
    layout: Layout
    attention: Attention | None = None
    mlp: Mlp | MixtureOfExperts | None = None
    norms: dict[str, Norm] = field(default_factory=dict)
    others: dict[str, OpaqueMixer] = field(default_factory=dict)
    extras: dict[str, Part] = field(default_factory=dict)
    axis: int = -1

    @property
    def address(self) -> str:
        return f"blocks.{self.index}"

    @property
    def norms_write(self) -> bool:
        """Its norms stand behind the sublayers, which read the stream as it is."""
        return self.layout in ("post", "res-post")

    @property
    def resid_pre(self) -> HookPoint:
        return HookPoint(self.module, "input", self.axis)

    @property
    def resid_post(self) -> HookPoint:
        return HookPoint(self.module, "output", self.axis)

    @property
    def scales(self) -> dict[str, Norm]:
        """What multiplies the result of a sublayer, channel by channel, by the sublayer's role."""
        gains = (role for role in self.norms if role.endswith("_gain"))
        return {role.removesuffix("_gain"): self.norms[role] for role in gains}

    def at(self, place: str) -> Sublayer | None:
        """What stands at a place, "attention" or "mlp", of whatever kind."""
        found: Sublayer | None = getattr(self, place)
        return found or self.others.get(place)

    def sublayers(self) -> Iterator[tuple[str, Sublayer]]:
        """What stands at the places "attention" and "mlp", in this order."""
        for place in ("attention", "mlp"):
            if (found := self.at(place)) is not None:
                yield place, found

    def modules(self) -> list[nn.Module]:
        """Every module that holds tensors of it."""
        return list(self.module.modules())

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def __repr__(self) -> str:
        others = self.others
        named = [type(p.module).__name__ if r in others else r for r, p in self.sublayers()]
        return f"Block({self.index}, {self.layout}-norm, holds {', '.join(named) or 'nothing'})"
