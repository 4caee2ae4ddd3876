"""One stage of a pyramid: a map comes in, is made coarser, and passes the blocks."""

from __future__ import annotations

from torch import Tensor, nn

from modwright.nn.layouts import Layout, to_feature_map, to_tokens

__all__ = ["Stage"]


class Stage(nn.Module):
    """Downsampling, positions, blocks, norm; whatever is not given is left out.

    The layout is changed at most twice: before the blocks and behind them.

    Args:
        blocks: called with (x, grid).
        layout: of the stream between the blocks.
        downsample: map -> coarser map.
        positions: map -> map.
        norm: behind the blocks, in their layout.

    Shapes:
        (B, C, H, W) -> (B, C', H', W').
    """

    def __init__(
        self,
        blocks: nn.Module,
        *,
        layout: Layout = "map",
        downsample: nn.Module | None = None,
        positions: nn.Module | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.downsample, self.positions = downsample, positions
        self.blocks = blocks
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        if self.positions is not None:
            x = self.positions(x)
        spatial_shape = (x.shape[2], x.shape[3])
        if self.layout == "tokens":
            x = to_tokens(x)
        x = self.blocks(x, spatial_shape)
        if self.norm is not None:
            x = self.norm(x)
        return to_feature_map(x, spatial_shape) if self.layout == "tokens" else x
