"""Heads of classifiers."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["POOLS", "ClassifierHead", "DistilledHead"]


POOLS = ("avg", "token", "")


class ClassifierHead(nn.Module):
    """Pools features, (B, C, H, W) or (B, N, C), and maps them to classes.

    Args:
        num_classes: 0 has no map: the pooled features come out.
        pool: "avg" over positions, prefix tokens left out; "token" takes the class token; "" pools
            nothing, and the map runs at every position.
        prefix: tokens that stand for no position.
        norm: behind the pooling, for models that have it there.
        drop: dropout before the map.
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
                valid = ", ".join(map(repr, POOLS))
                raise ValueError(f"unknown pool {pool!r}; valid values: {valid}")
            self.pool = pool
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 or more, not {num_classes}")
        self.fc = nn.Linear(self.dim, num_classes) if num_classes else nn.Identity()

    def classifiers(self) -> list[nn.Module]:
        """The maps to classes."""
        return [self.fc]

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self._pooled(x)
        as_map = x.dim() == 4
        x = x.permute(0, 2, 3, 1) if as_map else x
        x = self.drop(x if self.norm is None else self.norm(x))
        x = x if pre_logits else self.fc(x)
        return x.permute(0, 3, 1, 2) if as_map else x

    def _pooled(self, x: Tensor) -> Tensor:
        as_map = x.dim() == 4
        if self.pool == "avg":
            return x.mean((2, 3)) if as_map else x[:, self.prefix :].mean(1)
        if self.pool == "token":
            if as_map or self.prefix == 0:
                raise ValueError("pool 'token' needs a class token: this model has none")
            return x[:, 0]
        return x


class DistilledHead(ClassifierHead):
    """Two maps to classes whose mean is the answer (arXiv 2012.12877).

    One is of the class token, one of the token behind it, which learns from a teacher's answers.
    Other pools than "token" give both maps the same features.

    Example:
        >>> DistilledHead(8, 3, pool="token", prefix=2)(torch.zeros(1, 6, 8)).shape
        torch.Size([1, 3])
    """

    def reset(self, num_classes: int, pool: str | None = None) -> None:
        super().reset(num_classes, pool)
        self.fc_distilled = nn.Linear(self.dim, num_classes) if num_classes else nn.Identity()

    def classifiers(self) -> list[nn.Module]:
        return [self.fc, self.fc_distilled]

    def both(self, x: Tensor, pre_logits: bool = False) -> tuple[Tensor, Tensor]:
        """The answers of the two maps, for a loss of its own on each."""
        first = super().forward(x, pre_logits=True)
        second = super().forward(x[:, 1:] if self.pool == "token" else x, pre_logits=True)
        return (first, second) if pre_logits else (self.fc(first), self.fc_distilled(second))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        first, second = self.both(x, pre_logits)
        return (first + second) / 2
