"""Exact folding of batch norms and of parallel convolutions into single layers.

With running statistics a batch norm is one affine map per channel, s x + t, and a layer that is
linear takes it into its weights. All is computed in float64 and given in the layer's own type.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.block import Block

__all__ = [
    "ScaleShift",
    "as_conv",
    "fuse_conv_bn",
    "fuse_preceding_affine",
    "reparameterize_",
    "scale_shift_of",
    "sum_of",
]


TINY_VARIANCE = 1e-8
_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class ScaleShift:
    """scale x + shift, a number of each per channel, in float64."""

    scale: Tensor
    shift: Tensor

    def then(self, after: ScaleShift) -> ScaleShift:
        """This map, and ``after`` behind it. An average over positions may stand between them."""
        return ScaleShift(self.scale * after.scale, self.shift * after.scale + after.shift)


def scale_shift_of(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> ScaleShift:
    """What a batch norm does once its statistics stand still.

    Refuses a norm in training mode and statistics that are not there or not finite; warns where a
    variance is so small that the scale is set by eps alone.

    Example:
        >>> scale_shift_of(nn.BatchNorm2d(2, eps=0.0).eval()).scale
        tensor([1., 1.], dtype=torch.float64)
    """
    if norm.training:
        raise ValueError("a batch norm in training mode has no fixed statistics: call eval() first")
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm that keeps no statistics cannot be folded")
    mean, variance = norm.running_mean.detach().double(), norm.running_var.detach().double()
    if not mean.is_meta:
        if not bool(mean.isfinite().all() and variance.isfinite().all()):
            raise ValueError("the running statistics of a batch norm are not finite")
        dead = int((variance < TINY_VARIANCE).sum())
        if dead:
            warnings.warn(
                f"{dead} of {len(variance)} channels of a batch norm have a variance below "
                f"{TINY_VARIANCE:g}: folding multiplies their weights by large numbers",
                stacklevel=2,
            )
    scale = 1 / (variance + norm.eps).sqrt()
    if norm.weight is None:
        return ScaleShift(scale, -mean * scale)
    scale = norm.weight.detach().double() * scale
    return ScaleShift(scale, norm.bias.detach().double() - mean * scale)


def fuse_conv_bn(layer: _Layer, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> _Layer:
    """norm(layer(x)) as one layer: exact for every convolution and linear layer.

    Example:
        >>> layer, norm = nn.Linear(3, 4), nn.BatchNorm1d(4).eval()
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(fuse_conv_bn(layer, norm)(x), norm(layer(x)), atol=1e-6)
        True
    """
    affine = scale_shift_of(norm)
    weight, bias = _double(layer)
    weight = weight * affine.scale.view(-1, *[1] * (weight.dim() - 1))
    return _like(layer, weight, bias * affine.scale + affine.shift)


def fuse_preceding_affine(affine: ScaleShift, layer: _Layer) -> _Layer:
    """layer(scale x + shift) as one layer.

    A convolution with zero padding is refused: beyond the border the shift is missing, so no
    weights give the same numbers.

    Example:
        >>> layer, norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(3).eval()
        >>> x = torch.randn(1, 3, 5, 5)
        >>> folded = fuse_preceding_affine(scale_shift_of(norm), layer)
        >>> torch.allclose(folded(x), layer(norm(x)), atol=1e-6)
        True
    """
    weight, bias = _double(layer)
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    if isinstance(layer, nn.Conv2d) and layer.padding not in ((0, 0), 0, "valid"):
        raise ValueError(
            "a norm cannot be folded into a padded convolution behind it: "
            "at the border the padding would have to be other than zero"
        )
    # each output channel sees the inputs of its own group
    scale, shift = (
        numbers.view(groups, -1, *[1] * (weight.dim() - 2)).repeat_interleave(
            len(weight) // groups, 0
        )
        for numbers in (affine.scale, affine.shift)
    )
    return _like(layer, weight * scale, bias + (weight * shift).flatten(1).sum(1))


def as_conv(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A batch norm with no layer beside it: a 1 x 1 convolution per channel."""
    affine = scale_shift_of(norm)
    assert norm.running_mean is not None  # scale_shift_of saw it
    where: dict[str, Any] = {"dtype": norm.running_mean.dtype, "device": norm.running_mean.device}
    conv = nn.Conv2d(len(affine.scale), len(affine.scale), 1, groups=len(affine.scale), **where)
    return _fill(conv, affine.scale.view(-1, 1, 1, 1), affine.shift)


