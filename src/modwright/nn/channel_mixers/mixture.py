"""A mixture of experts with learned routing: a few gated MLPs of many work on each position.

Axes: n positions, d hidden_size, E experts, I neurons of one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.channel_mixers.feed_forward import Shape
from modwright.nn.component import component, has_shape

__all__ = ["ExpertStack", "Mixture", "MixtureShape", "Router", "naive_mixture", "route"]


@dataclass(frozen=True)
class MixtureShape(Shape):
    """Everything that fixes the structure of a :class:`Mixture`; plain JSON values.

    ``intermediate_size`` counts the neurons of each expert, ``top_k`` the experts of a position;
    ``activation_kwargs`` are arguments of an activation that is a registered component.
    """

    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    activation: str
    activation_kwargs: Mapping[str, Any] | None = field(default=None, hash=False, kw_only=True)

    def __post_init__(self) -> None:
        self.check_positive("hidden_size", "intermediate_size", "num_experts", "top_k")
        self.check_arguments("activation_kwargs")
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k {self.top_k} of {self.num_experts} experts: valid are 1 to all"
            )

    def describe(self) -> str:
        """In a few words, for tables."""
        return f"{self.num_experts} experts, {self.intermediate_size} wide, {self.top_k} at work"


def route(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """logits (n, E) -> each position's experts and their weights in float32, which sum to one.

    Example:
        >>> index, weights = route(torch.tensor([[0.0, 1.0, 1.0]]), 2)
        >>> sorted(index[0].tolist()), weights.tolist()
        ([1, 2], [[0.5, 0.5]])
    """
    top, index = logits.softmax(-1, dtype=torch.float32).topk(top_k, dim=-1)
    return index, top / top.sum(-1, keepdim=True)


class Router(nn.Module):
    """Scores of the experts: weight (E, d)."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class ExpertStack(nn.Module):
    """The maps of all experts: gate_up_proj (E, 2 I, d), gate first, and down_proj (E, d, I)."""

    def __init__(self, shape: MixtureShape) -> None:
        super().__init__()
        e, inner, d = shape.num_experts, shape.intermediate_size, shape.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(e, 2 * inner, d))
        self.down_proj = nn.Parameter(torch.empty(e, d, inner))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)


@component("mixture", kind="channel_mixer", shape=MixtureShape, is_stock=has_shape)
class Mixture(nn.Module):
    """Sum over the chosen experts of weight times down(act(gate x) * up x): (b, t, d) -> (b, t, d).

    Each expert runs once, on the positions that chose it; in an exported graph, which cannot loop
    over what was chosen, on all positions. Parameter names are those of Mixtral. All experts share
    ``act``, which reads the neurons of one expert at a time: one that normalizes does so within an
    expert.

    Example:
        >>> shape = MixtureShape(8, intermediate_size=16, num_experts=4, top_k=2, activation="silu")
        >>> Mixture(shape, F.silu)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    host_called = host_initialized = True  # it stands for the family's own
    returns_router_scores = False

    def __init__(self, shape: MixtureShape, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.shape, self.act, self.top_k = shape, act, shape.top_k
        self.gate = Router(shape.hidden_size, shape.num_experts)
        self.experts = ExpertStack(shape)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.compiler.is_exporting():
            return naive_mixture(self, hidden_states)
        x = hidden_states.flatten(0, -2)
        index, weights = route(self.gate(x), self.top_k)
        mixed = torch.zeros_like(x)
        for expert in index.unique().tolist():
            token, place = torch.where(index == expert)
            gate, up = F.linear(x[token], self.experts.gate_up_proj[expert]).chunk(2, -1)
            out = F.linear(self.act(gate) * up, self.experts.down_proj[expert])
            mixed = mixed.index_add(0, token, (out * weights[token, place, None]).to(mixed.dtype))
        return mixed.view_as(hidden_states)

    def extra_repr(self) -> str:
        s = self.shape
        return f"{s.top_k} of {s.num_experts} experts, {s.intermediate_size} wide"


def naive_mixture(mixture: Mixture, x: Tensor) -> Tensor:
    """The truth: every expert runs on every position, and weights of zero hide the rest."""
    index, weights = route(mixture.gate(x), mixture.top_k)
    full = torch.zeros_like(mixture.gate(x), dtype=torch.float32).scatter(-1, index, weights)
    gate, up = torch.einsum("...d,eid->...ei", x, mixture.experts.gate_up_proj).chunk(2, -1)
    out = torch.einsum("...ei,edi->...ed", mixture.act(gate) * up, mixture.experts.down_proj)
    return (out * full[..., None]).sum(-2).to(x.dtype)
