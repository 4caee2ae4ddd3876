"""Images of any size through a model that makes them larger: padding, and tiles if asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modwright.core.errors import InvalidInputError, unknown_name

__all__ = ["PADS", "TileReport", "tile_report", "upscale_image"]


def _folded(i: int, length: int, period: int) -> int:
    """Where the mirror image of a row of ``length`` positions has what belongs at position i."""
    if length == 1:
        return 0
    i %= period
    return i if i < length else period - i - (period == 2 * length)


# Sources of the rows of an image that is made longer below and to the right. "reflect" does not
# repeat the last row and adds what is missing; "mirror-reference" repeats it and adds a multiple
# even where nothing is missing, as the authors' test does.
PADS: dict[str, Callable[[int, int], list[int]]] = {
    "reflect": lambda length, multiple: [
        _folded(i, length, 2 * length - 2) for i in range(-(-length // multiple) * multiple)
    ],
    "mirror-reference": lambda length, multiple: [
        _folded(i, length, 2 * length) for i in range((length // multiple + 1) * multiple)
    ],
}


@torch.no_grad()
def upscale_image(
    model: Any, image: Tensor, tile: int | None = None, overlap: int = 32, pad: str = "reflect"
) -> Tensor:
    """An image of any size, made larger by the model's scale.

    Tiles need less memory, but give other numbers where a model looks at the whole image, as
    CRAFT's channel attention does: :func:`tile_report` says how far off they are.

    Args:
        model: of super-resolution.
        image: (C, H, W) or (B, C, H, W); numbers from 0 to 1, or whole ones from 0 to 255.
        tile: side of square tiles, before they are made larger; None takes the whole image.
        overlap: of neighboring tiles, which fade into each other.
        pad: a name of :data:`PADS`.

    Returns:
        (..., scale H, scale W): whole numbers for whole numbers, rounded and cut at 0 and 255;
        otherwise what the model gives, which may lie a little outside 0 and 1.

    Example:
        >>> from modwright.models import create_model
        >>> model = create_model("craft_x2", dim=32, depths=[1], num_heads=[4], window=[2, 4])
        >>> upscale_image(model, torch.rand(3, 5, 7)).shape
        torch.Size([3, 10, 14])
    """
    shape, require = tuple(image.shape), model.config.require
    require(len(shape) in (3, 4), f"an image is ([batch,] channels, height, width), not {shape}")
    require(0 not in shape, f"the image is empty: {shape}")
    channels, multiple = model.config.num_channels, model.config.multiple
    more = "; drop the alpha channel" if shape[-3] == channels + 1 else ""
    told = f"the model takes {channels} channels, the image has {shape[-3]}{more}"
    require(shape[-3] == channels, told)
    if pad not in PADS:
        raise unknown_name("padding", pad, PADS)
    if tile is not None:
        fits = tile > 0 and tile % multiple == 0
        require(fits, f"tile must be a multiple of {multiple}, not {tile}")
        told = f"overlap must be at least 0 and less than half a tile of {tile}: {overlap}"
        require(0 <= overlap < tile / 2, told)
    whole = _is_whole(image)
    batch = image.to(model.device, model.dtype) / (255 if whole else 1)
    batch = batch if image.dim() == 4 else batch[None]
    for axis in (2, 3):
        sources = PADS[pad](batch.shape[axis], multiple)
        batch = batch.index_select(axis, torch.tensor(sources, device=batch.device))
    large = model(batch).reconstruction if tile is None else _run_tiles(model, batch, tile, overlap)
    height, width = (model.config.upscale * side for side in image.shape[-2:])
    large = large[..., :height, :width] if image.dim() == 4 else large[0, :, :height, :width]
    return (large * 255).round().clamp(0, 255).to(image.dtype) if whole else large


def _is_whole(image: Tensor) -> bool:
    """Whether pixels are whole numbers; refuses those that are no pixels."""
    if image.is_floating_point():
        if not bool(image.isfinite().all()):
            raise InvalidInputError("the image has pixels that are no finite numbers")
        return False
    if image.is_complex() or image.dtype == torch.bool:
        raise InvalidInputError(
            f"pixels are numbers from 0 to 1, or whole ones to 255, not {image.dtype}"
        )
    low, high = int(image.min()), int(image.max())
    if low < 0 or high > 255:
        raise InvalidInputError(
            f"whole numbers of pixels lie between 0 and 255, not {low} and {high}"
        )
    return True


def _run_tiles(model: Any, batch: Tensor, tile: int, overlap: int) -> Tensor:
    """Tiles one after the other; where they overlap, each counts less towards its border."""
    scale = model.config.upscale
    height, width = batch.shape[2:]
    total = batch.new_zeros(*batch.shape[:2], scale * height, scale * width)
    weights = batch.new_zeros(scale * height, scale * width)
    for top, bottom in _spans(height, tile, overlap):
        for left, right in _spans(width, tile, overlap):
            large = model(batch[:, :, top:bottom, left:right]).reconstruction
            weight = torch.outer(
                _fade(bottom - top, overlap, scale, top > 0, bottom < height, batch),
                _fade(right - left, overlap, scale, left > 0, right < width, batch),
            )
            rows, columns = slice(scale * top, scale * bottom), slice(scale * left, scale * right)
            total[:, :, rows, columns] += large * weight
            weights[rows, columns] += weight
    return total / weights


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Where tiles begin and end; the last is moved back so that it is whole."""
    if length <= tile:
        return [(0, length)]
    count = math.ceil((length - overlap) / (tile - overlap))
    starts = [min(index * (tile - overlap), length - tile) for index in range(count)]
    return [(start, start + tile) for start in starts]


def _fade(length: int, overlap: int, scale: int, before: bool, after: bool, like: Tensor) -> Tensor:
    """Weights along one side of a tile: 1, falling linearly over the overlap to a neighbor."""
    weights = like.new_ones(scale * length)
    ramp = (torch.arange(scale * overlap, device=like.device) + 0.5).to(like.dtype)
    ramp = ramp / max(scale * overlap, 1)
    if before and overlap:
        weights[: len(ramp)] = ramp
    if after and overlap:
        weights[-len(ramp) :] = ramp.flip(0)
    return weights


class TileReport(NamedTuple):
    """How far tiles are off: the largest and the mean difference of a pixel, where 1 is the range
    of pixels, and the PSNR in decibels over all channels; infinite where nothing differs."""

    largest: float
    mean: float
    psnr: float


def tile_report(
    model: Any, image: Tensor, tile: int = 256, overlap: int = 32, pad: str = "reflect"
) -> TileReport:
    """Makes an image larger both ways; arguments are those of :func:`upscale_image`."""
    whole = upscale_image(model, image, None, overlap, pad)
    unit = 1.0 if whole.is_floating_point() else 255.0
    off = (upscale_image(model, image, tile, overlap, pad).double() - whole.double()) / unit
    error = float(off.square().mean())
    psnr = -10 * math.log10(error) if error else math.inf
    return TileReport(float(off.abs().max()), float(off.abs().mean()), psnr)
