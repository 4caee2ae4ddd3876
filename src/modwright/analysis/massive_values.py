"""The few values of the residual stream that are thousands of times larger than the rest.

Detection and intervention follow arXiv 2402.17762, which arXiv 2508.03616 builds on. Indices count
from 0; h_l (T, d) is the stream behind block l, of one sequence, in float32 or what is finer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modwright.anatomy import Anatomy
from modwright.core.capture import (
    HookPoint,
    StopForward,
    eager_attention,
    intervene,
    on_tensors,
    token_positions,
)
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress

__all__ = ["Entry", "MassiveReport", "Pairs", "detect_massive", "mean_activations", "rows_of"]
__all__ += ["set_activations"]

Pairs = Mapping[tuple[int, int], float]
"""(position, dimension) -> what is put there."""

_TINY = 1e-12


class Entry(NamedTuple):
    """One massive activation; ``position`` counts from the first real token."""

    sequence: int
    layer: int
    position: int
    dimension: int
    value: float
    ratio: float
    token: int | None = None


@dataclass(frozen=True)
class MassiveReport:
    """What the streams of some sequences hold.

    Attributes:
        stats: (sequences, 4, L): the three largest of abs(h), and its median (the lower one).
        peaks: of each layer (sequences, d), the largest abs(h) of every dimension.
        entries: the massive ones, by layer, sequence, position and dimension.
        sinks: of each layer, the mean attention probability on the first position; None where
            attention weights cannot be read.
    """

    stats: Tensor
    peaks: tuple[Tensor, ...]
    entries: tuple[Entry, ...]
    sinks: tuple[float | None, ...]

    @property
    def dims(self) -> tuple[int, ...]:
        """Dimensions with a massive entry: what pruning by magnitude may want to leave out."""
        return tuple(sorted({entry.dimension for entry in self.entries}))

    @property
    def emergence(self) -> int | None:
        """The first layer with a massive entry."""
        return min((entry.layer for entry in self.entries), default=None)

    def ratios(self, layer: int) -> Tensor:
        """(d,) largest of every dimension beside the median, averaged over sequences."""
        return (self.peaks[layer] / self.stats[:, 3, layer, None].clamp(min=_TINY)).mean(0)

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(position, dimension) of the first layer that most sequences have one at."""
        here = [e for e in self.entries if e.layer == self.emergence]
        seen = [(e.position, e.dimension) for e in here]
        return tuple(sorted(p for p in set(seen) if 2 * seen.count(p) > len(self.stats)))


def rows_of(batches: Iterable[Any], anatomy: Anatomy) -> Iterator[dict[str, Tensor]]:
    """Sequences one by one, without their padding, where the model is."""
    device = next(anatomy.model.parameters()).device
    for batch in batches:
        given = dict(batch if isinstance(batch, Mapping) else batch.tensors())
        mask = given.get("attention_mask")
        for number in range(len(next(iter(given.values())))):
            row = {n: value[number : number + 1].to(device) for n, value in given.items()}
            if isinstance(mask, Tensor) and mask.dim() == 2:
                real = mask[number].bool().to(device)
                row = {n: v[:, real] if v.shape[1:2] == real.shape else v for n, v in row.items()}
            yield row


def detect_massive(
    model: nn.Module | Anatomy,
    batches: Iterable[Any],
    *,
    absolute: float = 100.0,
    relative: float = 1000.0,
    sink_from: int = 16,
    progress: Progress = SILENT,
) -> MassiveReport:
    """Finds values above ``absolute`` and at least ``relative`` times the median of their state.

    Args:
        model: it is left as it is.
        batches: for each pass the model's keyword arguments, or batches of calibration data; a
            sequence has two positions or more.
        sink_from: the first query position that counts for attention sinks.
        progress: told of the sequences.

    Raises:
        InvalidInputError: no block, no batch, or too short a sequence.

    Example:
        >>> import modwright
        >>> model = modwright.open("preset:tiny-llama").model
        >>> found = detect_massive(model, [{"input_ids": torch.arange(1, 21)[None]}])
        >>> tuple(found.stats.shape), found.dims, found.emergence
        ((1, 4, 4), (), None)
    """
    anatomy = Anatomy.of(model)
    blocks = anatomy.blocks
    if not blocks:
        raise InvalidInputError("massive activations: the model has no blocks")
    stats: list[Tensor] = []
    peaks: list[list[Tensor]] = [[] for _ in blocks]
    entries: list[Entry] = []
    row: dict[str, Tensor] = {}
    sinks = _Sinks(len(blocks), sink_from)

    def see(layer: int, stream: Tensor) -> None:
        state = stream.reshape(-1, stream.shape[-1])
        state = state if state.dtype == torch.float64 else state.float()
        if len(state) < 2:
            raise InvalidInputError("massive activations: a sequence has two positions or more")
        size = state.abs()
        median = size.median()
        top = size.flatten().topk(3).values
        stats[-1][:, layer] = torch.cat([top, median[None]]).cpu()
        peaks[layer].append(size.amax(0).cpu())
        ids = row.get("input_ids")
        massive = (size > absolute) & (size >= relative * median)
        for position, dimension in massive.nonzero().tolist():
            token = None if ids is None else int(ids[0, position])
            value = float(state[position, dimension])
            ratio = abs(value) / max(float(median), _TINY)
            entries.append(Entry(len(stats) - 1, layer, position, dimension, value, ratio, token))

    streams = dict(enumerate(block.resid_post for block in blocks))
    with (
        eval_mode(anatomy.model),
        torch.no_grad(),
        progress.phase("massive activations", 0) as task,
    ):
        for row in rows_of(batches, anatomy):
            stats.append(torch.zeros(4, len(blocks), dtype=torch.float64))
            with on_tensors(streams, see):
                anatomy.model(**row)
            # A pass of its own: eager attention may round softmax, and the stream with it.
            with eager_attention(anatomy.model), on_tensors(_weights(anatomy), sinks.see):
                anatomy.model(**row)
            task.advance()
    if not stats:
        raise InvalidInputError("massive activations: there is no batch to look at")
    entries.sort(key=lambda entry: (entry.layer, *entry[:1], *entry[2:4]))
    return MassiveReport(
        torch.stack(stats), tuple(map(torch.stack, peaks)), tuple(entries), sinks.means()
    )


