"""Walks a model block by block over calibration data, each called exactly as the model does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from modwright.anatomy import Anatomy, Block
from modwright.calibration.collectors import Accumulator, Collector
from modwright.calibration.hidden_states import HiddenStatesFile
from modwright.calibration.recording import Call, ModelInput, moved, on_device, record
from modwright.calibration.statistics import Statistics, qualified, require_distinct
from modwright.calibration.tensors import calibration_of
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
        collectors: what to measure, one or several.
        directory: where statistics are kept; a walk that was stopped goes on from there. None for
            a temporary place. Several processes need one that all of them see.
        blocks: where blocks come from; the model itself by default.
        progress: told after every batch of every block, in a phase named ``label``.
        label: of the phase.

    Time grows with tokens times parameters, plus tokens times the square of a Gram's width. Memory:
    the weights, one boundary's streams (mapped from disk), one block's statistics. A model on the
    CPU is computed on a GPU where there is one, a block at a time; statistics come back to the CPU.
    Of several processes each walks its share of the batches, and all get the statistics of all.

    Raises:
        InvalidInputError: no data, one collector twice, or activations that are not finite.
        ProcessFailed: another process failed or is gone.

    Example:
        >>> import modwright
        >>> from modwright.calibration import Similarity, calibrate
        >>> model = modwright.open("preset:tiny-llama").model
        >>> len(calibrate(model, [[1, 2, 3], [5, 6]], Similarity()).column("attention"))
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
    """Each block runs by itself; what it returns is the next one's input."""

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
            self._begin(start)
        for index in range(start, len(self.source)):
            self._walk(index)
            self._pass_on(index)
        if distributed.is_main():
            for path in self.statistics.directory.glob("stream-*"):
                path.unlink()
            for path in self.statistics.directory.glob("process-*"):
                shutil.rmtree(path, ignore_errors=True)

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
        return [self._path(i) for i in range(at, max(-1, at - self.history), -1)]

    def _path(self, index: int) -> Path:
        return self.place / f"stream-{index:04d}.bin"

    def _begin(self, start: int) -> None:
        """Records the calls; opens what block ``start`` looks back on, or writes what enters 0."""
        self.place.mkdir(exist_ok=True)
        first, self.calls = record(self.anatomy, self.batches)
        self.shapes = [tuple(h.shape) for h in first]
        self.dtype = first[0].dtype if first else next(self.anatomy.model.parameters()).dtype
        if start:
            self.streams = [
                HiddenStatesFile(path, self.shapes, self.dtype, fresh=False)
                for path in self._needed(start)
            ]
            return
        entry = self._fresh()
        for j, hidden in enumerate(first):
            entry[j] = hidden
        entry.rename(self._path(0))
        self.streams = [entry]

    def _fresh(self) -> HiddenStatesFile:
        return HiddenStatesFile(self.place / "stream.partial", self.shapes, self.dtype, fresh=True)

    def _walk(self, index: int) -> None:
        """Stores what all processes see of a block; nothing of it is held when it returns."""
        with self.source.block(index) as block:
            accumulators = self._measure(index, block)
        for start in accumulators if distributed.size() > 1 else ():
            distributed.all_reduce_(start.sums)
        results = {
            qualified(collector, name): value.cpu()
            for collector, start in zip(self.collectors, accumulators)
            for name, value in start.result().items()
        }
        if distributed.is_main():
            self.statistics.store(index, results)

    def _measure(self, index: int, block: Block) -> list[Accumulator]:
        self.out = self._fresh()
        streams = (self.streams, self.out)
        with on_device(block.module, self.device):
            return measure_block(
                block,
                self.batches,
                self.calls[index],
                *streams,
                self.collectors,
                self.device,
                self.task,
            )

    def _pass_on(self, index: int) -> None:
        self.out.rename(self._path(index + 1))
        # Once every process has what the next block needs, what only this one needed can go.
        distributed.barrier()
        for old in self.streams[self.history - 1 :]:
            old.delete()
        self.streams = [self.out, *self.streams[: self.history - 1]]


class _WholeModelRunner(_LayerwiseRunner):
    """For blocks with other modules between them: the whole model runs for each block and batch.

    Time grows with the square of the depth.
    """

    def _start(self) -> int:
        if self.history > 1:
            raise InvalidInputError(
                "streams of blocks apart cannot be compared here: between the blocks of this "
                f"{self.anatomy.config.model_type} the stream changes its shape"
            )
        if not isinstance(self.source, LiveBlocks):
            raise InvalidInputError(
                "the blocks of this model cannot be read one at a time; open it whole"
            )
        for batch in self.batches:
            self.anatomy.family.inputs().check(batch.tensors())
        return super()._start()

    def _needed(self, at: int) -> list[Path]:
        return []

    def _begin(self, start: int) -> None:
        pass

    def _pass_on(self, index: int) -> None:
        pass

    def _measure(self, index: int, block: Block) -> list[Accumulator]:
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

            # Registered last, so it runs after the hook points, once for each run of the block.
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
    batches: Sequence[ModelInput],
    calls: Sequence[Call],
    previous: Sequence[Any],
    out: Any,
    collectors: Sequence[Collector],
    device: torch.device,
    task: Task,
) -> list[Accumulator]:
    """Runs one block over all batches, from ``previous[0]`` to ``out``; watches that saw it all.

    ``previous`` and ``out`` hold one tensor (b, t, d) per batch, on any device.
    """
    accumulators = [collector.start(block) for collector in collectors]
    with _hooked(accumulators) as activations:
        for j, (batch, call) in enumerate(zip(batches, calls)):
            args, kwargs = moved(call, device)
            before = previous[0][j].to(device)
            result = block.module(before.clone(), *args, **kwargs)
            out[j] = result[0] if isinstance(result, tuple) else result
            after = out[j].to(device)
            _require_finite(after, block)
            ends = {"resid_pre": before, "resid_post": after}
            ends = {name: channels_last(x, block.axis) for name, x in ends.items()}
            mask = batch.attention_mask
            earlier = [
                _tokens(channels_last(stream[j].to(device), block.axis), mask)
                for stream in previous
            ]
            for start, mine in zip(accumulators, activations):
                mine |= ends
                start.update({name: _tokens(x, mask) for name, x in mine.items()}, earlier)
            task.advance()
    return accumulators


def _require_finite(stream: Tensor, block: Block) -> None:
    if not torch.isfinite(stream).all():
        raise InvalidInputError(
            f"the activations after block {block.index} are not finite; check the weights"
        )


def _tokens(value: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(b, t, d) -> (n, d), padding taken out. A part that returns one number adds nothing."""
    rows = value.reshape(-1, value.shape[-1])  # some blocks hand their MLP rows already
    if attention_mask is None:
        return rows
    return rows[attention_mask.reshape(-1).to(rows.device).bool()]


@contextmanager
def _hooked(accumulators: Sequence[Accumulator]) -> Iterator[list[dict[str, Tensor]]]:
    """Reads every hook point while the block runs, for each watch under its own names."""
    with ExitStack() as stack:
        yield [stack.enter_context(capture(start.hook_points)) for start in accumulators]


def _fingerprint(model: nn.Module, source: BlockSource) -> str:
    """Tells models apart by a few values of every parameter, read with their block if need be."""
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
