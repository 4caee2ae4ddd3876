"""Multiply-accumulates of one part in closed form: matrix products only.

Axes: T new positions of a sequence, S positions that they attend to, H query heads, d width.
Norms, activations, softmax, rotary angles and table look-ups are not matrix products and count 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import singledispatch

from torch import nn

from modwright.anatomy import (
    Attention,
    Embedding,
    FactoredProjection,
    Linear,
    MixtureOfExperts,
    Mlp,
    Norm,
    OpaqueMixer,
    OpaqueModule,
    Part,
    PatchEmbedding,
    Projection,
)
from modwright.anatomy.views import Sublayer
from modwright.core.errors import UnsupportedArchitecture
from modwright.cost.forward_macs import forward_macs
from modwright.nn import ExpertShape, Opaque, PlacedMixer

__all__ = ["Pass", "linear_macs", "part_macs", "projection_macs", "score_macs"]


@dataclass(frozen=True)
class Pass:
    """One forward pass over a batch.

    Attributes:
        sequences: rows of the batch.
        tokens: new positions T of each sequence.
        cached: positions that an attention finds in its key/value cache, by its address.
        counted: multiply-accumulates for one sequence of parts without a formula, by address.
    """

    sequences: int
    tokens: int
    cached: Mapping[str, int] = field(default_factory=dict)
    counted: Mapping[str, int] = field(default_factory=dict)

    @property
    def positions(self) -> int:
        """New positions of the whole batch."""
        return self.sequences * self.tokens

    def attended(self, address: str) -> int:
        """S: what the attention at ``address`` sees, the new positions included."""
        return self.tokens + self.cached.get(address, 0)


@singledispatch
def linear_macs(projection: Projection) -> int:
    """Products of a linear layer for one position: in x out."""
    return projection.in_features * projection.out_features


@linear_macs.register
def _(projection: FactoredProjection) -> int:
    return projection.rank * (projection.in_features + projection.out_features)


@singledispatch
def projection_macs(part: Sublayer) -> dict[str, int]:
    """Products for one position by role: of each linear layer, and of what goes with them."""
    return {role: linear_macs(projection) for role, projection in part.projections().items()}


@projection_macs.register
def _(part: Mlp) -> dict[str, int]:
    maps = {role: linear_macs(projection) for role, projection in part.projections().items()}
    return maps if part.experts is None else _expert_macs(part.experts, maps)


def _expert_macs(shape: ExpertShape, maps: dict[str, int]) -> dict[str, int]:
    """Masked, all neurons are computed; dispatched, those of the chosen experts. "scores" chooses:
    with mean keys, from neurons that are there anyway, or from neurons computed for it."""
    keys = shape.num_experts * shape.hidden_size
    if shape.mode == "mask":
        return {**maps, "scores": keys if shape.score == "avg_key" else 0}
    before = sum(macs for role, macs in maps.items() if role != "down")
    share = {
        role: macs * shape.experts_per_token // shape.num_experts for role, macs in maps.items()
    }
    return {**share, "scores": keys if shape.score in ("avg_key", "gate", "up") else before}


def score_macs(attention: Attention, run: Pass) -> int:
    """Scores and the weighted sum, H T S (Dqk + Dv): masked positions count, as a kernel computes
    them."""
    shape = attention.shape
    per_position = shape.num_heads * (shape.qk_head_dim + shape.v_head_dim)
    return run.positions * run.attended(attention.address) * per_position


@singledispatch
def part_macs(part: Part, run: Pass) -> int:
    """Multiply-accumulates of a part in one pass. Another kind of part registers its formula here.

    Raises:
        UnsupportedArchitecture: there is no formula for this kind of part.

    Example:
        >>> import torch
        >>> part_macs(Embedding(torch.nn.Linear(8, 100), "head"), Pass(sequences=2, tokens=3))
        4800
    """
    raise UnsupportedArchitecture(
        f"{part.address}: no formula for the cost of a {type(part).__name__}; give one with "
        "modwright.cost.part_macs.register"
    )


@part_macs.register
def _(part: Attention, run: Pass) -> int:
    return run.positions * sum(projection_macs(part).values()) + score_macs(part, run)


@part_macs.register
def _(part: Mlp, run: Pass) -> int:
    return run.positions * sum(projection_macs(part).values())


@part_macs.register
def _(part: MixtureOfExperts, run: Pass) -> int:
    # Each position goes through the router and through top_k experts, all of one size.
    expert = sum(linear_macs(projection) for projection in part.experts[0].projections().values())
    return run.positions * (linear_macs(part.router) + part.top_k * expert)


@part_macs.register(OpaqueMixer)
@part_macs.register(OpaqueModule)
def _(part: OpaqueMixer | OpaqueModule, run: Pass) -> int:
    if part.address in run.counted:
        return run.sequences * run.counted[part.address]
    width = _width(part)
    if width is None:
        raise UnsupportedArchitecture(f"{part.address}: its cost is known of a running model only")
    try:
        return run.sequences * forward_macs(part.module, 1, run.tokens, width)
    except Exception as error:  # whatever a module of someone else raises when it is called alone
        told = str(error).partition("\n")[0] or type(error).__name__
        raise UnsupportedArchitecture(
            f"{part.address}: a {type(part.module).__name__} does not run by itself, so its cost "
            f"is not known ({told}); give a formula with modwright.cost.part_macs.register"
        ) from None


def _width(part: OpaqueMixer | OpaqueModule) -> int | None:
    """Channels of the stream that a placed part reads: its own word for it, or its norm's."""
    if not isinstance(part, OpaqueMixer) or not isinstance(part.module, PlacedMixer | Opaque):
        return None
    told = getattr(part.module, "hidden_size", None)
    if isinstance(told, int):
        return told
    weight = None if part.norm is None else part.norm.parameters().get("weight")
    return None if weight is None else len(weight)


@part_macs.register
def _(part: Norm, run: Pass) -> int:
    return 0


@part_macs.register
def _(part: Embedding, run: Pass) -> int:
    # A table is looked up; a head holds the same kind of table and multiplies by it.
    module = part.module
    return run.positions * module.weight.numel() if isinstance(module, nn.Linear) else 0


@part_macs.register
def _(part: Linear, run: Pass) -> int:
    return run.positions * part.parameters()["weight"].numel()


@part_macs.register
def _(part: PatchEmbedding, run: Pass) -> int:
    # An image is cut once; the tokens beside the patches cost nothing.
    if part.count is None:
        raise UnsupportedArchitecture(f"{part.address}: it has as many patches as an image gives")
    return run.sequences * part.count * part.parameters()["weight"].numel()
