"""``modwright upscale``: makes an image larger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modwright.cli.console import log
from modwright.core.files import require_new, write_file

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["upscale"]


def upscale(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="A directory with a model of super-resolution."),
    ],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    out: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Image to write, as .png.")
    ],
    tile: Annotated[
        int | None,
        typer.Option(help="Side of square tiles; without it the whole image is taken at once."),
    ] = None,
    overlap: Annotated[int, typer.Option(help="Pixels that neighboring tiles share.")] = 32,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Make an image larger with a model of super-resolution.

    A model such as CRAFT looks at the whole image, so tiles, which need less memory, are an
    approximation. Images of any size are taken; gray ones are read as color.
    """
    from modwright.cli.opening import open_checkpoint
    from modwright.core.errors import InvalidInputError
    from modwright.core.modes import set_eval
    from modwright.models.upscaling import upscale_image

    require_new(out, force)
    pixels = _read(image)
    opened: Any = open_checkpoint(str(model)).model
    if not hasattr(opened.config, "upscale"):
        raise InvalidInputError(f"{model}: {type(opened).__name__} makes no images larger")
    large = upscale_image(set_eval(opened), pixels, tile, overlap)
    _write(large, out)
    sizes = [f"{side.shape[2]} x {side.shape[1]}" for side in (pixels, large)]
    log(f"written: {out}, {sizes[1]} pixels from {sizes[0]}")


def _read(path: Path) -> Tensor:
    """(3, H, W), whole numbers from 0 to 255."""
    import numpy as np
    import torch

    from modwright.tasks.image_files import read_image

    return torch.from_numpy(np.asarray(read_image(path, single=True)).copy()).permute(2, 0, 1)


def _write(pixels: Tensor, out: Path) -> None:
    from PIL import Image

    from modwright.core.errors import CheckpointError

    made = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    try:
        write_file(out, made.save)
    except ValueError:
        raise CheckpointError(f"{out}: no image is written as {out.suffix!r}; .png is") from None
