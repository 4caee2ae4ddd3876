"""PSNR and SSIM: how near images (B, C, H, W) from 0 to 1 come to those that they should be."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError
from modwright.core.formatting import number_text, score_text
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress
from modwright.data.super_resolution import sample_image_pairs
from modwright.data.super_resolution_rows import ImagePairs, large_images
from modwright.metrics.column import Column, DifferenceColumn
from modwright.metrics.forward import dtype_of
from modwright.metrics.interval import mean_interval
from modwright.metrics.registry import Metric, Subject, metric
from modwright.metrics.windows import AtLeastOne

__all__ = ["ImageQuality", "PsnrMetric", "psnr", "ssim"]

# Luma of BT.601 in studio range, for red, green and blue from 0 to 1.
_LUMA, _BLACK = (65.481, 128.553, 24.966), 16.0
_WINDOW, _SIGMA = 11, 1.5  # of SSIM


def _eight_bit(pixels: Tensor) -> Tensor:
    """0 to 1 -> whole numbers from 0 to 255, in double precision or what the pixels have."""
    return (pixels * 255).round().clamp(0, 255)


def _comparable(found: Tensor, wanted: Tensor, crop: int, luma: bool) -> tuple[Tensor, Tensor]:
    """Both as (B, C, H, W) from 0 to 255, without their border; C is 1 for luma."""
    if found.shape != wanted.shape or found.dim() not in (3, 4):
        raise InvalidInputError(
            "two images of one shape ([batch,] channels, height, width) are compared, "
            f"not {tuple(found.shape)} and {tuple(wanted.shape)}"
        )
    height, width = found.shape[-2:]
    if crop < 0 or min(height, width) <= 2 * crop:
        raise InvalidInputError(
            f"without {crop} pixels at each side nothing is left of {height} x {width}"
        )
    if luma and found.shape[-3] != 3:
        raise InvalidInputError(
            f"luma is of red, green and blue, not of {found.shape[-3]} channels"
        )
    both = []
    for image in (found, wanted):
        if not (image.is_floating_point() and bool(image.isfinite().all())):
            raise InvalidInputError("pixels are finite numbers from 0 to 1")
        rounded = _eight_bit(image.double()).reshape(-1, *image.shape[-3:])
        rounded = rounded[..., crop : height - crop, crop : width - crop]
        if luma:
            weights = rounded.new_tensor(_LUMA).view(1, 3, 1, 1)
            rounded = (rounded / 255 * weights).sum(1, keepdim=True) + _BLACK
        both.append(rounded)
    return both[0], both[1]


def psnr(found: Tensor, wanted: Tensor, crop: int = 0, luma: bool = True) -> float:
    """Peak signal-to-noise ratio in decibels, the mean over images; infinite for equal ones.

    Args:
        found, wanted: (C, H, W) or (B, C, H, W) from 0 to 1; they are rounded to 8 bits first.
        crop: pixels that are left out at each side; by custom as many as the scale.
        luma: compares the Y of BT.601 (16 to 235) instead of all channels.

    Raises:
        InvalidInputError: images that cannot be compared.

    Example:
        >>> round(psnr(torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.2)), 2)
        15.3
    """
    one, other = _comparable(found, wanted, crop, luma)
    errors = (one - other).square().mean((1, 2, 3)).tolist()
    return sum(10 * math.log10(255**2 / e) if e else math.inf for e in errors) / len(errors)


def ssim(found: Tensor, wanted: Tensor, crop: int = 0, luma: bool = True) -> float:
    """Structural similarity, the mean over images, channels and positions; 1 for equal ones.

    Means and spreads are of windows of 11 x 11 within the image, weighted by a Gaussian of 1.5
    pixels (doi 10.1109/TIP.2003.819861). Arguments are those of :func:`psnr`.

    Raises:
        InvalidInputError: images that cannot be compared, or are smaller than a window.

    Example:
        >>> same = torch.rand(3, 16, 16)
        >>> round(ssim(same, same), 6)
        1.0
    """
    one, other = _comparable(found, wanted, crop, luma)
    if min(one.shape[-2:]) < _WINDOW:
        raise InvalidInputError(
            f"an image of {one.shape[-2]} x {one.shape[-1]} holds no window of 11 x 11"
        )
    positions = torch.arange(_WINDOW, dtype=one.dtype) - _WINDOW // 2
    bell = (-positions.square() / (2 * _SIGMA**2)).exp()
    bell = bell / bell.sum()

    def mean(maps: Tensor) -> Tensor:
        flat = maps.reshape(-1, 1, *maps.shape[-2:])
        return F.conv2d(F.conv2d(flat, bell.view(1, 1, -1, 1)), bell.view(1, 1, 1, -1))

    m, n = mean(one), mean(other)
    m2, n2, mn = m * m, n * n, m * n
    s2, t2, st = mean(one * one) - m2, mean(other * other) - n2, mean(one * other) - mn
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * mn + c1) * (2 * st + c2) / ((m2 + n2 + c1) * (s2 + t2 + c2))
    return float(similar.mean())


@dataclass(frozen=True)
class ImageQuality:
    """How near upscaled images come to those that the small ones were made of.

    Attributes:
        value: mean PSNR in decibels, on luma, without a border of as many pixels as the scale.
        ssim: mean SSIM of the same; None where an image is smaller than its window.
        images: how many were compared.
        recipe: which images, scale, border, dtype.
        seconds: of all.
        interval: where the mean PSNR lies with 95 % confidence.
        by_window: PSNR of each image, with ``counts``.
    """

    value: float
    ssim: float | None
    images: int
    recipe: dict[str, Any]
    seconds: float
    interval: dict[str, Any] | None
    by_window: dict[str, list[float]]

    @property
    def finite(self) -> bool:
        """Whether PSNR is a number: equal images have an infinite one."""
        return math.isfinite(self.value)


def _decibels(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{abs(value):.2f} dB"


@metric(
    "psnr",
    unit="dB",
    direction="higher",
    title="PSNR",
    order=40,
    columns=(
        DifferenceColumn(
            "psnr",
            "psnr",
            "PSNR, dB",
            number_text,
            _decibels,
            lower_is_better=False,
            key="value",
            headline="measured",
            by_window="psnr",
            meaning="Peak signal-to-noise ratio of upscaled images on luma, the mean over images; "
            "its change is a difference.",
        ),
        Column(
            "psnr",
            "ssim",
            "SSIM",
            score_text,
            lower_is_better=False,
            meaning="Structural similarity of the same images; 1 is equal.",
        ),
    ),
)
@dataclass(frozen=True)
class PsnrMetric(Metric):
    """PSNR and SSIM of a super-resolution model.

    Attributes:
        images: sample, for pieces of the two photos that scikit-learn brings, or a folder of large
            images, which are made smaller by cubic convolution.
        limit: how many images; null takes all.
    """

    images: str = "sample"
    limit: AtLeastOne | None = None

    def unsupported(self, subject: Subject) -> str | None:
        if not hasattr(getattr(subject.model, "config", None), "upscale"):
            return f"needs a super-resolution model, and {subject.name} is none"
        return None

    def digest(self, subject: Subject) -> str:
        return sha256_of(*self._rows(int(subject.model.config.upscale))[1])

    @torch.no_grad()
    def measure(self, subject: Subject, progress: Progress = SILENT) -> ImageQuality:
        model: Any = subject.model
        scale, device = int(model.config.upscale), next(model.parameters()).device
        rows, listed = self._rows(scale)
        values: list[float] = []
        similar: list[float] = []
        begin = time.perf_counter()
        with eval_mode(model), progress.phase("psnr", len(rows)) as task:
            for row in rows:
                small, large = row["pixel_values"], row["labels"]
                made = model(pixel_values=small[None].to(device, model.dtype))
                found = made.reconstruction[0].float().cpu()
                if not bool(found.isfinite().all()):
                    values.append(math.nan)
                    continue
                luma = len(large) == 3
                values.append(psnr(found, large, scale, luma))
                if min(large.shape[-2:]) - 2 * scale >= _WINDOW:
                    similar.append(ssim(found, large, scale, luma))
                task.advance()
        counts = [1.0] * len(values)
        sure = mean_interval(values, counts)
        recipe = {"data": self.images, "scale": scale, "border": scale, "channel": "luma"}
        return ImageQuality(
            value=sum(values) / len(values),
            ssim=sum(similar) / len(similar) if len(similar) == len(values) else None,
            images=len(values),
            recipe={**recipe, "dtype": dtype_of(model), "sha256": sha256_of(*listed)},
            seconds=time.perf_counter() - begin,
            interval=None if sure is None else asdict(sure),
            by_window={"psnr": values, "counts": counts},
        )

    def _rows(self, scale: int) -> tuple[Any, list[Any]]:
        """Rows of small and large images, and what tells them from others."""
        if self.images == "sample":
            _, test = sample_image_pairs(scale, train=1)
            count = min(len(test), self.limit or len(test))
            return [test[at] for at in range(count)], ["sample", str(count)]
        files = large_images(self.images)[: self.limit]
        pairs = ImagePairs(tuple(files), scale)
        return pairs, [pairs.digest()]