def sum_of(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """Convolutions of one input and stride, padded by half of their kernels, added up in one.

    A convolution of g groups is block-diagonal, and so it is for every divisor of g: the sum has
    as many groups as all of them share. Smaller kernels stand in the middle of the largest.

    Example:
        >>> parts = [nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 1, groups=2)]
        >>> whole = sum_of(parts)
        >>> whole.groups, whole.kernel_size
        (2, (3, 3))
    """
    if not convs:
        raise ValueError("there is no convolution to add up")
    first = convs[0]
    for conv in convs:
        if (conv.in_channels, conv.out_channels) != (first.in_channels, first.out_channels):
            raise ValueError("convolutions of other channels cannot be added up")
        if conv.stride != first.stride:
            raise ValueError(
                f"convolutions with strides {first.stride} and {conv.stride} cannot be added up"
            )
        centred = all(k % 2 for k in conv.kernel_size) and conv.padding == tuple(
            k // 2 for k in conv.kernel_size
        )
        if not centred or conv.dilation != (1, 1) or conv.padding_mode != "zeros":
            raise ValueError(
                "only convolutions of odd kernels, padded with zeros by half of them, can be added"
            )
    groups = math.gcd(*(conv.groups for conv in convs))
    high, wide = (max(conv.kernel_size[axis] for conv in convs) for axis in (0, 1))
    size, padding = (high, wide), (high // 2, wide // 2)
    doubles = [_double(conv) for conv in convs]
    weight: Any = sum(_widened(w, conv, groups, size) for (w, _), conv in zip(doubles, convs))
    bias = torch.stack([b for _, b in doubles]).sum(0)
    return _like(first, weight, bias, kernel_size=size, padding=padding, groups=groups)


def _widened(weight: Tensor, conv: nn.Conv2d, groups: int, size: tuple[int, int]) -> Tensor:
    """The same convolution with fewer groups and a larger kernel: zeros elsewhere."""
    rows, width = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    whole = weight.new_zeros(conv.out_channels, conv.in_channels // groups, *conv.kernel_size)
    for block in range(conv.groups):
        start = block * width % (conv.in_channels // groups)
        own = slice(block * rows, (block + 1) * rows)
        whole[own, start : start + width] = weight[own]
    high, wide = ((big - k) // 2 for big, k in zip(size, conv.kernel_size))
    return F.pad(whole, (wide, wide, high, high))


def _double(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
    weight = layer.weight.detach().double()
    if layer.bias is None:
        return weight, weight.new_zeros(len(weight))
    return weight, layer.bias.detach().double()


_SIZES = ("in_channels", "out_channels", "kernel_size", "stride")
_MORE = ("padding", "dilation", "groups", "padding_mode")


def _like(layer: _Layer, weight: Tensor, bias: Tensor, **other: Any) -> _Layer:
    """A layer of the same kind with a bias."""
    linear = isinstance(layer, nn.Linear)
    kind: Any = nn.Linear if linear else nn.Conv2d
    names = ("in_features", "out_features") if linear else (*_SIZES, *_MORE)
    given = {name: getattr(layer, name) for name in names} | other
    return _fill(kind(**given, dtype=layer.weight.dtype, device=layer.weight.device), weight, bias)


def _fill(layer: _Layer, weight: Tensor, bias: Tensor) -> _Layer:
    with torch.no_grad():
        layer.weight.copy_(weight)
        assert layer.bias is not None
        layer.bias.copy_(bias)
    layer.training = False
    return layer


def reparameterize_(module: nn.Module) -> nn.Module:
    """Folds all that can be folded below ``module``, in place; its outputs stay.

    Parts with a method ``fuse()`` are replaced by what it gives. A batch norm behind a layer of a
    sequence goes into that layer, one before a mixer of a :class:`Block` into the mixer's maps, and
    one that has no such neighbor becomes a convolution per channel. The structure depends on the
    parts alone, not on their numbers.

    Example:
        >>> whole = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> [type(part).__name__ for part in reparameterize_(whole)]
        ['Conv2d', 'ReLU']
    """
    _fuse_parts_(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, as_conv(child))
    return module


def _fuse_parts_(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        _fuse_parts_(child)
        fuse: Any = getattr(type(child), "fuse", None)  # a method, and no submodule called so
        if fuse is not None:
            setattr(module, name, fuse(child))
    if isinstance(module, nn.Sequential):
        _fold_sequence_(module)
    if isinstance(module, Block):
        _fold_halves_(module)


def _fold_sequence_(sequence: nn.Sequential) -> None:
    before: str | None = None
    for name, part in list(sequence.named_children()):
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d) and before is not None:
            setattr(sequence, before, fuse_conv_bn(getattr(sequence, before), part))
            delattr(sequence, name)
            continue
        before = name if isinstance(part, nn.Conv2d | nn.Linear) else None


def _fold_halves_(block: Block) -> None:
    for name, part in (("norm1", block.mixer), ("norm2", block.mlp)):
        norm, fuse_affine_ = getattr(block, name), getattr(part, "fuse_affine_", None)
        if isinstance(norm, nn.BatchNorm2d) and fuse_affine_ is not None:
            fuse_affine_(scale_shift_of(norm))
            setattr(block, name, nn.Identity())
