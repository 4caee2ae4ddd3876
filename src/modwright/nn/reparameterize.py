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
from modwright.nn.channel_mixers.mlp import Mlp

__all__ = [
    "ScaleShift",
    "as_conv",
    "fuse_affine_",
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
        """This map, and ``after`` behind it. An average over places may stand between them."""
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
    groups = 1
    if isinstance(layer, nn.Conv2d):
        if layer.padding not in ((0, 0), 0, "valid"):
            raise ValueError(
                "a norm cannot be folded into a padded convolution behind it: "
                "at the border the padding would have to be other than zero"
            )
        groups = layer.groups
    per_group = weight.shape[0] // groups
    # each output channel sees the inputs of its own group
    scale = affine.scale.view(groups, -1).repeat_interleave(per_group, 0)
    shift = affine.shift.view(groups, -1).repeat_interleave(per_group, 0)
    more = [1] * (weight.dim() - 2)
    bias = bias + (weight * shift.view(*shift.shape, *more)).flatten(1).sum(1)
    return _like(layer, weight * scale.view(*scale.shape, *more), bias)


def as_conv(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A batch norm with no layer beside it: a 1 x 1 convolution per channel."""
    affine = scale_shift_of(norm)
    channels = norm.num_features
    dtype = norm.running_mean.dtype if norm.running_mean is not None else torch.float32
    conv = nn.Conv2d(
        channels, channels, 1, groups=channels, dtype=dtype, device=affine.scale.device
    )
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
        centred = all(k % 2 and p == k // 2 for k, p in zip(conv.kernel_size, _padding(conv)))
        if not centred or conv.dilation != (1, 1) or conv.padding_mode != "zeros":
            raise ValueError(
                "only convolutions of odd kernels, padded with zeros by half of them, can be added"
            )
    groups = math.gcd(*(conv.groups for conv in convs))
    high, wide = (max(conv.kernel_size[axis] for conv in convs) for axis in (0, 1))
    size = (high, wide)
    doubles = [_double(conv) for conv in convs]
    weight = sum(_widened(w, conv, groups, size) for (w, _), conv in zip(doubles, convs))
    assert isinstance(weight, Tensor)
    bias = torch.stack([b for _, b in doubles]).sum(0)
    whole = nn.Conv2d(
        first.in_channels,
        first.out_channels,
        size,
        first.stride,  # type: ignore[arg-type]
        (size[0] // 2, size[1] // 2),
        groups=groups,
        dtype=first.weight.dtype,
        device=first.weight.device,
    )
    return _fill(whole, weight, bias)


def _padding(conv: nn.Conv2d) -> tuple[int, ...]:
    return conv.padding if isinstance(conv.padding, tuple) else (-1, -1)


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


def _like(layer: _Layer, weight: Tensor, bias: Tensor) -> _Layer:
    """A layer of the same kind with a bias."""
    where: dict[str, Any] = {"dtype": layer.weight.dtype, "device": layer.weight.device}
    if isinstance(layer, nn.Linear):
        return _fill(nn.Linear(layer.in_features, layer.out_features, **where), weight, bias)
    conv = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        layer.groups,
        padding_mode=layer.padding_mode,
        **where,
    )
    return _fill(conv, weight, bias)


def _fill(layer: _Layer, weight: Tensor, bias: Tensor) -> _Layer:
    with torch.no_grad():
        layer.weight.copy_(weight)
        assert layer.bias is not None
        layer.bias.copy_(bias)
    layer.training = False
    return layer


_HALVES = (("norm1", "mixer"), ("norm2", "mlp"))


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
        fuse: Any = getattr(child, "fuse", None)
        if fuse is not None:
            setattr(module, name, fuse())
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
    for norm_name, part_name in _HALVES:
        norm, part = getattr(block, norm_name), getattr(block, part_name)
        if isinstance(norm, nn.BatchNorm2d) and (
            isinstance(part, Mlp) or hasattr(part, "fuse_affine_")
        ):
            fuse_affine_(part, scale_shift_of(norm))
            setattr(block, norm_name, nn.Identity())


def fuse_affine_(part: nn.Module, affine: ScaleShift) -> None:
    """Makes a part give for x what it gave for ``affine`` of x."""
    if isinstance(part, Mlp):
        part.fc1 = fuse_preceding_affine(affine, part.fc1)  # type: ignore[type-var]
    else:
        part.fuse_affine_(affine)  # type: ignore[operator]
