"""Attention between channels: one map asks, another answers (arXiv 2308.05022, 2111.09881)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.token_mixers.self_attention import check_heads

__all__ = ["CrossChannelAttention"]


class CrossChannelAttention(nn.Module):
    """Channels of a head attend to each other; what they compare is their whole image.

    asking (B, C, H, W), answering (B, C, H, W) -> (B, C, H, W). Each map is made by a 1 x 1 and a
    depthwise 3 x 3 convolution, none with a bias. Queries and keys are scaled to length 1 over all
    positions, in float32 at least, and scores by a learned number per head. So every position
    depends on all others, through C / heads x C / heads numbers.

    Example:
        >>> maps = torch.zeros(2, 1, 8, 4, 4)
        >>> CrossChannelAttention(8, 2)(*maps).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.empty(num_heads, 1, 1))
        self.q = _pointwise_then_depthwise(dim, dim)
        self.kv = _pointwise_then_depthwise(dim, 2 * dim)
        self.proj = nn.Conv2d(dim, dim, 1, bias=False)
        self.reset_parameters()

    def projections(self) -> dict[str, nn.Module | tuple[nn.Module, slice]]:
        """The 1 x 1 convolutions by role; those of the values and keys answer for another map."""
        width = self.proj.in_channels
        keys, values = ((self.kv[0], slice(i * width, (i + 1) * width)) for i in range(2))
        return {"q": self.q[0], "k": keys, "v": values, "o": self.proj}

    @property
    def narrowing_blocker(self) -> str:
        return "its heads attend between channels"

    def reset_parameters(self) -> None:
        nn.init.ones_(self.temperature)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """(B, heads, C / heads, H W) twice -> how much each channel takes of each other one."""
        wide = torch.promote_types(q.dtype, torch.float32)
        q, k = (F.normalize(part.to(wide), dim=-1) for part in (q, k))
        return (q @ k.transpose(-2, -1) * self.temperature.to(wide)).softmax(-1)

    def forward(self, asking: Tensor, answering: Tensor) -> Tensor:
        q, (k, v) = self.q(asking), self.kv(answering).chunk(2, dim=1)
        q, k, v = (part.flatten(2).unflatten(1, (self.num_heads, -1)) for part in (q, k, v))
        mixed = self.weights(q, k).to(v.dtype) @ v
        return self.proj(mixed.flatten(1, 2).unflatten(2, asking.shape[2:]))


def _pointwise_then_depthwise(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs, bias=False),
    )
