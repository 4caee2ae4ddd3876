"""Walks a model block by block over calibration data.

A block is called exactly as the model called it: the arguments are recorded from the model's own
forward, with every block passing its input through. Then each block in turn runs over all batches
while its statistics gather; what it returns is the next block's input. Several processes walk side
by side, each over its share of the batches, and add their sums up after every block.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from modwright.anatomy import Anatomy, Block
from modwright.calibration.as_data import calibration_of
from modwright.calibration.collectors import Accumulator, Collector
from modwright.calibration.hidden_states import HiddenStatesFile
from modwright.calibration.recording import Call, ModelInput, moved, on_device, record
from modwright.calibration.statistics import Statistics, qualified, require_distinct
from modwright.core import distributed
from modwright.core.capture import StopForward, capture, channels_last, on_forward
from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress, Task

__all__ = ["BlockSource", "LiveBlocks", "calibrate", "compute_device", "measure_block"]


class BlockSource(Protocol):
    """Gives the blocks one at a time, so that a model need not be in memory at once."""

    def __len__(self) -> int: ...

    @contextmanager
    def block(self, index: int) -> Iterator[Block]:
        """The block, ready to run, for as long as the context is open."""


class LiveBlocks:
    """The blocks of a model that is in memory."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy

    def __len__(self) -> int:
        return len(self.anatomy.blocks)

    @contextmanager
    def block(self, index: int) -> Iterator[Block]:
        yield self.anatomy.blocks[index]


@torch.no_grad()
@distributed.fail_together()
def calibrate(
    anatomy: Any,
    windows: Any,
    collectors: Collector | Sequence[Collector],
    *,
    directory: Path | None = None,
    blocks: BlockSource | None = None,
    progress: Progress = SILENT,
    label: str = "calibrate",
) -> Statistics:
    """Collects statistics of every block.

    Args:
        anatomy: of the model to run, or the model; its weights do not change.
        windows: the data: windows of text, token ids, or batches of other tensors.
        collectors: what to measure, one or several; the results of all are stored together.
        directory: where statistics are kept; a walk that was stopped goes on from there. None for
            a temporary place. Several processes need one that all of them see.
        blocks: where blocks come from; the model itself by default.
        progress: told after every batch of every block (of this process's share).
        label: what the phase is called.

    Time grows with tokens times parameters, plus tokens times the square of a Gram's width. Memory:
    the weights, one boundary's streams (mapped from disk), one block's statistics. A model on the
    CPU is computed on a GPU where there is one, a block at a time; statistics come back to the CPU.

    Where a launcher started several processes, every one calls this with the same arguments: each
    walks its share of the batches, and all get the statistics of all of them.

    Raises:
        InvalidInputError: no data, one collector twice, or activations that are not finite.
        ProcessFailed: another process failed or is gone.

    Example:
        >>> import modwright
        >>> from modwright.calibration import Similarity, calibrate
        >>> from modwright.calibration.text import from_sequences
        >>> anatomy = modwright.open("preset:tiny-llama").anatomy
        >>> windows = from_sequences([torch.arange(1, 9), torch.arange(3, 11)], pad_id=0)
        >>> len(calibrate(anatomy, windows, [Similarity()]).column("attention"))
        4
    """
    anatomy, windows = Anatomy.of(anatomy), calibration_of(windows)
    collectors = collectors if isinstance(collectors, Sequence) else [collectors]
    source = blocks if blocks is not None else LiveBlocks(anatomy)
    require_distinct(collectors)
    batches: list[ModelInput] = list(windows)
    if not batches:
        raise InvalidInputError("there is no calibration data")
    if directory is None and distributed.size() > 1:
        raise InvalidInputError(
            "several processes calibrate into one directory that all see; name it"
        )
    recipe = {
        "data": windows.recipe,
        "collectors": [collector.describe() for collector in collectors],
        "model": _fingerprint(anatomy.model, source),
    }
    statistics = Statistics(len(source), recipe, directory, mine=distributed.is_main())
    mine = distributed.shard(batches)
    with eval_mode(anatomy.model), progress.phase(label, len(source) * len(mine)) as task:
        kind = _LayerwiseRunner if anatomy.family.chained else _WholeModelRunner
        kind(anatomy, source, mine, collectors, statistics, task).go()
    return statistics


