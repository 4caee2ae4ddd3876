"""Parallel convolutions with several numbers of groups that become one (arXiv 2311.05707)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

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
            raise ValueError(
                f"no identity from {inputs} to {outputs} channels with a stride of {stride}"
            )
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
            for kernel, groups in branches
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in branches)
        has_identity = keeps if identity is None else identity
        self.identity = nn.BatchNorm2d(outputs) if has_identity else None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = sum(norm(conv(x)) for conv, norm in zip(self.convs, self.norms))
        return out if self.identity is None else out + self.identity(x)

    def branches(self) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Each convolution with its norm."""
        for conv, norm in zip(self.convs, self.norms):
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            yield conv, norm

    def fuse(self) -> nn.Conv2d:
        """One convolution that gives the same numbers, by the running statistics.

        It has as many groups as all branches share, so it can hold more parameters than they do
        together, yet it runs once.
        """
        whole = copy.deepcopy(self).double()  # one rounding, at the end
        parts = [fuse_conv_bn(conv, norm) for conv, norm in whole.branches()]
        if whole.identity is not None:
            parts.append(as_conv(whole.identity))
        own = next(iter(self.branches()))[0]
        return sum_of(parts).to(own.weight.dtype)
