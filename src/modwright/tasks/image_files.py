"""Image files as they are meant to be seen: upright, in 8-bit red, green and blue.

One reader for everything that takes image files. It depends on Pillow.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modwright.core.errors import CheckpointError, InvalidInputError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["is_image", "read_image"]

# What Pillow finds by its first bytes but does not draw by itself.
_NOT_DRAWN = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
# Formats whose numbers go up to 65,535 where Pillow reads them as 32-bit integers.
_SIXTEEN_BIT_FORMATS = {"PNG", "PPM"}
# Formats whose further frames are previews, depth or the same image for the other eye.
_ONE_IMAGE_FORMATS = {"MPO"}
_WITH_ALPHA = {"RGBA", "LA", "PA", "La", "RGBa"}
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def is_image(path: str | Path) -> bool:
    """Whether a file is an image, by its first bytes; a damaged one is, by its suffix.

    Example:
        >>> is_image("nothing.csv"), is_image("nothing.png")
        (False, True)
    """
    from PIL import Image

    path = Path(path)
    try:
        with Image.open(path) as opened:
            return opened.format not in _NOT_DRAWN
    except Image.DecompressionBombError:
        return True
    except _DAMAGED:
        known = Image.registered_extensions().get(path.suffix.lower())
        return known is not None and known not in _NOT_DRAWN


def read_image(path: str | Path, *, single: bool = False) -> Image.Image:
    """An image file, turned as its EXIF orientation says, in 8-bit red, green and blue.

    Gray, palette, CMYK and the like become RGB. 16-bit grays are divided by 257; floating-point
    grays from 0 to 1 are multiplied by 255. What is transparent is laid over white. Of several
    frames the first is taken.

    Args:
        path: the file.
        single: refuse a file whose transparency or further frames would be lost.

    Raises:
        CheckpointError: no such file, or none that Pillow can read; names it.
        InvalidInputError: numbers whose range the file does not say, more pixels than Pillow's
            limit, or, with ``single``, transparency or several frames.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    try:
        with Image.open(path) as opened:
            frames = getattr(opened, "n_frames", 1)
            if single and frames > 1 and opened.format not in _ONE_IMAGE_FORMATS:
                raise InvalidInputError(f"{path} has several frames; save the one that is wanted")
            opened.load()  # a TIFF file is turned here
            upright = ImageOps.exif_transpose(opened)
            return _as_rgb(upright, opened.format, path, single)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise InvalidInputError(
            f"{path} has more than {most:,} pixels; make it smaller first"
        ) from None
    except _DAMAGED:
        raise CheckpointError(f"{path} is no image that can be read") from None


def _as_rgb(image: Image.Image, kind: str | None, path: Path, single: bool) -> Image.Image:
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bit(image, kind, path)).convert("RGB")
    if image.mode not in _WITH_ALPHA and "transparency" not in image.info:
        try:
            return image.convert("RGB")
        except ValueError:
            raise InvalidInputError(f"{path} is in {image.mode}; save it as RGB") from None
    # Premultiplied and two-band modes reach RGBA on one more step.
    steps = {"La": ("LA", "RGBA"), "RGBa": ("RGBA",)}.get(image.mode, ("RGBA",))
    for mode in steps:
        image = image.convert(mode)
    if single and image.getchannel("A").getextrema() != (255, 255):
        raise InvalidInputError(f"{path} is partly transparent; save it without an alpha channel")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _eight_bit(image: Image.Image, kind: str | None, path: Path) -> np.ndarray:
    """(H, W) gray of 16 bits or of floating point, as 8 bits."""
    numbers = np.asarray(image)
    low, high = float(numbers.min()), float(numbers.max())
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # NaN, too
            said = f"{low:g} to {high:g}" if math.isfinite(low + high) else "NaN or infinity"
            raise InvalidInputError(f"{path} holds floating-point pixels of {said}; 0 to 1 is read")
        return np.round(numbers * 255.0).astype(np.uint8)
    if image.mode == "I" and kind not in _SIXTEEN_BIT_FORMATS:
        raise InvalidInputError(
            f"{path} holds 32-bit pixels ({low:g} to {high:g}), whose white the file does not say; "
            "save it with 8 or 16 bits"
        )
    return np.round(numbers.astype(np.float64) / 257).astype(np.uint8)
