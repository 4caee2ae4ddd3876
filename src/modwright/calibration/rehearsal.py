"""Tries the largest block on one batch: the memory that a walk needs is really taken."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from modwright.anatomy import Anatomy
from modwright.calibration.collectors import Collector
from modwright.calibration.forecast import largest_block
from modwright.calibration.layerwise import compute_device, measure_block
from modwright.calibration.recording import ModelInput, on_device, record
from modwright.calibration.text import TokenWindows
from modwright.core import distributed
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode

__all__ = ["BlockRehearsal", "rehearse_block"]


@dataclass(frozen=True)
class BlockRehearsal:
    """What was allocated and run.

    Attributes:
        block: index of the largest block.
        weights: bytes of its parameters.
        statistics: bytes of what was added up in it.
        batch: shape of the largest batch, rows and tokens.
        device: where it ran.
        seconds: for that batch in that block.
        layer_seconds: for all batches in all blocks, reckoned from it.
    """

    block: int
    weights: int
    statistics: int
    batch: tuple[int, ...]
    device: str
    seconds: float
    layer_seconds: float


class _Clock:
    def __init__(self) -> None:
        self.ticks = [time.monotonic()]

    def advance(self, steps: int = 1) -> None:
        self.ticks.append(time.monotonic())


@torch.no_grad()
def rehearse_block(
    anatomy: Anatomy, windows: TokenWindows, collectors: Sequence[Collector]
) -> BlockRehearsal:
    """Runs the largest block on the largest batch with its statistics, as a walk would; no files.

    Raises:
        InvalidInputError: no data, activations that are not finite, or memory that cannot be had.

    Example:
        >>> import modwright
        >>> from modwright.calibration import SecondMoments
        >>> from modwright.calibration.text import from_sequences
        >>> anatomy = modwright.open("preset:tiny-llama").anatomy
        >>> windows = from_sequences([torch.arange(1, 9)], pad_id=0)
        >>> rehearse_block(anatomy, windows, [SecondMoments()]).batch
        (1, 8)
    """
    batches: list[ModelInput] = list(windows)
    if not batches:
        raise InvalidInputError("there is no calibration data")
    batch = max(batches, key=_size)
    try:
        with eval_mode(anatomy.model):
            return _rehearse(anatomy, batch, len(batches), collectors)
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        raise InvalidInputError(
            f"the largest block does not fit into memory: {str(error).splitlines()[0]}; use a "
            "smaller calibration.batch_size or a smaller dtype"
        ) from error


def _rehearse(
    anatomy: Anatomy, batch: ModelInput, batches: int, collectors: Sequence[Collector]
) -> BlockRehearsal:
    device = compute_device(anatomy)
    block = largest_block(anatomy, collectors)
    (entry,), calls = record(anatomy, [batch])
    mask = batch.attention_mask
    keep = None if mask is None else mask.to(device).bool()
    history = max((collector.history for collector in collectors), default=1)
    twice: list[Any] = [entry, entry]  # the second time nothing is new to the machine
    clock = _Clock()
    with on_device(block.module, device):
        accumulators = measure_block(
            block,
            calls[block.index] * 2,
            [twice] * history,
            list(twice),
            [keep, keep],
            collectors,
            device,
            clock,
        )
    held = sum(sum(t.nbytes for t in start.sums.values()) for start in accumulators)
    seconds = clock.ticks[2] - clock.ticks[1]
    share = -(-batches // distributed.size())
    return BlockRehearsal(
        block=block.index,
        weights=sum(p.nbytes for p in block.module.parameters()),
        statistics=held,
        batch=tuple(next(iter(batch.tensors().values())).shape),
        device=str(device),
        seconds=seconds,
        layer_seconds=seconds * share * len(anatomy.blocks),
    )


def _size(batch: ModelInput) -> int:
    return sum(prod(tensor.shape) for tensor in batch.tensors().values())
