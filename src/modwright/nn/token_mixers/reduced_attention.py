"""Attention of all positions to averages of neighboring ones (arXiv 2311.05707, 2207.05501)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.channel_mixers.mlp import LINEAR
from modwright.nn.layouts import SpatialShape, to_feature_map
from modwright.nn.reparameterize import ScaleShift, fuse_preceding_affine, scale_shift_of
from modwright.nn.token_mixers.self_attention import SelfAttention, naive_attention

__all__ = ["POOLS", "ReducedAttention", "naive_reduced_attention"]


def _square(x: Tensor, reduction: int) -> Tensor:
    height, width = x.shape[2:]
    if height % reduction or width % reduction:
        raise ValueError(
            f"a map of {height} x {width} has no whole squares of {reduction} x {reduction}"
        )
    return F.avg_pool2d(x, reduction)


def _flat(x: Tensor, reduction: int) -> Tensor:
    positions, run = x.shape[2] * x.shape[3], reduction**2
    if positions % run:
        raise ValueError(f"{positions} positions have no whole runs of {run}")
    return F.avg_pool1d(x.flatten(2), run).unsqueeze(3)


# "square" averages r x r positions, "flat" as many that follow each other row by row.
POOLS: dict[str, Callable[[Tensor, int], Tensor]] = {"square": _square, "flat": _flat}


class ReducedAttention(SelfAttention):
    """Queries of all positions; keys and values of a map that is coarser by ``reduction``.

    (B, C, H, W) -> the same.

    Args:
        reduction: r: one key per r x r positions. With 1 there is neither pooling nor norm.
        pool: a name of :data:`POOLS`.
        projection: makes the maps to queries, keys and values from (in, out, bias); 1 x 1
            convolutions with a bias unless it is said.
        value: makes the map to values, where it is another one.

    Example:
        >>> ReducedAttention(32, 16, reduction=2)(torch.zeros(1, 32, 4, 6)).shape
        torch.Size([1, 32, 4, 6])
    """

    layout = "map"
    q: nn.Module
    k: nn.Module
    v: nn.Module

    def __init__(
        self,
        dim: int,
        head_dim: int = 32,
        *,
        reduction: int = 1,
        pool: str = "square",
        projection: Callable[[int, int, bool], nn.Module] = LINEAR["map"],
        value: Callable[[int, int, bool], nn.Module] | None = None,
    ) -> None:
        if head_dim < 1 or dim % head_dim:
            raise ValueError(f"heads of {head_dim} channels do not fill a width of {dim}")
        if pool not in POOLS:
            raise ValueError(f"unknown pool {pool!r}; valid values: {', '.join(POOLS)}")
        if reduction < 1:
            raise ValueError(f"reduction must be at least 1, not {reduction}")
        super().__init__(dim, dim // head_dim, storage="separate", linear=projection)
        if value is not None:
            self.v = value(dim, dim, True)
        self.reduction, self.pool = reduction, pool
        self.norm = nn.BatchNorm2d(dim) if reduction > 1 else None

    @property
    def narrowing_blocker(self) -> str:
        return "its keys and values are averages of positions"

    def reduced(self, x: Tensor) -> Tensor:
        """The map that keys and values are made of."""
        if self.reduction > 1:
            x = POOLS[self.pool](x, self.reduction)
        return x if self.norm is None else self.norm(x)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) -> queries (B, heads, N, d), keys and values (B, heads, M, d)."""
        few = self.reduced(x)
        q, k, v = (
            part(of).flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)
            for part, of in ((self.q, x), (self.k, few), (self.v, few))
        )
        return q, k, v

    def forward(self, x: Tensor, spatial_shape: SpatialShape | None = None) -> Tensor:
        return to_feature_map(self.finish(self.attend(*self.heads(x))), (x.shape[2], x.shape[3]))

    def fuse(self) -> ReducedAttention:
        """Folds the norm behind the pooling into the maps to keys and values, in place."""
        if self.norm is not None:
            norm, self.norm = self.norm, None
            self.fuse_affine_(scale_shift_of(norm), "kv")
        return self

    def fuse_affine_(self, affine: ScaleShift, names: str = "qkv") -> None:
        """Folds an affine map of the input in: an average of what is moved is the moved average."""
        if self.norm is not None:
            raise ValueError("the norm behind the pooling must be folded first")
        for name in names:
            setattr(self, name, fuse_preceding_affine(affine, getattr(self, name)))


def naive_reduced_attention(part: ReducedAttention, x: Tensor) -> Tensor:
    """What the part gives, from explicit loops over squares and scores that are kept."""
    batch, dim, height, width = x.shape
    r = part.reduction
    if part.pool == "square":
        rows = range(0, height, r)
        means = [
            x[:, :, i : i + r, j : j + r].mean((2, 3)) for i in rows for j in range(0, width, r)
        ]
    else:
        flat = x.flatten(2)
        means = [flat[:, :, i : i + r * r].mean(2) for i in range(0, height * width, r * r)]
    few = torch.stack(means, 2).unsqueeze(3)
    few = few if part.norm is None else part.norm(few)

    q, k, v = (
        found.flatten(2).view(batch, part.num_heads, -1, found[0, 0].numel()).transpose(2, 3)
        for found in (part.q(x), part.k(few), part.v(few))
    )
    mixed = naive_attention(q, k, v, part.scale)
    out = part.proj(mixed.transpose(1, 2).reshape(batch, height * width, dim))
    return out.transpose(1, 2).reshape(batch, dim, height, width)
