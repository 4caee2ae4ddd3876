"""A model without what only training needs: every norm and branch folded into its neighbor."""

from __future__ import annotations

from typing import Any

from torch import nn

from modwright.nn.block import Block
from modwright.nn.channel_mixers.mlp import Mlp
from modwright.nn.reparameterize import (
    ScaleShift,
    as_conv,
    fuse_conv_bn,
    fuse_preceding_affine,
    scale_shift_of,
)

__all__ = ["fuse_affine_", "reparameterize_"]

_HALVES = (("norm1", "mixer"), ("norm2", "mlp"))


def reparameterize_(module: nn.Module) -> nn.Module:
    """Folds all that can be folded below ``module``, in place; its outputs stay.

    Parts with a method ``fuse()`` are replaced by what it gives. A batch norm behind a layer of a
    sequence goes into that layer, one before a mixer of a :class:`Block` into the mixer's maps, and
    one that has no such neighbor becomes a convolution per channel. The structure depends on the
    parts alone, not on their numbers.

    Raises:
        ValueError: a batch norm is in training mode, or its statistics are not finite.

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
    """Makes a part give for x what it gave for ``affine`` of x.

    Raises:
        ValueError: the part's first map is a padded convolution.
    """
    if isinstance(part, Mlp):
        part.fc1 = fuse_preceding_affine(affine, part.fc1)  # type: ignore[type-var]
    else:
        part.fuse_affine_(affine)  # type: ignore[operator]
