"""LLM-Drop (arXiv 2406.15786): removes the parts that change the residual stream least.

A part's redundancy is the mean cosine between the stream before and after it, over calibration
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from modwright.anatomy import Anatomy, Block
from modwright.anatomy.selectors import part_of
from modwright.anatomy.views import Sublayer
from modwright.calibration import (
    BlockDistance,
    CalibrationData,
    Collector,
    Similarity,
    Statistics,
    calibrate,
)
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.core.progress import Progress
from modwright.core.reading import read_json
from modwright.edits import Change, Plan, remove
from modwright.edits.canonical import target_of
from modwright.edits.replay import num_removed, preview
from modwright.surgery.method import Data, Decision, Folder, Method, Requirements, register_method

__all__ = ["DropLists", "LlmDrop", "consecutive_blocks", "gap_table", "most_similar"]

Target = Literal["attention", "mlp", "block", "joint"]
Mode = Literal["one_shot", "iterative"]
KINDS = ("attention", "mlp", "block")


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


def gap_table(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """From "output of block b against the stream g earlier" to ``[first block][g - 1]``."""
    size, widest = len(rows), len(rows[0])
    table = [[-math.inf] * widest for _ in range(size)]
    for last, row in enumerate(rows):
        for gap, value in enumerate(row[: last + 1], start=1):
            table[last + 1 - gap][gap - 1] = value
    return table


def consecutive_blocks(gaps: Sequence[Sequence[float]], n: int) -> list[int]:
    """The ``n`` blocks in a row across which the stream changes least.

    ``gaps[i][g - 1]`` is the similarity of the streams before block i and g blocks later.
    """
    if not 0 <= n <= len(gaps):
        raise InvalidInputError(
            f"cannot drop {n} blocks in a row; valid values are 0 to {len(gaps)}"
        )
    if n == 0:
        return []
    best = max(range(len(gaps)), key=lambda i: (gaps[i][n - 1], -i))
    return list(range(best, best + n))


@dataclass(frozen=True)
class DropLists:
    """Which layers lose what, as the reference implementation says it: a block is in both lists."""

    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], layers: int | None = None) -> DropLists:
        """Reads ``drop_attn_list`` and ``drop_mlp_list``: indices, or one boolean per layer.

        One of the two keys must be there. ``layers`` of the model says how many booleans are meant.

        Example:
            >>> DropLists.from_config({"drop_attn_list": [False, True], "drop_mlp_list": []})
            DropLists(attention=(1,), mlp=())
        """
        keys = ("drop_attn_list", "drop_mlp_list")
        if not any(key in config for key in keys):
            raise InvalidInputError(f"no drop lists: the config has neither of {', '.join(keys)}")
        return cls(*(_indices(key, config.get(key) or [], layers) for key in keys))

    def to_config(self) -> dict[str, list[int]]:
        """The two keys, as indices."""
        return {"drop_attn_list": sorted(self.attention), "drop_mlp_list": sorted(self.mlp)}


def _indices(key: str, entries: Any, layers: int | None) -> tuple[int, ...]:
    kinds = {type(entry) for entry in entries} if isinstance(entries, list | tuple) else {None}
    if kinds == {bool}:
        if layers not in (None, len(entries)):
            raise InvalidInputError(
                f"{key} has {len(entries)} booleans; the model has {layers} layers"
            )
        return tuple(i for i, gone in enumerate(entries) if gone)
    if not kinds <= {int}:
        raise InvalidInputError(f"{key} must hold layer indices, or one boolean per layer")
    return tuple(entries)


def _read_lists(path: str, anatomy: Anatomy) -> list[tuple[str, int]]:
    """What a config says to drop: kinds and layers, blocks first."""
    try:
        config = read_json(Path(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: no readable config: {error}") from None
    lists = DropLists.from_config(config, len(anatomy.blocks))
    for index in (*lists.attention, *lists.mlp):
        anatomy.block(index)
    both = set(lists.attention) & set(lists.mlp)
    picked = [("block", i) for i in sorted(both)]
    for kind, column in (("attention", lists.attention), ("mlp", lists.mlp)):
        if len(set(column)) != len(column):
            raise InvalidInputError(f"the {kind} list names a layer twice: {list(column)}")
        picked += [(kind, i) for i in column if i not in both]
    return picked


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
class LlmDrop(Method):
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
        self._check_choices()
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
        words = {"joint": ["attention", "MLP"], "mlp": ["MLP"]}.get(self.target, [self.target])
        what = " or ".join(words if self.count == 1 else (f"{word}s" for word in words))
        how = " in a row" if self.consecutive else ""
        how += " one by one" if self.mode == "iterative" else ""
        return f"drop {self.count} {what}{how}"

    def wants_data(self) -> bool:
        """Lists are applied without looking at data."""
        return self.lists is None and self.count > 0

    def collectors(self) -> list[Collector]:
        """Cosines of the residual stream; streams n blocks apart for blocks in a row."""
        apart = [BlockDistance(self.count)] if self.consecutive and self.count else []
        return [Similarity(self.drop_norm), *apart]

    def parameter_bounds(self, anatomy: Anatomy) -> tuple[int, int]:
        """The n smallest and the n largest parts that may go."""
        if self.lists is None:
            parts, count = self._available(anatomy), self.count
        else:
            parts = [_part(anatomy, *each) for each in _read_lists(self.lists, anatomy)]
            count = len(parts)
        sizes = sorted(num_removed(anatomy, part, self.drop_post_norm) for part in parts)
        return sum(sizes[:count]), sum(sizes[len(sizes) - count :])

    def memory_estimate(self, anatomy: Anatomy) -> tuple[int, int]:
        """Parts go and none is new."""
        return 0, 0

    def _found(self, anatomy: Anatomy, data: Data, folder: Folder, progress: Progress) -> Decision:
        """Scores the parts and picks those that go."""
        if self.lists is not None:
            return self._decided(anatomy, _read_lists(self.lists, anatomy), {}, None)
        self._available(anatomy)
        if data is None and not self.count:
            return self._decided(anatomy, [], {}, None)
        if data is not None and self.mode == "iterative":
            picked, scores = self._one_by_one(anatomy, data, folder, progress)
            return self._decided(anatomy, picked, scores, data.recipe)
        label = f"score {self.target}"
        return self._from(anatomy, self._measured(anatomy, data, folder, progress, label))

    def plan_from(self, anatomy: Anatomy, statistics: Statistics) -> Plan:
        """Decides in one shot from scores that are there already."""
        if self.mode == "iterative":
            raise InvalidInputError(
                "iterative mode scores anew after each removal: it plans from data"
            )
        self._available(anatomy)
        return self._planned(anatomy, self._from(anatomy, statistics))

    def _from(self, anatomy: Anatomy, statistics: Statistics) -> Decision:
        scores: dict[str, Any] = _scores_of(statistics)
        if self.consecutive and self.count:
            table = gap_table([values["stream gaps/gaps"].tolist() for values in statistics])
            scores["consecutive"] = [row[self.count - 1] for row in table]
            picked = [("block", i) for i in consecutive_blocks(table, self.count)]
        else:
            picked = self._rank(scores, self.count)
        return self._decided(anatomy, picked, scores, statistics.recipe["data"])

    def _kinds(self) -> tuple[str, ...]:
        return ("attention", "mlp") if self.target == "joint" else (self.target,)

    def _available(self, anatomy: Anatomy) -> list[Block | Sublayer]:
        """The parts of which some may go; one block must stay."""
        found = [part_of(block, kind) for kind in self._kinds() for block in anatomy.blocks]
        there = [part for part in found if part is not None]
        most = len(there) - (self.target == "block")
        if self.count > most:
            raise InvalidInputError(
                f"llm_drop: n={self.count}, but only 0 to {most} {self.target} parts can go"
            )
        return there

    def _rank(self, scores: Mapping[str, Sequence[float]], n: int) -> list[tuple[str, int]]:
        kinds = self._kinds()
        joined = [s for kind in kinds for s in scores[kind]]
        size = len(scores[kinds[0]])
        return [(kinds[i // size], i % size) for i in most_similar(joined, n)]

    def _one_by_one(
        self, anatomy: Anatomy, data: CalibrationData, folder: Folder, progress: Progress
    ) -> tuple[list[tuple[str, int]], dict[str, Any]]:
        picked: list[tuple[str, int]] = []
        first: dict[str, Any] = {}
        for step in range(self.count):
            with preview(anatomy, _changes(anatomy, picked, self.drop_post_norm).edits) as reduced:
                statistics = calibrate(
                    reduced,
                    data,
                    [Similarity(self.drop_norm)],
                    directory=None if folder is None else folder / f"step-{step:04d}",
                    progress=progress,
                    label=f"score {self.target}, {step + 1} of {self.count}",
                )
                scores = _scores_of(statistics)
            for kind, index in picked:
                scores[kind][index] = math.nan
            first = first or {kind: list(column) for kind, column in scores.items()}
            picked += self._rank(scores, 1)
        return picked, first

    def _decided(
        self,
        anatomy: Anatomy,
        picked: list[tuple[str, int]],
        scores: Mapping[str, Any],
        data: Mapping[str, Any] | None,
    ) -> Decision:
        removed = {kind: [i for k, i in picked if k == kind] for kind in KINDS}
        notes = [] if picked else ["Nothing was asked to go: n is 0, so the model is a copy."]
        gone = {*removed["attention"], *removed["block"]}
        if picked and not any(b.at("attention") and b.index not in gone for b in anatomy.blocks):
            notes.append("No attention is left: the model mixes no tokens any more.")
        reasons: dict[str, Any] = {
            "scores": {
                kind: [value if math.isfinite(value) else None for value in column]
                for kind, column in scores.items()
            },
            "order": [f"{kind} {index}" for kind, index in picked],
            "removed": removed,
            "drop_lists": DropLists(
                *(tuple(removed[kind] + removed["block"]) for kind in ("attention", "mlp"))
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
        return change, reasons, tuple(notes)


def _scores_of(statistics: Statistics) -> dict[str, list[float]]:
    """Similarities of all kinds; NaN where a model has no part of a kind."""
    columns = {kind: f"similarity/{kind}" for kind in KINDS}
    there = {name for values in statistics for name in columns.values() if name in values}
    nothing = [math.nan] * len(statistics)
    return {k: statistics.column(c) if c in there else nothing[:] for k, c in columns.items()}


def _part(anatomy: Anatomy, kind: str, index: int) -> Block | Sublayer:
    part = part_of(anatomy.block(index), kind)
    if part is None:
        raise InvalidInputError(f"block {index} has no {kind} any more")
    return part


def _changes(anatomy: Anatomy, picked: Iterable[tuple[str, int]], drop_post_norm: bool) -> Change:
    parts = (_part(anatomy, kind, index) for kind, index in picked)
    return sum((remove(part, drop_post_norm) for part in parts), Change())
