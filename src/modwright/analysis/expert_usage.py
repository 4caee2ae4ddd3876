"""How evenly the experts of a mixture are used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modwright.analysis.finding import Chart
from modwright.analysis.registry import Analysis, Subject, analysis
from modwright.analysis.untrained import (
    NULL,
    Untrained,
    UntrainedFinding,
    largest,
    measured,
    null_of,
)
from modwright.anatomy import Anatomy
from modwright.calibration.expert_usage import expert_usage, routers
from modwright.core.progress import SILENT, Progress

__all__ = ["ExpertUsageAnalysis", "UnevenUsage"]


@dataclass(frozen=True, kw_only=True)
class UnevenUsage(UntrainedFinding):
    """Shares of the work that the experts of each MLP do.

    Attributes:
        shares: address of an MLP -> the share of the choices that fell on each expert; they add up
            to 1.
        tokens: how many chose, padding left out.
    """

    shares: dict[str, tuple[float, ...]]
    tokens: int

    def charts(self) -> list[Chart]:
        """The share of every expert."""
        caption = "One line for each MLP; dashed: the largest share by the null."
        shares = dict(self.shares)
        return [Chart("Use of experts", caption, "expert", "share", shares, self.null)]

    def lines(self) -> list[str]:
        """The range of each MLP."""
        said = ((name, min(of), max(of)) for name, of in self.shares.items())
        return [f"  {name}: {low:.3f} to {high:.3f}" for name, low, high in said]


@analysis(
    "expert_usage",
    finding=UnevenUsage,
    value="the largest share of an MLP's choices that fell on one expert",
    null=NULL,
)
@dataclass(frozen=True)
class ExpertUsageAnalysis(Untrained, Analysis):
    """How evenly tokens use the experts of each MLP."""

    def unsupported(self, subject: Subject) -> str | None:
        return None if routers(subject.anatomy) else "has no experts"

    def run(
        self, subject: Subject, *, directory: Path | None = None, progress: Progress = SILENT
    ) -> UnevenUsage:
        tokens = 0

        def measure(anatomy: Anatomy, folder: Path | None) -> dict[str, list[float | None]]:
            nonlocal tokens
            found = expert_usage(anatomy.model, [b.tensors() for b in subject.data or ()])
            tokens = found.tokens
            return {name: (n / n.sum()).tolist() for name, n in found.counts.items()}

        shares, others = measured(subject.anatomy, measure, self.untrained, directory, progress)
        reached = tuple(map(largest, others))
        told = {name: tuple(v or 0.0 for v in values) for name, values in shares.items()}
        return UnevenUsage(
            value=largest(shares),
            null=null_of(reached),
            untrained=reached,
            shares=told,
            tokens=tokens,
        )