class _LayerwiseRunner:
    def __init__(
        self,
        anatomy: Anatomy,
        source: BlockSource,
        batches: list[ModelInput],
        collectors: Sequence[Collector],
        statistics: Statistics,
        task: Task,
    ) -> None:
        self.anatomy, self.source, self.batches, self.task = anatomy, source, batches, task
        self.collectors, self.statistics = collectors, statistics
        self.history = max((collector.history for collector in collectors), default=1)
        self.device = compute_device(anatomy)
        # Streams are each process's own, and of no use to another number of processes.
        self.place = statistics.directory
        if (size := distributed.size()) > 1:
            self.place /= f"process-{distributed.rank()}-of-{size}"

    def go(self) -> None:
        start = self._start()
        self.task.advance(start * len(self.batches))
        if start < len(self.source):
            self.place.mkdir(exist_ok=True)
            first, calls = record(self.anatomy, self.batches)
            previous = self._previous(start, first)
            del first
            for index in range(start, len(self.source)):
                previous = self._block(index, calls[index], previous)
        if distributed.is_main():
            self._tidy()

    def _start(self) -> int:
        """The first block to walk: all processes have the streams that enter it, or it is 0."""
        start = 0
        while start < len(self.source) and self.statistics.done(start):
            start += 1
        start = min(distributed.all_gather(start))
        while start < len(self.source):
            mine = start
            # Stopped between the two writes of a block, or streams were cleared.
            while mine and not all(path.exists() for path in self._needed(mine)):
                mine -= 1
            agreed = min(distributed.all_gather(mine))
            if agreed == start:
                break
            start = agreed
        return start

    def _needed(self, at: int) -> list[Path]:
        """Streams that block ``at`` looks back on, latest first."""
        return [self._stream(i) for i in range(at, max(-1, at - self.history), -1)]

    def _stream(self, index: int) -> Path:
        return self.place / f"stream-{index:04d}.bin"

    def _previous(self, start: int, first: list[Tensor]) -> list[HiddenStatesFile]:
        """The streams that block ``start`` looks back on; those that enter block 0 are written."""
        self.shapes = [tuple(h.shape) for h in first]
        self.dtype = first[0].dtype if first else next(self.anatomy.model.parameters()).dtype
        if start:
            return [
                HiddenStatesFile.reopen(p, self.shapes, self.dtype) for p in self._needed(start)
            ]
        entry = self._fresh()
        for j, hidden in enumerate(first):
            entry[j] = hidden
        entry.rename(self._stream(0))
        return [entry]

    def _fresh(self) -> HiddenStatesFile:
        return HiddenStatesFile.create(self.place / "stream.partial", self.shapes, self.dtype)

    def _block(
        self, index: int, calls: list[Call], previous: list[HiddenStatesFile]
    ) -> list[HiddenStatesFile]:
        """Walks one block; returns the streams that the next one looks back on."""
        out = self._fresh()
        with self.source.block(index) as block, on_device(block.module, self.device):
            attention_mask = [_real(batch, self.device) for batch in self.batches]
            accumulators = measure_block(
                block, calls, previous, out, attention_mask, self.collectors, self.device, self.task
            )
        self._keep(index, accumulators)
        out.rename(self._stream(index + 1))
        # Once every process has what the next block needs, what only this one needed can go.
        distributed.barrier()
        for old in previous[self.history - 1 :]:
            old.delete()
        return [out, *previous[: self.history - 1]]

    def _keep(self, index: int, accumulators: list[Accumulator]) -> None:
        """Stores what all processes saw of a block."""
        for start in accumulators if distributed.size() > 1 else ():
            distributed.all_reduce_(start.sums)
        results = _results(self.collectors, accumulators)
        accumulators.clear()
        if distributed.is_main():
            self.statistics.store(index, results)
        del results  # a Gram is large; the next block's must not stand beside it

    def _tidy(self) -> None:
        root = self.statistics.directory
        for path in root.glob("stream-*"):
            path.unlink()
        for path in root.glob("process-*"):
            shutil.rmtree(path, ignore_errors=True)


