"""Squeeze and excitation: channels are weighted by what the whole image shows of them.

The mean over all places passes two small maps and a gate (arXiv 1709.01507).
"""

from __future__ import annotations

from torch import Tensor, nn

from modwright.nn.activations import make_activation
from modwright.nn.layouts import Layout, SpatialShape

__all__ = ["SqueezeExcite"]


class SqueezeExcite(nn.Module):
    """x times gate(W2 act(W1 mean(x))), one factor per channel and sample.

    The mean is over all places, or over all tokens, prefix tokens among them.

    Args:
        dim: channels.
        reduction: channels of x per channel between the two maps.
        act: name of the activation between the maps.
        gate: name of the activation behind them.
        bias: of both maps.
        layout: where the channels are.
        norm: a norm of the means (B, C) before the first map.
        residual: x is added to the result, so a factor of 0 changes nothing.

    Shapes:
        (B, N, C) or (B, C, H, W) by ``layout`` -> the same.

    Raises:
        ValueError: the reduction leaves no channel.

    Example:
        >>> import torch
        >>> SqueezeExcite(32)(torch.zeros(1, 5, 32)).shape
        torch.Size([1, 5, 32])
    """

    def __init__(
        self,
        dim: int,
        reduction: int = 16,
        *,
        act: str = "relu",
        gate: str = "sigmoid",
        bias: bool = False,
        layout: Layout = "tokens",
        norm: nn.Module | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= reduction <= dim:
            raise ValueError(f"a reduction by {reduction} leaves nothing of {dim} channels")
        self.layout, self.residual = layout, residual
        self.norm = norm
        self.fc1 = nn.Linear(dim, dim // reduction, bias=bias)
        self.act = make_activation(act)
        self.fc2 = nn.Linear(dim // reduction, dim, bias=bias)
        self.gate = make_activation(gate)

    def weights(self, x: Tensor) -> Tensor:
        """The factors (B, C)."""
        mean = x.mean((2, 3)) if self.layout == "map" else x.mean(1)
        mean = mean if self.norm is None else self.norm(mean)
        found: Tensor = self.gate(self.fc2(self.act(self.fc1(mean))))
        return found

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        weights = self.weights(x)
        weights = weights + 1 if self.residual else weights
        return x * (weights[:, :, None, None] if self.layout == "map" else weights[:, None])
