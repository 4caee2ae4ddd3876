"""Four neighbors become one place of twice the channels (arXiv 2103.14030)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PatchMerging"]


class PatchMerging(nn.Module):
    """Places of a 2 x 2 square side by side in the channels, a norm, a linear layer without bias.

    The square goes down its columns, as published weights have it. A map with an odd side gets a
    row or column of zeros at its end.

    Args:
        in_channels: of what comes in.
        out_channels: of what goes out.
        eps: of the norm.

    Shapes:
        (B, C, H, W) -> (B, C', H / 2, W / 2), sides rounded up.

    Example:
        >>> PatchMerging(8, 16)(torch.zeros(1, 8, 4, 5)).shape
        torch.Size([1, 16, 2, 3])
    """

    def __init__(self, in_channels: int, out_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_channels, eps=eps)
        self.reduction = nn.Linear(4 * in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        square = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(square, dim=-1)))
        return merged.permute(0, 3, 1, 2)