class _WholeModelRunner(_LayerwiseRunner):
    """For blocks that are no chain: the whole model runs once for each block and batch.

    Between such blocks other modules compute, so no block can be run by itself. One block's
    statistics are in memory at a time; time grows with the square of the depth.
    """

    def go(self) -> None:
        if self.history > 1:
            raise InvalidInputError(
                "streams of blocks apart cannot be compared here: between the blocks of this "
                f"{self.anatomy.config.model_type} the stream changes its shape"
            )
        if not isinstance(self.source, LiveBlocks):
            raise InvalidInputError(
                "the blocks of this model cannot be read one at a time; open it whole"
            )
        reads = self.anatomy.family.inputs()
        for batch in self.batches:
            reads.check(batch.tensors())
        start = self._start()
        self.task.advance(start * len(self.batches))
        for index in range(start, len(self.source)):
            with self.source.block(index) as block:
                accumulators = self._measure(block)
            self._keep(index, accumulators)
        if distributed.is_main():
            self._tidy()

    def _needed(self, at: int) -> list[Path]:
        return []

    def _measure(self, block: Block) -> list[Accumulator]:
        accumulators = [collector.start(block) for collector in self.collectors]
        model = self.anatomy.model
        device = next(model.parameters()).device
        ends = {"resid_pre": block.resid_pre, "resid_post": block.resid_post}
        ran = runs = 0
        with _hooked(accumulators) as activations, capture(ends) as streams:

            def update(*_: Any) -> None:
                nonlocal ran
                _require_finite(streams["resid_post"], block)
                for start, mine in zip(accumulators, activations):
                    rows = {name: _tokens(x, None) for name, x in {**mine, **streams}.items()}
                    start.update(rows, [rows["resid_pre"]])
                ran += 1
                if ran == runs:
                    raise StopForward

            # Registered last, so it runs after the hook points; a block that runs twice is seen
            # twice.
            with on_forward({"block": block.module}, update):
                for batch in self.batches:
                    ran = 0
                    with suppress(StopForward):
                        model(**{name: x.to(device) for name, x in batch.tensors().items()})
                    runs = ran  # the first batch told how often it runs: what follows is not needed
                    self.task.advance()
        return accumulators


def compute_device(anatomy: Anatomy) -> torch.device:
    """Where blocks run: where the model is, or on the process's accelerator for one on the CPU."""
    own = next(anatomy.model.parameters()).device
    return distributed.device() if own.type in ("cpu", "meta") else own


def measure_block(
    block: Block,
    calls: Sequence[Call],
    previous: Sequence[Any],
    out: Any,
    attention_mask: Sequence[Tensor | None],
    collectors: Sequence[Collector],
    device: torch.device,
    task: Task,
) -> list[Accumulator]:
    """Runs one block over all batches, from ``previous[0]`` to ``out``; watches that saw it all.

    ``previous`` and ``out`` hold one tensor (b, t, d) per batch, on any device.
    """
    accumulators = [collector.start(block) for collector in collectors]
    with _hooked(accumulators) as activations:
        for j, call in enumerate(calls):
            args, kwargs = moved(call, device)
            before = previous[0][j].to(device)
            result = block.module(before.clone(), *args, **kwargs)
            out[j] = result[0] if isinstance(result, tuple) else result
            after = out[j].to(device)
            _require_finite(after, block)
            ends = {"resid_pre": before, "resid_post": after}
            ends = {name: channels_last(x, block.axis) for name, x in ends.items()}
            earlier = [
                _tokens(channels_last(stream[j].to(device), block.axis), attention_mask[j])
                for stream in previous
            ]
            for start, mine in zip(accumulators, activations):
                mine |= ends
                start.update(
                    {name: _tokens(x, attention_mask[j]) for name, x in mine.items()}, earlier
                )
            task.advance()
    return accumulators


def _results(
    collectors: Sequence[Collector], accumulators: Sequence[Accumulator]
) -> dict[str, Tensor]:
    return {
        qualified(collector, name): value.cpu()
        for collector, start in zip(collectors, accumulators)
        for name, value in start.result().items()
    }


def _require_finite(stream: Tensor, block: Block) -> None:
    if not torch.isfinite(stream).all():
        raise InvalidInputError(
            f"the activations after block {block.index} are not finite; check the weights"
        )


def _real(batch: ModelInput, device: torch.device) -> Tensor | None:
    mask = batch.attention_mask
    return None if mask is None else mask.to(device).bool()


def _tokens(value: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(b, t, d) -> (n, d), padding taken out. A part that returns one number adds nothing."""
    rows = value.reshape(-1, value.shape[-1])  # some blocks hand their MLP rows already
    return rows if attention_mask is None else rows[attention_mask.reshape(-1)]


@contextmanager
def _hooked(accumulators: Sequence[Accumulator]) -> Iterator[list[dict[str, Tensor]]]:
    """Reads every hook point while the block runs, for each watch under its own names."""
    with ExitStack() as stack:
        yield [stack.enter_context(capture(start.hook_points)) for start in accumulators]


def _fingerprint(model: nn.Module, source: BlockSource) -> str:
    """Tells models apart by a few values of every parameter; reads little of each.

    Values that come with their block are read there.
    """
    parts = _sampled(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        for index in range(len(source)):
            with source.block(index) as block:
                parts += [f"block {index}", *_sampled(block.module)]
    return sha256_of(*parts)


def _sampled(module: nn.Module) -> list[str | Tensor]:
    parts: list[str | Tensor] = []
    for name, parameter in module.named_parameters():
        parts.append(f"{name}{tuple(parameter.shape)}")
        if not parameter.is_meta:
            flat = parameter.detach().reshape(-1)
            parts.append(flat[:: max(1, flat.numel() // 16)].float())
    return parts