class _Sinks:
    """Mean attention probability on the first position, layer by layer."""

    def __init__(self, layers: int, start: int) -> None:
        self.start = start
        self.seen: list[list[float]] = [[] for _ in range(layers)]

    def see(self, layer: int, weights: Tensor) -> None:
        """Weights (1, H, t, s)."""
        if weights.dim() == 4 and weights.shape[2] > self.start:
            self.seen[layer].append(float(weights[:, :, self.start :, 0].double().mean()))

    def means(self) -> tuple[float | None, ...]:
        return tuple(sum(one) / len(one) if one else None for one in self.seen)


def _weights(anatomy: Anatomy) -> dict[int, HookPoint]:
    found = ((b.index, getattr(b.at("attention"), "weights", None)) for b in anatomy.blocks)
    return {index: point for index, point in found if isinstance(point, HookPoint)}


@contextmanager
def set_activations(model: nn.Module | Anatomy, layer: int, values: Pairs) -> Iterator[None]:
    """Puts numbers into the stream behind a block, in every sequence, while the block lasts.

    Args:
        model: decoding with a cache has the same result as without one. Afterwards it is as it was.
        layer: the block.
        values: (position, dimension) -> number; positions count from the first real token.

    Raises:
        InvalidInputError: a layer, position or dimension that there is not, the last while it runs.

    Example:
        >>> import modwright
        >>> opened = modwright.open("preset:tiny-llama")
        >>> with set_activations(opened.model, 1, {(0, 7): 0.0}):
        ...     answer = opened.model(input_ids=torch.ones(1, 5, dtype=torch.long))
    """
    anatomy = Anatomy.of(model)
    point = _stream(anatomy, layer)
    if any(position < 0 or dimension < 0 for position, dimension in values):
        raise InvalidInputError("positions and dimensions of activations count from 0")

    def put(h: Tensor) -> Tensor:
        at = where().to(h.device)
        for (position, dimension), value in values.items():
            if dimension >= h.shape[-1]:
                raise InvalidInputError(f"the stream has {h.shape[-1]} dimensions, no {dimension}")
            h[..., dimension] = h[..., dimension].masked_fill(at == position, value)
        return h

    with token_positions(anatomy.model) as where, intervene(point, put):
        yield


def _stream(anatomy: Anatomy, layer: int) -> HookPoint:
    if not 0 <= layer < len(anatomy.blocks):
        raise InvalidInputError(f"the model has {len(anatomy.blocks)} blocks, no block {layer}")
    return anatomy.blocks[layer].resid_post


def mean_activations(
    model: nn.Module | Anatomy,
    layer: int,
    positions: Sequence[int],
    batches: Iterable[Any],
    progress: Progress = SILENT,
) -> dict[int, Tensor]:
    """The mean (d,) over sequences of the stream behind a block, at each of some positions.

    Raises:
        InvalidInputError: there is no such block, or no sequence that is long enough.
    """
    anatomy = Anatomy.of(model)
    found: dict[int, list[Tensor]] = {position: [] for position in positions}

    def see(name: str, stream: Tensor) -> None:
        for position in found.keys() & set(range(stream.shape[1])):
            found[position].append(stream[0, position].double())
        raise StopForward  # what comes after the block is not needed

    with (
        eval_mode(anatomy.model),
        torch.no_grad(),
        on_tensors({"stream": _stream(anatomy, layer)}, see),
        progress.phase("mean activations", 0) as task,
    ):
        for row in rows_of(batches, anatomy):
            with suppress(StopForward):
                anatomy.model(**row)
            task.advance()
    if missing := [position for position, rows in found.items() if not rows]:
        raise InvalidInputError(f"no sequence of the calibration has a position {missing[0]}")
    return {position: torch.stack(rows).mean(0) for position, rows in found.items()}
