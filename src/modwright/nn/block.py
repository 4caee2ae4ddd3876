"""The one block: x + mix_tokens(norm(x)), then x + mix_channels(norm(x)) (arXiv 2111.11418)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from modwright.nn.layouts import Layout, SpatialShape, call_in_layout
from modwright.nn.residual import DropPath, LayerScale, ScaledResidual

__all__ = ["Block", "BlockSequence"]


class Block(nn.Module):
    """Norm, token mixer, residual; norm, channel mixer, residual.

    Args:
        dim: channels.
        mixer: a token mixer; None leaves the first half out.
        mlp: a channel mixer; None leaves the second half out.
        norm: makes a norm for the layout, called once per half that is there.
        layout: of the stream. Mixers of the other layout are called through a change of layout.
        drop_path: rate of stochastic depth of both branches.
        layer_scale: start of a learned factor per channel on both branches; None has none.
        scaled: residuals with two learned numbers each.

    Shapes:
        x (B, N, C) or (B, C, H, W) by ``layout``, with ``spatial_shape`` (H, W) -> the same.

    Example:
        >>> import torch
        >>> from modwright.nn.token_mixers.pooling import Pooling
        >>> block = Block(8, Pooling(3), None, lambda: nn.GroupNorm(1, 8), layout="map")
        >>> block(torch.zeros(1, 8, 4, 4), (4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module | None,
        mlp: nn.Module | None,
        norm: Callable[[], nn.Module],
        *,
        layout: Layout = "tokens",
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.norm1 = self.mixer = self.ls1 = self.res1 = None
        self.norm2 = self.mlp = self.ls2 = self.res2 = None
        if mixer is not None:
            self.norm1, self.mixer = norm(), mixer
            self.ls1 = None if layer_scale is None else LayerScale(dim, layer_scale, layout)
            self.res1 = ScaledResidual() if scaled else None
        if mlp is not None:
            self.norm2, self.mlp = norm(), mlp
            self.ls2 = None if layer_scale is None else LayerScale(dim, layer_scale, layout)
            self.res2 = ScaledResidual() if scaled else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, spatial_shape: SpatialShape, **mixing: Any) -> Tensor:
        if self.mixer is not None:
            mixed = self._mix(self.norm1, self.mixer, x, spatial_shape, **mixing)
            x = self._add(x, mixed, self.ls1, self.res1)
        if self.mlp is not None:
            mixed = self._mix(self.norm2, self.mlp, x, spatial_shape)
            x = self._add(x, mixed, self.ls2, self.res2)
        return x

    def _mix(
        self,
        norm: nn.Module | None,
        part: nn.Module,
        x: Tensor,
        spatial_shape: SpatialShape,
        **extra: Any,
    ) -> Tensor:
        assert norm is not None
        return call_in_layout(part, norm(x), spatial_shape, self.layout, **extra)

    def _add(
        self, x: Tensor, branch: Tensor, scale: nn.Module | None, residual: nn.Module | None
    ) -> Tensor:
        branch = self.drop_path(branch if scale is None else scale(branch))
        return x + branch if residual is None else residual(x, branch)


class BlockSequence(nn.ModuleList):
    """Blocks one after the other; in training their activations can be recomputed instead of kept.

    transformers' ``gradient_checkpointing_enable`` finds it by its attribute.
    """

    def __init__(self, blocks: list[nn.Module] | None = None) -> None:
        super().__init__(blocks)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] | None = None

    def forward(self, x: Any, spatial_shape: SpatialShape, **mixing: Any) -> Any:
        for block in self:
            x = self.run(block, x, spatial_shape, **mixing)
        return x

    def run(self, block: nn.Module, x: Any, spatial_shape: SpatialShape, **mixing: Any) -> Any:
        """One block, recomputed in the backward pass if that was asked for."""
        again = self._gradient_checkpointing_func
        if self.gradient_checkpointing and self.training and again is not None:
            return again(lambda y: block(y, spatial_shape, **mixing), x)
        return block(x, spatial_shape, **mixing)
