"""PSNR and SSIM of a super-resolution model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modwright.core.digest import sha256_of
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.core.formatting import number_text, score_text
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress
from modwright.data.image_files import is_image, read_image
from modwright.metrics.column import Column, DifferenceColumn
from modwright.metrics.forward import dtype_of
from modwright.metrics.interval import mean_interval
from modwright.metrics.registry import Metric, Subject, metric
from modwright.metrics.windows import AtLeastOne
from modwright.tasks.upscaling import bicubic, psnr, sample_image_pairs, ssim

__all__ = ["ImageQuality", "PsnrMetric"]


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
        return sha256_of(self._listed())

    @torch.no_grad()
    def measure(self, subject: Subject, progress: Progress = SILENT) -> ImageQuality:
        model: Any = subject.model
        scale, device = int(model.config.upscale), next(model.parameters()).device
        values: list[float] = []
        similar: list[float] = []
        begin = time.perf_counter()
        with eval_mode(model), progress.phase("psnr", self._count()) as task:
            for small, large in self._pairs(scale):
                pixels = small[None].to(device, model.dtype)
                made = model(pixel_values=pixels).reconstruction[0].float().cpu()
                if not bool(made.isfinite().all()):
                    values.append(math.nan)
                    continue
                luma = len(large) == 3
                values.append(psnr(made, large, scale, luma))
                if min(large.shape[-2:]) - 2 * scale >= 11:
                    similar.append(ssim(made, large, scale, luma))
                task.advance()
        counts = [1.0] * len(values)
        sure = mean_interval(values, counts)
        return ImageQuality(
            value=sum(values) / len(values),
            ssim=sum(similar) / len(similar) if len(similar) == len(values) else None,
            images=len(values),
            recipe={
                "data": self.images,
                "scale": scale,
                "border": scale,
                "channel": "luma",
                "dtype": dtype_of(model),
                "sha256": sha256_of(self._listed()),
            },
            seconds=time.perf_counter() - begin,
            interval=None if sure is None else asdict(sure),
            by_window={"psnr": values, "counts": counts},
        )

    def _files(self) -> list[Path]:
        folder = Path(self.images).expanduser()
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder; `sample` names what is packaged")
        files = [path for path in sorted(folder.iterdir()) if path.is_file() and is_image(path)]
        if not files:
            raise InvalidInputError(f"{folder} holds no images")
        return files[: self.limit]

    def _count(self) -> int:
        return 16 if self.images == "sample" else len(self._files())

    def _listed(self) -> list[Any]:
        if self.images == "sample":
            return ["sample", self.limit]
        return [[path.name, path.stat().st_size] for path in self._files()]

    def _pairs(self, scale: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Small and large images (C, H, W) from 0 to 1."""
        if self.images == "sample":
            _, test = sample_image_pairs(scale, train=1)
            for small, large in list(zip(test.small, test.large))[: self.limit]:
                yield small, large
            return
        for path in self._files():
            raw = torch.from_numpy(np.asarray(read_image(path)).copy()).permute(2, 0, 1) / 255
            height, width = (side // scale * scale for side in raw.shape[-2:])
            large = raw[:, :height, :width]
            small = (bicubic(large[None], 1 / scale)[0] * 255).round().clamp(0, 255) / 255
            yield small, large
