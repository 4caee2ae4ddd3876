"""A token mixer of images at the place of an attention, in any model that has tokens there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from modwright.nn.component import component
from modwright.nn.layouts import SpatialShape, call_in_layout
from modwright.nn.token_mixers.pooling import DepthwiseConvMixer, IdentityMixer, Pooling, SpatialFC

__all__ = ["MIXERS", "PlacedMixer", "token_mixer"]

MIXERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "pool": lambda dim, places, kernel_size: Pooling(kernel_size),
    "identity": lambda dim, places, kernel_size: IdentityMixer(),
    "depthwise": lambda dim, places, kernel_size: DepthwiseConvMixer(dim, kernel_size),
    "spatial_fc": lambda dim, places, kernel_size: SpatialFC(places),
}
"""Name -> makes a mixer from channels, positions of the grid, and side of a kernel."""


@component("bare_token_mixer", kind="token_mixer")
class PlacedMixer(nn.Module):
    """Mixes the positions of a grid; tokens before them each get the mean minus itself.

    (B, prefix + H W, C) -> the same. The identity leaves all tokens as they are, so it needs no
    grid and stands in any model.

    Args:
        mixer: one of :data:`MIXERS`.
        places: of the grid, H W.
        grid: (H, W), for hosts that do not call it with one.
        prefix: tokens before the positions.
        as_tuple: returns (x, None), the convention of transformers' attentions.

    Example:
        >>> mixer = PlacedMixer("pool", hidden_size=8, places=6, grid=(2, 3), prefix=1)
        >>> mixer(torch.zeros(1, 7, 8)).shape
        torch.Size([1, 7, 8])
    """

    layout = "tokens"

    def __init__(
        self,
        mixer: str,
        hidden_size: int,
        places: int = 0,
        kernel_size: int = 3,
        grid: SpatialShape | None = None,
        prefix: int = 0,
        as_tuple: bool = False,
    ) -> None:
        super().__init__()
        if mixer not in MIXERS:
            raise ValueError(f"unknown mixer {mixer!r}; valid values: {', '.join(MIXERS)}")
        self.name, self.hidden_size, self.prefix = mixer, hidden_size, prefix
        self.grid = None if grid is None else (grid[0], grid[1])
        self.as_tuple = as_tuple
        self.mixer = MIXERS[mixer](hidden_size, places, kernel_size)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        told = args[0] if args and isinstance(args[0], tuple) else None
        mixed = self._mix(hidden_states, told or self.grid)
        return (mixed, None) if self.as_tuple else mixed

    def _mix(self, x: Tensor, grid: SpatialShape | None) -> Tensor:
        if isinstance(self.mixer, IdentityMixer):
            return self.mixer(x)
        if grid is None:
            raise ValueError(f"{self.name} needs the grid of its tokens")
        before, places = x[:, : self.prefix], x[:, self.prefix :]
        mixed = call_in_layout(self.mixer, places, grid, "tokens")
        if not self.prefix:
            return mixed
        return torch.cat([places.mean(1, keepdim=True) - before, mixed], dim=1)

    def extra_repr(self) -> str:
        return f"{self.name}, {self.hidden_size} wide, {self.prefix} tokens before"


@component("token_mixer", kind="token_mixer")
def token_mixer(**kwargs: Any) -> PlacedMixer:
    """For hosts that take (output, attention weights)."""
    return PlacedMixer(**kwargs, as_tuple=True)
