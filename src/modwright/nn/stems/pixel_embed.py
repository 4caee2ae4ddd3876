"""A stem that cuts an image into patches, and each patch into words of a few pixels."""

from __future__ import annotations

from torch import Tensor, nn

from modwright.nn.layouts import to_tokens

__all__ = ["PixelEmbed", "cut_patches"]


def cut_patches(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B N, C, side, side): the N patches of each image, row by row.

    Example:
        >>> import torch
        >>> cut_patches(torch.zeros(2, 3, 8, 12), 4).shape
        torch.Size([12, 3, 4, 4])
    """
    height, width = x.shape[2:]
    if height % side or width % side:
        raise ValueError(f"patches of {side} do not fill a map of {height} x {width}")
    rows = x.unflatten(3, (width // side, side)).unflatten(2, (height // side, side))
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


class PixelEmbed(nn.Module):
    """One strided convolution that sees each patch by itself (arXiv 2103.00112).

    (B, C, H, W) -> (B N, m, dim), N patches of m words each. A patch's border is padded with zeros,
    so no word knows anything of the patches beside it. With ``whole`` the image is convolved before
    it is cut and words at borders see over them, as in the first public port of the paper.

    Example:
        >>> import torch
        >>> PixelEmbed(3, 6, patch=8, stride=4)(torch.zeros(2, 3, 16, 24)).shape
        torch.Size([12, 4, 6])
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        patch: int = 16,
        stride: int = 4,
        kernel_size: int = 7,
        whole: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"a kernel of {kernel_size} has no middle: it must be odd")
        if whole and patch % stride:
            raise ValueError(f"a stride of {stride} does not divide a patch of {patch}")
        self.patch, self.whole = patch, whole
        self.side = -(-patch // stride)
        self.conv = nn.Conv2d(in_channels, dim, kernel_size, stride, padding=kernel_size // 2)

    @property
    def pixel_tokens(self) -> int:
        """Words of a patch."""
        return self.side**2

    def forward(self, x: Tensor) -> Tensor:
        if self.whole:
            return to_tokens(cut_patches(self.conv(x), self.side))
        return to_tokens(self.conv(cut_patches(x, self.patch)))
