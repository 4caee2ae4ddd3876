"""Multiply-accumulates, of a part in closed form and of a whole pass: matrix products only.

Axes: T new positions of a sequence, S positions that they attend to, H query heads, d width.
Norms, activations, softmax, rotary angles and table look-ups are not matrix products and count 0.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modwright.anatomy import FactoredProjection, Part, Projection, views
from modwright.core.errors import InvalidInputError, UnsupportedArchitecture
from modwright.core.modes import set_eval
from modwright.nn import Opaque, PlacedMixer

__all__ = ["Pass", "at_least", "counted_products", "forward_macs", "linear_macs", "part_macs"]
__all__ += ["projection_macs", "score_macs", "to_meta"]

_PRODUCTS_OF_TOKENS = ("bmm", "baddbmm", "_scaled_dot_product")


def at_least(lowest: int, **values: object) -> None:
    """Refuses a named value that is not a whole number from ``lowest`` on."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise InvalidInputError(
                f"{name} must be a whole number, {lowest} or more, not {value!r}"
            )


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


def linear_macs(projection: Projection) -> int:
    """Products of a linear layer for one position: in x out, or those of a factor pair."""
    inside, outside = projection.in_features, projection.out_features
    if isinstance(projection, FactoredProjection):
        return projection.rank * (inside + outside)
    return inside * outside


def projection_macs(part: views.Sublayer) -> dict[str, int]:
    """Products for one position by role: of each linear layer, and of what goes with them.

    Of an MLP with experts: masked, all neurons are computed; dispatched, those of the chosen
    experts. "scores" chooses: with mean keys, from neurons that are there anyway, or from neurons
    computed for it.
    """
    maps = {role: linear_macs(projection) for role, projection in part.projections().items()}
    shape = part.experts if isinstance(part, views.Mlp) else None
    if shape is None:
        return maps
    keys = shape.num_experts * shape.hidden_size
    if shape.mode == "mask":
        return {**maps, "scores": keys if shape.score == "avg_key" else 0}
    before = sum(macs for role, macs in maps.items() if role != "down")
    share = {
        role: macs * shape.experts_per_token // shape.num_experts for role, macs in maps.items()
    }
    return {**share, "scores": keys if shape.score in ("avg_key", "gate", "up") else before}


def score_macs(attention: views.Attention, run: Pass) -> int:
    """Scores and the weighted sum, H T S (Dqk + Dv), masked positions included."""
    shape = attention.shape
    per_position = shape.num_heads * (shape.qk_head_dim + shape.v_head_dim)
    return run.positions * run.attended(attention.address) * per_position


@singledispatch
def part_macs(part: Part, run: Pass) -> int:
    """Multiply-accumulates of a part in one pass. Another kind of part registers its formula here.

    Raises:
        UnsupportedArchitecture: there is no formula for this kind of part.

    Example:
        >>> part_macs(views.Embedding(torch.nn.Linear(8, 100), "head"), Pass(sequences=2, tokens=3))
        4800
    """
    match part:
        case views.Attention():
            return run.positions * sum(projection_macs(part).values()) + score_macs(part, run)
        case views.Mlp():
            return run.positions * sum(projection_macs(part).values())
        case views.MixtureOfExperts():
            # Each position goes through the router and through top_k experts, all of one size.
            expert = sum(map(linear_macs, part.experts[0].projections().values()))
            return run.positions * (linear_macs(part.router) + part.top_k * expert)
        case views.OpaqueMixer() | views.OpaqueModule():
            return _opaque_macs(part, run)
        case views.Norm():
            return 0
        case views.Embedding():
            # A table is looked up; a head holds the same kind of table and multiplies by it.
            module = part.module
            return run.positions * module.weight.numel() if isinstance(module, nn.Linear) else 0
        case views.Linear():
            return run.positions * part.parameters()["weight"].numel()
        case views.PatchEmbedding(count=int(count)):
            # An image is cut once; the tokens beside the patches cost nothing.
            return run.sequences * count * part.parameters()["weight"].numel()
        case views.PatchEmbedding():
            told = "it has as many patches as an image gives"
        case _:
            told = (
                f"no formula for the cost of a {type(part).__name__}; give one with "
                "modwright.cost.part_macs.register"
            )
    raise UnsupportedArchitecture(f"{part.address}: {told}")


def _opaque_macs(part: views.OpaqueMixer | views.OpaqueModule, run: Pass) -> int:
    """As it was counted while the model ran, else while the part runs by itself."""
    if part.address in run.counted:
        return run.sequences * run.counted[part.address]
    width = None
    if isinstance(part, views.OpaqueMixer) and isinstance(part.module, PlacedMixer | Opaque):
        # Channels of the stream that it reads: its own word for it, or its norm's.
        width = getattr(part.module, "hidden_size", None)
        if not isinstance(width, int) and part.norm is not None:
            width = len(part.norm.parameters().get("weight", ())) or None
    if not isinstance(width, int):
        raise UnsupportedArchitecture(f"{part.address}: its cost is known of a running model only")
    try:
        return run.sequences * forward_macs(part.module, 1, run.tokens, width)
    except Exception as error:  # whatever a module of someone else raises when it is called alone
        told = str(error).partition("\n")[0] or type(error).__name__
        raise UnsupportedArchitecture(
            f"{part.address}: a {type(part.module).__name__} does not run by itself, so its cost "
            f"is not known ({told}); give a formula with modwright.cost.part_macs.register"
        ) from None


def forward_macs(model: nn.Module, *shape: int, attention: bool = True) -> int:
    """Products of matrices and convolutions in one pass over zeros of a shape.

    No numbers are computed: a copy of the model stands on the meta device.

    Args:
        model: takes one tensor.
        shape: of that tensor, (1, 3, 224, 224) for an image.
        attention: False leaves out products of tokens with tokens, as some papers do.

    Example:
        >>> forward_macs(nn.Conv2d(3, 8, 3, padding=1), 1, 3, 10, 10)
        21600
    """
    model = set_eval(to_meta(model))
    with counted_products() as counter:
        model(torch.zeros(*shape, device="meta"))
    by_step: dict[Any, int] = counter.get_flop_counts()["Global"]
    left_out = () if attention else _PRODUCTS_OF_TOKENS
    counted = (n for step, n in by_step.items() if not any(word in str(step) for word in left_out))
    return sum(counted) // 2


@contextmanager
def counted_products() -> Iterator[FlopCounterMode]:
    """Counts, without gradients; fused attention, one opaque step to the counter, is not fused."""
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        yield counter


def to_meta(model: nn.Module) -> nn.Module:
    """A copy on the meta device: its structure. No weight is copied on the way.

    Example:
        >>> to_meta(nn.Linear(2, 3)).weight.is_meta
        True
    """
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        bare = tensor.detach().to("meta")
        trained = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(bare, tensor.requires_grad) if trained else bare
    return copy.deepcopy(model, memo)
