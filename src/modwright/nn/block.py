"""Blocks of vision models, and what stands around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modwright.nn.layouts import Layout, SpatialShape, call_in_layout, to_feature_map, to_tokens

__all__ = [
    "Block",
    "BlockSequence",
    "BranchedBlock",
    "DenseBlock",
    "DenseTransition",
    "DropPath",
    "EmbeddedBlock",
    "FrequencyPair",
    "LayerScale",
    "ScaledResidual",
    "Stage",
    "blocks_in",
    "drop_path_rates",
]


class Block(nn.Module):
    """x + mix_tokens(norm(x)), then x + mix_channels(norm(x)) (arXiv 2111.11418).

    Tokens (B, N, C) or maps (B, C, H, W) by ``layout``, with the grid (H, W) -> the same. A mixer
    of the other layout is called through a change of layout; a half without a mixer is left out.

    Args:
        norm: makes a norm for the layout, called once per half that is there.
        drop_path: rate of stochastic depth of both branches.
        layer_scale: start of a learned factor per channel on both branches; None has none.
        scaled: residuals with two learned numbers each.

    Example:
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
        if self.norm1 is not None and self.mixer is not None:
            mixed = call_in_layout(self.mixer, self.norm1(x), spatial_shape, self.layout, **mixing)
            x = self._add(x, mixed, self.ls1, self.res1)
        if self.norm2 is not None and self.mlp is not None:
            mixed = call_in_layout(self.mlp, self.norm2(x), spatial_shape, self.layout)
            x = self._add(x, mixed, self.ls2, self.res2)
        return x

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


def blocks_in(module: nn.Module) -> list[nn.Module]:
    """The blocks of a sequence of blocks; none of another module."""
    return list(module) if isinstance(module, BlockSequence) else []


class DropPath(nn.Module):
    """Stochastic depth: in training each sample loses the branch with probability ``rate``.

    What stays is divided by 1 - rate, so the mean does not change. At rate 1 nothing stays.

    Example:
        >>> DropPath(1.0)(torch.ones(2, 3)).sum()
        tensor(0.)
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate <= 1:
            raise ValueError(f"a drop rate lies between 0 and 1, not {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * (mask / keep if keep else mask)

    def extra_repr(self) -> str:
        return f"{self.rate:g}"


def drop_path_rates(rate: float, depths: Sequence[int], endpoint: bool = True) -> list[list[float]]:
    """Rates that grow evenly with depth from 0 to ``rate``, one list per stage.

    Without ``endpoint`` the block that would follow the last one has the rate.

    Example:
        >>> drop_path_rates(0.2, [2, 1])
        [[0.0, 0.1], [0.2]]
    """
    total = sum(depths)
    over = max(total - 1, 1) if endpoint else total
    flat = iter([rate * index / over for index in range(total)])
    return [[next(flat) for _ in range(depth)] for depth in depths]


class LayerScale(nn.Module):
    """A learned factor per channel, ``init`` at first."""

    def __init__(self, dim: int, init: float = 1e-5, layout: Layout = "tokens") -> None:
        super().__init__()
        self.init, self.layout = init, layout
        self.gamma = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma, self.init)

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.gamma if self.layout == "tokens" else self.gamma[:, None, None])


class ScaledResidual(nn.Module):
    """a x + b branch with two learned numbers, both 1 at first (arXiv 2111.05297)."""

    no_weight_decay = ("alpha", "beta")

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.alpha)
        nn.init.ones_(self.beta)

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return self.alpha * x + self.beta * branch


class Stage(nn.Module):
    """Downsampling, positions, blocks, norm: (B, C, H, W) -> (B, C', H', W').

    Blocks are called with (x, grid) in ``layout``; what is not given is left out.
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
        self.layout, self.downsample, self.positions = layout, downsample, positions
        self.blocks, self.norm = blocks, norm

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


class EmbeddedBlock(nn.Module):
    """Blocks behind a map to their channels; None where they are there already.

    Example:
        >>> EmbeddedBlock(nn.Conv2d(4, 8, 1), [])(torch.zeros(1, 4, 2, 2), (2, 2)).shape
        torch.Size([1, 8, 2, 2])
    """

    def __init__(self, embed: nn.Module | None, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.embed, self.blocks = embed, nn.ModuleList(blocks)

    def forward(self, x: Tensor, spatial_shape: SpatialShape) -> Tensor:
        if self.embed is not None:
            x = self.embed(x)
        for block in self.blocks:
            x = block(x, spatial_shape)
        return x


class FrequencyPair(nn.Module):
    """low(x) and high(low(x)) side by side in the channels (arXiv 2311.05707)."""

    def __init__(self, low: nn.Module, high: nn.Module) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor, spatial_shape: SpatialShape) -> Tensor:
        low = self.low(x, spatial_shape)
        return torch.cat((low, self.high(low, spatial_shape)), dim=1)


class BranchedBlock(nn.Module):
    """A block over what parts make of one map, side by side (arXiv 2311.05707)."""

    def __init__(self, parts: Sequence[nn.Module], block: Block) -> None:
        super().__init__()
        self.parts, self.block = nn.ModuleList(parts), block

    def forward(self, x: Tensor, spatial_shape: SpatialShape) -> Tensor:
        mixed = torch.cat([part(x, spatial_shape) for part in self.parts], dim=1)
        return self.block(mixed, spatial_shape)


class DenseBlock(nn.Module):
    """x, and beside it a few channels made of what a block gives (arXiv 1608.06993).

    (B, N, C) with its grid -> (B, N, C + growth).

    Example:
        >>> nothing = Block(8, None, None, lambda: nn.LayerNorm(8))
        >>> DenseBlock(nothing, 8, 4)(torch.zeros(1, 6, 8), (2, 3)).shape
        torch.Size([1, 6, 12])
    """

    layout = "tokens"

    def __init__(self, block: nn.Module, dim: int, growth: int) -> None:
        super().__init__()
        if growth < 1:
            raise ValueError(f"growth must be at least 1, not {growth}")
        self.block, self.grow = block, nn.Linear(dim, growth)

    def forward(self, x: Tensor, spatial_shape: SpatialShape) -> Tensor:
        return torch.cat((x, self.grow(self.block(x, spatial_shape))), dim=2)


class DenseTransition(nn.Module):
    """act(W x), which narrows the stream behind dense blocks: (B, N, C) -> (B, N, C')."""

    layout = "tokens"

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(dim, out_dim), nn.GELU()

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        return self.act(self.linear(x))
