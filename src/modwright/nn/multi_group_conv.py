"""Parallel convolutions with several numbers of groups that become one (arXiv 2311.05707)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from modwright.nn.reparameterize import as_conv, fuse_conv_bn, sum_of

__all__ = ["MultiGroupConv"]


class MultiGroupConv(nn.Module):
    """The sum of convolutions with a batch norm behind each, and of a normed identity.

    (B, inputs, H, W) -> (B, outputs, H / stride, W / stride).

    Args:
        branches: (kernel, groups) of each convolution; kernels are odd.
        identity: a branch of a batch norm alone; None has one where shapes stay as they are.

    Example:
        >>> conv = MultiGroupConv(8, 8, [(3, 4), (1, 2)]).eval()
        >>> x, fused = torch.randn(1, 8, 5, 5), conv.fuse()
        >>> fused.groups, torch.allclose(fused(x), conv(x), atol=1e-5)
        (2, True)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        branches: Sequence[tuple[int, int]],
        *,
        stride: int = 1,
        identity: bool | None = None,
    ) -> None:
        super().__init__()
        if not branches:
            raise ValueError("at least one branch (kernel, groups) is needed")
        for kernel, groups in branches:
            if kernel < 1 or kernel % 2 == 0:
                raise ValueError(f"kernels must be odd, not {kernel}")
            if groups < 1 or inputs % groups or outputs % groups:
                raise ValueError(f"{groups} groups do not divide {inputs} and {outputs} channels")
        keeps = inputs == outputs and stride == 1
        if identity and not keeps:
            raise ValueError(f"no identity from {inputs} to {outputs} channels, stride {stride}")
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
            for kernel, groups in branches
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in branches)
        with_identity = keeps if identity is None else identity
        self.identity = nn.BatchNorm2d(outputs) if with_identity else None

    def forward(self, x: Tensor) -> Tensor:
        out = sum(norm(conv(x)) for conv, norm in zip(self.convs, self.norms))
        return out if self.identity is None else out + self.identity(x)

    def fuse(self) -> nn.Conv2d:
        """One convolution that gives the same numbers, by the running statistics.

        It has as many groups as all branches share, so it can hold more parameters than they do
        together, yet it runs once.
        """
        whole = copy.deepcopy(self).double()  # one rounding, at the end
        branches: Any = zip(whole.convs, whole.norms)
        parts = [fuse_conv_bn(conv, norm) for conv, norm in branches]
        if whole.identity is not None:
            parts.append(as_conv(whole.identity))
        return sum_of(parts).to(next(self.parameters()).dtype)
