"""LLM-Drop (arXiv 2406.15786): removes the parts that change the residual stream least.

A part's redundancy is the mean cosine between the stream before and after it, over calibration
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from modwright.anatomy import Anatomy, Block
from modwright.anatomy.views import Sublayer
from modwright.calibration import (
    BlockDistance,
    CalibrationData,
    Collector,
    Similarity,
    Statistics,
    calibrate,
)
from modwright.core.errors import InvalidInputError, unknown_name
from modwright.core.progress import SILENT, Progress
from modwright.edits import Change, Plan, remove
from modwright.edits.canonical import target_of
from modwright.edits.replay import num_removed, preview
from modwright.surgery.drop_lists import DropLists, read_lists
from modwright.surgery.method import Requirements, plain_options, register_method

__all__ = ["DropLists", "LlmDrop", "consecutive_blocks", "most_similar", "sdr"]

Target = Literal["attention", "mlp", "block", "joint"]
Mode = Literal["one_shot", "iterative"]
TARGETS: tuple[Target, ...] = get_args(Target)
MODES: tuple[Mode, ...] = get_args(Mode)


def most_similar(similarity: Sequence[float], n: int) -> list[int]:
    """The ``n`` indices with the largest similarity, largest first; ties go to the lower index.

    NaN stands for "nothing there" and is never picked.

    Example:
        >>> most_similar([0.9, 0.99, 0.9, float("nan")], 2)
        [1, 0]
    """
    there = [i for i, s in enumerate(similarity) if not math.isnan(s)]
    if not 0 <= n <= len(there):
        raise InvalidInputError(f"cannot drop {n}; valid values are 0 to {len(there)}")
    return sorted(there, key=lambda i: (-similarity[i], i))[:n]


def consecutive_blocks(gaps: Sequence[Sequence[float]], n: int) -> list[int]:
    """The ``n`` blocks in a row across which the stream changes least.

    Args:
        gaps: ``gaps[i][g - 1]`` is the similarity of the streams before block i and g blocks later.
        n: how many.
    """
    if not 0 <= n <= len(gaps):
        raise InvalidInputError(
            f"cannot drop {n} blocks in a row; valid values are 0 to {len(gaps)}"
        )
    if n == 0:
        return []
    starts = [row[n - 1] for row in gaps]
    best = max(range(len(starts)), key=lambda i: (starts[i], -i))
    return list(range(best, best + n))


def sdr(
    quality_before: float, quality_after: float, time_before: float, time_after: float
) -> float:
    """Speedup degradation ratio: points of quality lost per per cent of speed won.

    Example:
        >>> round(sdr(68.2, 68.1, 1.13, 1.0), 3)
        0.008
    """
    speedup = (time_before / time_after - 1) * 100
    if speedup <= 0:
        raise InvalidInputError(f"there is no speed-up to relate to ({speedup:.1f} %)")
    return (quality_before - quality_after) / speedup


@register_method(
    "llm_drop",
    paper="llm-drop",
    requires=Requirements(calibration=True, parts=("attention", "mlp", "block")),
    examples=(
        {"n": 1, "target": "attention"},
        {"n": 2, "target": "mlp", "mode": "iterative"},
        {"n": 1, "target": "block"},
        {"n": 2, "target": "block", "consecutive": True},
        {"n": 3, "target": "joint", "drop_post_norm": True},
    ),
)
@dataclass(frozen=True)
class LlmDrop:
    """Removes the n most redundant attentions, MLPs or blocks; needs no training.

    Attributes:
        n: how many parts go; it has no default, and is not asked for where there are ``lists``.
        target: "attention", "mlp", "block", or "joint" (attentions and MLPs in one ranking).
        mode: "one_shot" scores once; "iterative" scores again after each removal.
        consecutive: with target "block": n blocks in a row.
        drop_norm: score a part with its norm and residual connection. False is for ablation.
        drop_post_norm: in post-norm models, the norm goes with the part.
        lists: path of a config.json with the reference's drop lists; they are applied as they are.
    """

    n: int | None = None
    target: Target = "attention"
    mode: Mode = "one_shot"
    consecutive: bool = False
    drop_norm: bool = True
    drop_post_norm: bool = False
    lists: str | None = None

    def __post_init__(self) -> None:
        for name, valid in (("target", TARGETS), ("mode", MODES)):
            if getattr(self, name) not in valid:
                raise unknown_name(name, getattr(self, name), valid)
        if self.n is None and self.lists is None:
            raise InvalidInputError("llm_drop: n is missing: how many parts are to go")
        if self.count < 0:
            raise InvalidInputError(f"n must be 0 or more, not {self.n}")
        if self.consecutive and (self.target != "block" or self.mode != "one_shot"):
            raise InvalidInputError("consecutive needs target 'block' and mode 'one_shot'")

    @property
    def count(self) -> int:
        """``n``, and 0 where lists say what goes."""
        return self.n or 0

    def title(self) -> str:
        if self.lists is not None:
            return f"drop by the lists of {Path(self.lists).name}"
        what = {"joint": "attentions or MLPs", "mlp": "MLPs"}.get(self.target, f"{self.target}s")
        if self.count == 1:
            what = {"joint": "attention or MLP", "mlp": "MLP"}.get(self.target, self.target)
        how = " in a row" if self.consecutive else ""
        how += " one by one" if self.mode == "iterative" else ""
        return f"drop {self.count} {what}{how}"

    def wants_data(self) -> bool:
        """Lists are applied without looking at data."""
        return self.lists is None and self.count > 0

    def collectors(self) -> list[Collector]:
        """Cosines of the residual stream; streams n blocks apart for blocks in a row."""
        found: list[Collector] = [Similarity(self.drop_norm)]
        if self.consecutive and self.count:
            found.append(BlockDistance(self.count))
        return found

    def parameter_bounds(self, anatomy: Anatomy) -> tuple[int, int]:
        """The n smallest and the n largest parts that may go."""
        if self.lists is not None:
            picked = read_lists(self.lists, anatomy)
            gone = sum(self._size(anatomy, _part(anatomy, *each)) for each in picked)
            return gone, gone
        self._check_available(anatomy)
        there = [
            block if kind == "block" else block.at(kind)
            for kind in self._kinds()
            for block in anatomy.blocks
        ]
        sizes = sorted(self._size(anatomy, part) for part in there if part is not None)
        return sum(sizes[: self.count]), sum(sizes[len(sizes) - self.count :])

    def _size(self, anatomy: Anatomy, part: Block | Sublayer) -> int:
        return num_removed(anatomy, part, self.drop_post_norm)

    def memory_estimate(self, anatomy: Anatomy) -> tuple[int, int]:
        """Parts go and none is new."""
        return 0, 0

    def plan(
        self,
        anatomy: Anatomy,
        calibration: CalibrationData | None = None,
        *,
        directory: Path | None = None,
        progress: Progress = SILENT,
    ) -> Plan:
        """Scores the parts and picks those that go."""
        if self.lists is not None:
            picked = read_lists(self.lists, anatomy)
            return self._decide(anatomy, picked, {}, None)
        self._check_available(anatomy)
        if calibration is None:
            if self.count:
                raise InvalidInputError("llm_drop needs calibration data")
            return self._decide(anatomy, [], {}, None)
        if self.mode == "iterative":
            picked, scores = self._one_by_one(anatomy, calibration, directory, progress)
            return self._decide(anatomy, picked, scores, calibration.recipe)
        statistics = calibrate(
            anatomy,
            calibration,
            self.collectors(),
            directory=directory,
            progress=progress,
            label=f"score {self.target}",
        )
        return self.plan_from(anatomy, statistics)

    def plan_from(self, anatomy: Anatomy, statistics: Statistics) -> Plan:
        """Decides in one shot from scores that are there already."""
        if self.mode == "iterative":
            raise InvalidInputError(
                "iterative mode scores anew after each removal: it plans from data"
            )
        self._check_available(anatomy)
        scores: dict[str, Any] = _scores_of(statistics)
        if self.consecutive and self.count:
            table = gap_table([values["stream gaps/gaps"].tolist() for values in statistics])
            scores["consecutive"] = [row[self.count - 1] for row in table]
            picked = [("block", i) for i in consecutive_blocks(table, self.count)]
        else:
            picked = self._rank(scores, self.count)
        return self._decide(anatomy, picked, scores, statistics.recipe["data"])

    def _kinds(self) -> tuple[str, ...]:
        return ("attention", "mlp") if self.target == "joint" else (self.target,)

    def _check_available(self, anatomy: Anatomy) -> None:
        blocks = len(anatomy.blocks)
        there = {
            "attention": sum(b.at("attention") is not None for b in anatomy.blocks),
            "mlp": sum(b.at("mlp") is not None for b in anatomy.blocks),
            "block": blocks - 1,
        }
        most = sum(there[kind] for kind in self._kinds())
        if self.count > most:
            raise InvalidInputError(
                f"llm_drop: n={self.count}, but only 0 to {most} {self.target} parts can go"
            )

    def _rank(self, scores: Mapping[str, Sequence[float]], n: int) -> list[tuple[str, int]]:
        kinds = self._kinds()
        joined = [s for kind in kinds for s in scores[kind]]
        size = len(scores[kinds[0]])
        return [(kinds[i // size], i % size) for i in most_similar(joined, n)]

    def _one_by_one(
        self, anatomy: Anatomy, windows: CalibrationData, directory: Path | None, progress: Progress
    ) -> tuple[list[tuple[str, int]], dict[str, Any]]:
        picked: list[tuple[str, int]] = []
        first: dict[str, Any] = {}
        nothing = float("nan")
        for step in range(self.count):
            with preview(anatomy, _changes(anatomy, picked, self.drop_post_norm).edits) as reduced:
                statistics = calibrate(
                    reduced,
                    windows,
                    [Similarity(self.drop_norm)],
                    directory=None if directory is None else directory / f"step-{step:04d}",
                    progress=progress,
                    label=f"score {self.target}, {step + 1} of {self.count}",
                )
                scores = _scores_of(statistics)
            for kind, index in picked:
                scores[kind][index] = nothing
            first = first or {kind: list(column) for kind, column in scores.items()}
            picked += self._rank(scores, 1)
        return picked, first

    def _decide(
        self,
        anatomy: Anatomy,
        picked: list[tuple[str, int]],
        scores: Mapping[str, Any],
        data: Mapping[str, Any] | None,
    ) -> Plan:
        kinds = ("attention", "mlp", "block")
        removed = {kind: [i for k, i in picked if k == kind] for kind in kinds}
        notes = [] if picked else ["Nothing was asked to go: n is 0, so the model is a copy."]
        gone = {*removed["attention"], *removed["block"]}
        if picked and not any(b.at("attention") and b.index not in gone for b in anatomy.blocks):
            notes.append("No attention is left: the model mixes no tokens any more.")
        reasons: dict[str, Any] = {
            "scores": {kind: _json_column(column) for kind, column in scores.items()},
            "order": [f"{kind} {index}" for kind, index in picked],
            "removed": removed,
            "drop_lists": DropLists(
                tuple(removed["attention"] + removed["block"]),
                tuple(removed["mlp"] + removed["block"]),
            ).to_config(),
        }
        if data is not None:
            reasons["calibration"] = dict(data)
            reasons["meaning"] = (
                "a score is the mean cosine between the residual stream before and after a part: "
                "the closer to one, the less the part does"
            )
        change = _changes(anatomy, picked, self.drop_post_norm)
        target_of(anatomy, change.edits)  # what cannot be is refused here, not when it is applied
        return Plan.of(anatomy, "llm_drop", change, plain_options(self), reasons, tuple(notes))


def _scores_of(statistics: Statistics) -> dict[str, list[float]]:
    """Similarities of all kinds; NaN where a model has no part of a kind."""
    columns = {kind: f"similarity/{kind}" for kind in ("attention", "mlp", "block")}
    there = {name for values in statistics for name in columns.values() if name in values}
    nothing = [float("nan")] * len(statistics)
    return {k: statistics.column(c) if c in there else nothing[:] for k, c in columns.items()}


def _part(anatomy: Anatomy, kind: str, index: int) -> Block | Sublayer:
    block = anatomy.block(index)
    part = block if kind == "block" else block.at(kind)
    if part is None:
        raise InvalidInputError(f"block {index} has no {kind} any more")
    return part


def _json_column(column: Iterable[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in column]


def gap_table(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """From "output of block b against the stream g earlier" to ``[first block][g - 1]``."""
    size, widest = len(rows), len(rows[0])
    table = [[-math.inf] * widest for _ in range(size)]
    for last, row in enumerate(rows):
        for gap, value in enumerate(row, start=1):
            if last + 1 - gap >= 0:
                table[last + 1 - gap][gap - 1] = value
    return table


def _changes(anatomy: Anatomy, picked: Iterable[tuple[str, int]], drop_post_norm: bool) -> Change:
    change = Change()
    for kind, index in picked:
        part = _part(anatomy, kind, index)
        change += remove(part, drop_norm=drop_post_norm and kind != "block")
    return change
