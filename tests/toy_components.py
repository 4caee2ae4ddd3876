"""Components that nothing in the package knows: a mixer with a state, one of channels, activations.

Other processes learn them by importing this file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from modwright.nn.component import component

__all__ = ["ToyHinge", "ToyMean", "ToyMemory", "ToyShare", "ToyTurn"]


@component("toy_memory", kind="token_mixer", state="recurrent", causal=True)
class ToyMemory(nn.Module):
    """Every channel keeps a sum of its values, which decays from token to token."""

    keep_in_fp32 = ("decay",)
    no_weight_decay = ("decay",)

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden_size, hidden_size)
        self.decay = nn.Parameter(torch.empty(hidden_size))
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.decay, -1.0, 1.0)

    def projections(self) -> dict[str, nn.Module]:
        return {"v": self.inner, "o": self.out}

    def macs(self, batch: int, length: int, cached: int = 0) -> int:
        width = len(self.decay)
        return batch * length * width * (2 * width + 1)

    def state_bytes(self, dtype: torch.dtype) -> int:
        return 4 * len(self.decay)  # it is kept in float32

    def describe(self) -> str:
        return f"sums of {len(self.decay)} channels"

    def forward(
        self, x: Tensor, state: Any = None, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        real = torch.ones_like(x[..., :1]) if padding_mask is None else padding_mask[..., None]
        real = real.float()
        value = self.inner(x).float() * real
        steps, log = real.cumsum(1), logsigmoid(self.decay.float())
        order = torch.arange(x.shape[1], device=x.device)
        apart = (steps.unsqueeze(2) - steps.unsqueeze(1)).clamp(min=0)  # (B, L, L, 1)
        weight = torch.exp(apart * log) * (order[:, None] >= order).unsqueeze(-1)
        total = torch.einsum("btsc,bsc->btc", weight, value)
        if state is not None:
            total = total + torch.exp(steps * log) * state["total"].unsqueeze(1)
        return self.out(total.to(x.dtype)), {"total": total[:, -1]}


@component("toy_mean", kind="token_mixer", causal=False)
class ToyMean(nn.Module):
    """Adds a linear layer of the mean token to all: no state, no order."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.out = nn.Linear(hidden_size, hidden_size)

    def projections(self) -> dict[str, nn.Module]:
        return {"o": self.out}

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        real = torch.ones_like(x[..., :1]) if padding_mask is None else padding_mask[..., None]
        real = real.to(x.dtype)
        mean: Tensor = (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        mixed: Tensor = self.out(mean - x)
        return mixed


@component("toy_turn", kind="channel_mixer")
class ToyTurn(nn.Module):
    """Mixes channels without neurons: a square layer, and each channel beside its neighbor."""

    def __init__(self, hidden_size: int, shift: int = 1) -> None:
        super().__init__()
        self.hidden_size, self.shift = hidden_size, shift
        self.square = nn.Linear(hidden_size, hidden_size)
        self.scale = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.scale)

    def projections(self) -> dict[str, nn.Module]:
        return {"square": self.square}

    def forward(self, x: Tensor) -> Tensor:
        turned: Tensor = self.square(x * torch.tanh(self.scale * x.roll(self.shift, -1)))
        return turned


@component("toy_hinge", kind="activation", reads="either")
class ToyHinge(nn.Module):
    """x above zero, and ``slope`` x below."""

    separable = True

    def __init__(self, start: float = 0.25) -> None:
        super().__init__()
        self.start = start
        self.slope = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.slope, self.start)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slope * x)


@component("toy_share", kind="activation")
class ToyShare(nn.Module):
    """What each neuron has of the mean size of all: they are not independent."""

    separable = False

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim
        self.scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, 0.7)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x / (0.1 + x.abs().mean(self.dim, keepdim=True))
