"""How much of a vision model's feature maps is in high frequencies, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modwright.analysis.finding import Chart
from modwright.analysis.registry import Analysis, Subject, analysis
from modwright.analysis.spectrum import band_energy
from modwright.analysis.untrained import (
    NULL,
    Untrained,
    UntrainedFinding,
    largest,
    measured,
    null_of,
)
from modwright.anatomy import Anatomy
from modwright.anatomy.inputs import Images
from modwright.core.captured import capture_batches
from modwright.core.progress import SILENT, Progress

__all__ = ["MapSpectra", "SpectrumAnalysis"]


@dataclass(frozen=True, kw_only=True)
class MapSpectra(UntrainedFinding):
    """Shares of the energy of the maps behind each block that lie in the upper half of frequencies.

    Attributes:
        high: of each block; None where its maps have no upper half.
    """

    high: tuple[float | None, ...]

    def charts(self) -> list[Chart]:
        """The share behind every block."""
        caption = "Share of the energy in the upper half of the frequencies; dashed: its null."
        series = {"maps behind the block": self.high}
        return [
            Chart("High frequencies in feature maps", caption, "block", "share", series, self.null)
        ]


@analysis(
    "spectrum",
    finding=MapSpectra,
    value="the largest share of high frequencies in the energy of the maps behind a block",
    null=NULL,
)
@dataclass(frozen=True)
class SpectrumAnalysis(Untrained, Analysis):
    """How much of the energy of feature maps lies in high frequencies, behind every block."""

    def unsupported(self, subject: Subject) -> str | None:
        reads = subject.anatomy.family.inputs()
        return None if isinstance(reads, Images) else "reads no images"

    def run(
        self, subject: Subject, *, directory: Path | None = None, progress: Progress = SILENT
    ) -> MapSpectra:
        def measure(anatomy: Anatomy, folder: Path | None) -> dict[str, list[float | None]]:
            reads: Any = anatomy.family.inputs()
            points = {str(block.index): block.resid_post for block in anatomy.blocks}
            found = capture_batches(anatomy.model, subject.data or (), points)
            maps = (_maps(found[name], reads) for name in points)
            return {"high": [None if x is None else float(band_energy(x)[-1]) for x in maps]}

        shares, others = measured(subject.anatomy, measure, self.untrained, directory, progress)
        reached = tuple(map(largest, others))
        return MapSpectra(
            value=largest(shares),
            null=null_of(reached),
            untrained=reached,
            high=tuple(shares["high"]),
        )


def _maps(stream: Tensor, reads: Images) -> Tensor | None:
    """Maps (B, C, H, W) of a stream (B, H, W, C), or of tokens (B, t, C) behind extra ones."""
    if stream.dim() == 3:
        rows, columns = (whole // one for whole, one in zip(reads.size, reads.patch))
        if stream.shape[1] != rows * columns + reads.extra:
            return None
        stream = stream[:, reads.extra :].unflatten(1, (rows, columns))
    maps = stream.movedim(-1, 1) if stream.dim() == 4 else torch.empty(0)
    return maps if maps.dim() == 4 and min(maps.shape[-2:]) > 1 else None
