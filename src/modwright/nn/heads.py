"""Heads of classifiers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["POOLS", "ClassifierHead"]


def _average(x: Tensor, prefix: int) -> Tensor:
    return x.mean((2, 3)) if x.dim() == 4 else x[:, prefix:].mean(1)


def _token(x: Tensor, prefix: int) -> Tensor:
    if x.dim() == 4 or prefix == 0:
        raise ValueError("pool 'token' needs a class token: this model has none")
    return x[:, 0]


def _nothing(x: Tensor, prefix: int) -> Tensor:
    return x


POOLS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "avg": _average,
    "token": _token,
    "": _nothing,
}


class ClassifierHead(nn.Module):
    """Pools features and maps them to classes.

    Args:
        dim: channels.
        num_classes: 0 has no map: the pooled features come out.
        pool: "avg" over places, prefix tokens left out; "token" takes the class token; "" pools
            nothing, and the map runs at every place.
        prefix: tokens that stand for no place.
        norm: behind the pooling, for models that have it there.
        drop: dropout before the map.

    Shapes:
        (B, C, H, W) or (B, N, C) -> (B, classes).
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        pool: str = "avg",
        prefix: int = 0,
        norm: nn.Module | None = None,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.prefix = dim, prefix
        self.norm, self.drop = norm, nn.Dropout(drop)
        self.reset(num_classes, pool)

    def reset(self, num_classes: int, pool: str | None = None) -> None:
        """A new map for another number of classes, and another pooling if one is named."""
        if pool is not None:
            if pool not in POOLS:
                names = ", ".join(repr(name) for name in POOLS)
                raise ValueError(f"unknown pool {pool!r}; legal values: {names}")
            self.pool = pool
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 or more, not {num_classes}")
        self.fc = nn.Linear(self.dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = POOLS[self.pool](x, self.prefix)
        as_map = x.dim() == 4
        if as_map:
            x = x.permute(0, 2, 3, 1)
        if self.norm is not None:
            x = self.norm(x)
        x = self.drop(x)
        if not pre_logits:
            x = self.fc(x)
        return x.permute(0, 3, 1, 2) if as_map else x
