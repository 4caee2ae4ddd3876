"""What a model is without its massive activations, beside controls (arXiv 2402.17762)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from modwright.analysis.finding import Chart, Finding
from modwright.analysis.massive_values import (
    MassiveReport,
    Pairs,
    detect_massive,
    mean_activations,
    rows_of,
    set_activations,
)
from modwright.analysis.registry import Analysis, Subject, analysis
from modwright.anatomy import Anatomy
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress
from modwright.metrics.forward import require_causal

__all__ = ["MassiveActivations", "MassiveFinding", "intervention_table"]

_CONTROLS = 10
_ELSEWHERE = 5  # positions further on: where the same dimension is a control


def intervention_table(
    model: nn.Module | Anatomy,
    batches: Iterable[Any],
    calibration: Iterable[Any],
    report: MassiveReport,
    *,
    seed: int = 0,
    progress: Progress = SILENT,
) -> dict[str, float]:
    """Perplexities: as it is, massive activations as zero and as their mean, and controls.

    They are set behind the block where they emerge. Controls are ten random dimensions and the ten
    next largest at the same position, and the same dimension at another position, all to zero.

    Args:
        model: a causal language model.
        batches: what perplexity is measured on.
        calibration: other sequences, which means are taken of.
        report: what was detected.

    Raises:
        InvalidInputError: it is no causal language model.
    """
    anatomy, kept, pairs = Anatomy.of(model), list(batches), report.pairs()
    layer = report.emergence
    if layer is None or not pairs:
        return {}
    means = mean_activations(
        anatomy, layer, sorted({p for p, _ in pairs}), calibration, progress=progress
    )
    first, dims = pairs[0][0], {dimension for _, dimension in pairs}
    others = [d for d in means[first].abs().argsort(descending=True).tolist() if d not in dims]
    drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed)).tolist()
    arms: dict[str, Pairs] = {
        "intact": {},
        "zero": dict.fromkeys(pairs, 0.0),
        "mean": {(p, d): float(means[p][d]) for p, d in pairs},
        "random dimensions": {(first, others[i]): 0.0 for i in drawn[:_CONTROLS]},
        "next largest dimensions": {(first, d): 0.0 for d in others[:_CONTROLS]},
        "another position": {(p + _ELSEWHERE, d): 0.0 for p, d in pairs},
    }
    found = {}
    with progress.phase("interventions", len(arms)) as task:
        for name, values in arms.items():
            with set_activations(anatomy, layer, values):
                found[name] = _perplexity(anatomy, kept)
            task.advance()
    return found


def _perplexity(anatomy: Anatomy, batches: list[Any]) -> float:
    """Over all tokens that have one before them."""
    total, count = 0.0, 0
    with eval_mode(anatomy.model), torch.no_grad():
        for row in rows_of(batches, anatomy):
            ids = row["input_ids"][0]
            logits = anatomy.model(**row, use_cache=False).logits[0, :-1]
            total += float(F.cross_entropy(logits.float(), ids[1:], reduction="sum"))
            count += len(ids) - 1
    return math.exp(min(total / count, 700.0))


@dataclass(frozen=True)
class _Bars(Chart):
    """One bar for each label."""

    def draw(self, axes: Any) -> None:
        names = list(self.series)
        axes.barh(names, [self.series[name][0] for name in names])
        axes.set_xlabel(self.y)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")  # powers would need mathematical text


@dataclass(frozen=True, kw_only=True)
class MassiveFinding(Finding):
    """Which dimensions are massive, where, and what the model is without them.

    Attributes:
        dims: massive dimensions.
        emergence: the first layer with a massive entry.
        pairs: (position, dimension) that most sequences have one at, there.
        largest, next_largest, random: of each layer the ratio to the median of the largest
            dimension, of the largest that is not massive, and the mean of all those.
        top1, median: of each layer, averaged over sequences.
        sinks: mean attention probability on the first position.
        entries: how many sequences have a massive entry in each layer.
        perplexities: as :func:`intervention_table` gives them.
    """

    dims: tuple[int, ...]
    emergence: int | None
    pairs: tuple[tuple[int, int], ...]
    largest: tuple[float, ...]
    next_largest: tuple[float, ...]
    random: tuple[float, ...]
    top1: tuple[float, ...]
    median: tuple[float, ...]
    sinks: tuple[float | None, ...]
    entries: tuple[int, ...]
    perplexities: dict[str, float]

    def charts(self) -> list[Chart]:
        """Ratios and sizes by layer, and perplexities."""
        names = ("largest", "next_largest", "random")
        ratios = {name.replace("_", " "): getattr(self, name) for name in names}
        sizes = {"largest": self.top1, "median": self.median}
        told = "Behind each block, averaged over sequences; dashed: the null."
        found = [
            Chart("Largest value beside the median", told, "block", "ratio", ratios, self.null,
                  log=True),
            Chart("Largest value and median", "Behind each block.", "block", "size", sizes,
                  log=True),
        ]  # fmt: skip
        bars = {name: [value] for name, value in self.perplexities.items()}
        title = "Perplexity with activations set to zero, or to their mean"
        return found + ([_Bars(title, "All at one block.", "", "perplexity", bars)] if bars else [])

    def lines(self) -> list[str]:
        """Places, and perplexities."""
        if self.emergence is None:
            return ["  no massive activation"]
        places = (
            ", ".join(f"dimension {d} at position {p}" for p, d in self.pairs) or "no one place"
        )
        layers = [layer for layer, count in enumerate(self.entries) if count]
        said = [f"  blocks {layers[0]} to {layers[-1]}; behind the first: {places}"]
        return said + [f"  {name}: perplexity {v:.5g}" for name, v in self.perplexities.items()]


@analysis(
    "massive_activations",
    finding=MassiveFinding,
    value="the largest activation in multiples of the median of its state",
    null="the rule's limit, or the largest of the dimensions that are not massive",
    paper="massive-activations",
)
@dataclass(frozen=True)
class MassiveActivations(Analysis):
    """Values thousands of times larger than the rest, and what the model is without them.

    Attributes:
        sequences: how many statistics and perplexities are taken of.
        calibration: how many of the next ones means are taken of.
        absolute, relative: a massive value is above the first, and so many times the median.
        interventions: whether perplexities are measured, of causal language models.
    """

    sequences: Annotated[int, Field(ge=1)] = 3
    calibration: Annotated[int, Field(ge=1)] = 8
    absolute: Annotated[float, Field(gt=0)] = 100.0
    relative: Annotated[float, Field(gt=1)] = 1000.0
    interventions: bool = True

    def unsupported(self, subject: Subject) -> str | None:
        return None if subject.anatomy.blocks else "has no blocks"

    def run(
        self, subject: Subject, *, directory: Path | None = None, progress: Progress = SILENT
    ) -> MassiveFinding:
        anatomy = subject.anatomy
        rows = list(islice(rows_of(subject.data or (), anatomy), self.sequences
                           + self.calibration))  # fmt: skip
        measured, others = rows[: self.sequences], rows[self.sequences :]
        report = detect_massive(
            anatomy, measured, absolute=self.absolute, relative=self.relative, progress=progress
        )
        perplexities = {}
        if self.interventions and report.dims and "input_ids" in rows[0]:
            with eval_mode(anatomy.model), torch.no_grad():
                require_causal(anatomy.model, "interventions measure perplexity")
            perplexities = intervention_table(
                anatomy, measured, others or measured, report, progress=progress
            )
        ratios = [report.ratios(layer) for layer in range(len(report.peaks))]
        usual = [r[[d not in report.dims for d in range(len(r))]] for r in ratios]
        largest = tuple(float(r.max()) for r in ratios)
        following = tuple(float(r.max()) for r in usual)
        stats = report.stats.mean(0)
        layers = [
            {e.sequence for e in report.entries if e.layer == at} for at in range(len(ratios))
        ]
        return MassiveFinding(
            value=max(largest),
            null=max(self.relative, *following),
            dims=report.dims,
            emergence=report.emergence,
            pairs=report.pairs(),
            largest=largest,
            next_largest=following,
            random=tuple(float(r.mean()) for r in usual),
            top1=tuple(stats[0].tolist()),
            median=tuple(stats[3].tolist()),
            sinks=report.sinks,
            entries=tuple(map(len, layers)),
            perplexities=perplexities,
        )
