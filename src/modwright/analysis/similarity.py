"""Which attentions and MLPs change the residual stream least (the measure of arXiv 2406.15786)."""

from __future__ import annotations

import math
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
from modwright.calibration import Similarity, calibrate
from modwright.calibration.similarity import part_similarities
from modwright.core.progress import SILENT, Progress
from modwright.edits import Plan, remove

__all__ = ["PartSimilarity", "SimilarityAnalysis"]


@dataclass(frozen=True, kw_only=True)
class PartSimilarity(UntrainedFinding):
    """Mean cosines between the residual stream before and after every part.

    Attributes:
        scores: kind of part -> one number of each block; None where it has no such part.
    """

    scores: dict[str, tuple[float | None, ...]]

    def charts(self) -> list[Chart]:
        """The scores of every layer."""
        caption = (
            "The closer to one, the less a part does; dashed: the null of attentions and MLPs."
        )
        name = "Similarity of the stream before and after each part"
        return [Chart(name, caption, "block", "mean cosine", self.scores, self.null)]

    def lines(self) -> list[str]:
        """The most similar parts of each kind."""
        said = []
        for kind, values in self.scores.items():
            ranked = sorted((-v, i) for i, v in enumerate(values) if v is not None)
            told = ", ".join(f"{kind} {i} {-v:.4f}" for v, i in ranked[:3])
            said += [f"  most similar: {told}"] if told else []
        return said

    def plan(self, anatomy: Anatomy) -> Plan | None:
        """Removes the most similar attention or MLP, where it is above its null."""
        if not self.found:
            return None
        kind, index = next(
            (kind, values.index(self.value)) for kind, values in self.scores.items()
            if kind != "block" and self.value in values
        )  # fmt: skip
        reasons = {"scores": {k: list(v) for k, v in self.scores.items()}}
        reasons["removed"] = {kind: [index]}
        part = f"blocks.{index}.{kind}"
        return Plan.of(anatomy, SimilarityAnalysis.name, remove(part), reasons=reasons)


@analysis(
    "similarity",
    finding=PartSimilarity,
    value="the largest mean cosine between the stream before and after an attention or MLP",
    null=NULL,
    paper="llm-drop",
)
@dataclass(frozen=True)
class SimilarityAnalysis(Untrained, Analysis):
    """How little each attention, MLP and block changes the residual stream: LLM-Drop's scores."""

    def unsupported(self, subject: Subject) -> str | None:
        parts = (part for block in subject.anatomy.blocks for part in block.sublayers())
        return None if any(parts) else "has neither attentions nor MLPs"

    def run(
        self, subject: Subject, *, directory: Path | None = None, progress: Progress = SILENT
    ) -> PartSimilarity:
        data = subject.data

        def measure(anatomy: Anatomy, folder: Path | None) -> dict[str, list[float | None]]:
            found = calibrate(anatomy, data, Similarity(), directory=folder, progress=progress)
            scores = part_similarities(found)
            return {k: [None if math.isnan(v) else v for v in vs] for k, vs in scores.items()}

        scores, others = measured(subject.anatomy, measure, self.untrained, directory, progress)
        kinds = tuple(kind for kind in scores if kind != "block")
        reached = tuple(largest(one, kinds) for one in others)
        return PartSimilarity(
            value=largest(scores, kinds),
            null=null_of(reached),
            untrained=reached,
            scores={kind: tuple(values) for kind, values in scores.items()},
        )
