"""Walks a model block by block over calibration data.

A block is called exactly as the model called it: the arguments are recorded from the model's own
forward, with every block passing its input through. Then each block in turn runs over all batches
while its statistics gather; what it returns is the next block's input.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from modwright.anatomy import Anatomy, Block, Tap
from modwright.calibration.collectors import Collector, Watch
from modwright.calibration.statistics import Statistics
from modwright.calibration.streams import Stream
from modwright.calibration.text import Batch, TokenWindows
from modwright.errors import Refused
from modwright.progress import SILENT, Progress

__all__ = ["BlockSource", "LiveBlocks", "calibrate", "forecast_bytes"]


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


Call = tuple[tuple[Any, ...], dict[str, Any]]


class _StopForwardError(Exception):
    pass


@torch.no_grad()
def calibrate(
    anatomy: Anatomy,
    windows: TokenWindows,
    collectors: Sequence[Collector],
    *,
    directory: Path | None = None,
    blocks: BlockSource | None = None,
    progress: Progress = SILENT,
    label: str = "calibrate",
) -> Statistics:
    """Collects statistics of every block.

    Args:
        anatomy: of the model to run; its weights do not change.
        windows: the data.
        collectors: what to measure; the results of all are stored together.
        directory: where statistics are kept; a walk that was stopped goes on from there. None for
            a temporary place.
        blocks: where blocks come from; the model itself by default.
        progress: told after every batch of every block.
        label: what the phase is called.

    Time grows with tokens times parameters, plus tokens times the square of a Gram's width. Memory:
    the weights, one boundary's streams (mapped from disk), one block's statistics.

    Raises:
        Refused: no data, or activations that are not finite.

    Example:
        >>> import modwright
        >>> from modwright.calibration import Similarity, calibrate
        >>> from modwright.calibration.text import from_sequences
        >>> anatomy = modwright.open("preset:tiny-llama").anatomy
        >>> windows = from_sequences([torch.arange(1, 9), torch.arange(3, 11)], pad_id=0)
        >>> len(calibrate(anatomy, windows, [Similarity()]).column("attention"))
        4
    """
    source = blocks if blocks is not None else LiveBlocks(anatomy)
    batches = list(windows)
    if not batches:
        raise Refused("there is no calibration data")
    recipe = {
        "data": windows.recipe,
        "collectors": [collector.describe() for collector in collectors],
        "model": _fingerprint(anatomy.model),
    }
    statistics = Statistics(len(source), recipe, directory)
    history = max((collector.history for collector in collectors), default=1)
    was_training = anatomy.model.training
    anatomy.model.eval()
    try:
        with progress.phase(label, len(source) * len(batches)) as task:
            _walk(anatomy, source, batches, collectors, statistics, history, task)
    finally:
        anatomy.model.train(was_training)
    return statistics


def _walk(
    anatomy: Anatomy,
    source: BlockSource,
    batches: list[Batch],
    collectors: Sequence[Collector],
    statistics: Statistics,
    history: int,
    task: Any,
) -> None:
    start = 0
    while start < len(source) and statistics.done(start):
        start += 1
    if start == len(source):
        task.advance(start * len(batches))
        return
    first, calls = _record(anatomy, batches)
    shapes, dtype = [tuple(h.shape) for h in first], first[0].dtype
    keep = [None if b.attention_mask is None else b.attention_mask.bool() for b in batches]
    place = statistics.directory

    def needed(at: int) -> list[Path]:
        """Streams that block ``at`` looks back on, latest first."""
        return [_stream(place, i) for i in range(at, max(-1, at - history), -1)]

    while start and not all(path.exists() for path in needed(start)):
        start -= 1  # stopped between the two writes of a block, or streams were cleared
    if start:
        past = [Stream.reopen(path, shapes, dtype) for path in needed(start)]
    else:
        entry = Stream.create(place / "stream.partial", shapes, dtype)
        for j, hidden in enumerate(first):
            entry[j] = hidden
        entry.rename(_stream(place, 0))
        past = [entry]
    del first
    task.advance(start * len(batches))
    for index in range(start, len(source)):
        out = Stream.create(place / "stream.partial", shapes, dtype)
        with source.block(index) as block:
            results = _measure(block, calls[index], past, out, keep, collectors, task)
        statistics.store(index, results)
        del results  # a Gram is large; the next block's must not stand beside it
        out.rename(_stream(place, index + 1))
        past.insert(0, out)
        for old in past[history:]:
            old.delete()
        del past[history:]
    for path in place.glob("stream-*"):
        path.unlink()


def _measure(
    block: Block,
    calls: list[Call],
    past: list[Stream],
    out: Stream,
    keep: list[Tensor | None],
    collectors: Sequence[Collector],
    task: Any,
) -> dict[str, Tensor]:
    """Runs one block over all batches, from ``past[0]`` to ``out``; what the collectors saw."""
    watches = [collector.watch(block) for collector in collectors]
    with _tapped(watches) as seen:
        for j, (args, kwargs) in enumerate(calls):
            result = block.module(past[0][j].clone(), *args, **kwargs)
            out[j] = result[0] if isinstance(result, tuple) else result
            if not torch.isfinite(out[j]).all():
                raise Refused(
                    f"the activations after block {block.index} are not finite; check the weights"
                )
            earlier = [_tokens(stream[j], keep[j]) for stream in past]
            for watch, mine in zip(watches, seen):
                mine["stream_in"], mine["stream_out"] = past[0][j], out[j]
                watch.update({name: _tokens(x, keep[j]) for name, x in mine.items()}, earlier)
            task.advance()
    results: dict[str, Tensor] = {}
    for watch in watches:
        for name, value in watch.result().items():
            if name in results and not torch.equal(results[name], value):
                raise Refused(f"two collectors both give {name!r}; collect them in walks apart")
            results[name] = value
    return results


def _stream(place: Path, index: int) -> Path:
    return place / f"stream-{index:04d}.bin"


def _tokens(value: Tensor, keep: Tensor | None) -> Tensor:
    """(b, t, d) -> (n, d), padding taken out. A part that returns one number adds nothing."""
    if keep is None:
        return value.reshape(-1, value.shape[-1])
    return value[keep]


@contextmanager
def _tapped(watches: Sequence[Watch]) -> Iterator[list[dict[str, Tensor]]]:
    """Reads every tap while the block runs, for each watch under its own names."""
    seen: list[dict[str, Tensor]] = [{} for _ in watches]
    with ExitStack() as stack:
        for watch, mine in zip(watches, seen):
            for name, tap in watch.taps.items():
                stack.callback(_hook(tap, name, mine).remove)
        yield seen


def _hook(tap: Tap, name: str, seen: dict[str, Tensor]) -> Any:
    def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[name] = args[0] if args else kwargs["hidden_states"]

    def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen[name] = output[0] if isinstance(output, tuple) else output

    if tap.side == "input":
        return tap.module.register_forward_pre_hook(on_input, with_kwargs=True)
    return tap.module.register_forward_hook(on_output)


def _record(anatomy: Anatomy, batches: list[Batch]) -> tuple[list[Tensor], list[list[Call]]]:
    """The stream that enters block 0, and how each block is called, for every batch."""
    modules = [block.module for block in anatomy.blocks]
    backbone = anatomy.family.backbone(anatomy.model)
    device = next(anatomy.model.parameters()).device
    first: list[Tensor] = []
    calls: list[list[Call]] = [[] for _ in modules]

    def stand_in(index: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            kwargs = dict(kwargs)
            hidden: Tensor = args[0] if args else kwargs.pop("hidden_states")
            if index == 0:
                first.append(hidden)
            previous = calls[index][-1] if calls[index] else ((), {})
            calls[index].append(_shared((args[1:], kwargs), previous))
            if index == len(modules) - 1:
                raise _StopForwardError
            return hidden

        return forward

    own = [module.__dict__.get("forward") for module in modules]
    try:
        for index, module in enumerate(modules):
            module.forward = stand_in(index)
        for batch in batches:
            try:
                backbone(**_inputs(backbone, batch, device))
            except _StopForwardError:
                continue
    finally:
        for module, forward in zip(modules, own):
            del module.forward
            if forward is not None:  # a forward of its own, as accelerate's hooks give it
                module.forward = forward
    return first, calls


def _inputs(backbone: nn.Module, batch: Batch, device: torch.device) -> dict[str, Any]:
    """What the model is called with; a padded row counts positions from its first real token."""
    takes = inspect.signature(backbone.forward).parameters
    inputs: dict[str, Any] = {"input_ids": batch.input_ids.to(device)}
    if batch.attention_mask is not None:
        mask = batch.attention_mask.to(device)
        inputs["attention_mask"] = mask
        if "position_ids" in takes:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    if "use_cache" in takes:
        inputs["use_cache"] = False
    return inputs


def _shared(call: Call, previous: Call) -> Call:
    """Tensors that are the same as in the batch before are held once."""

    def one(value: Any, old: Any) -> Any:
        if isinstance(value, Tensor) and isinstance(old, Tensor):
            same = value.shape == old.shape and value.dtype == old.dtype and torch.equal(value, old)
            return old if same else value
        if isinstance(value, tuple) and isinstance(old, tuple) and len(value) == len(old):
            return tuple(one(v, o) for v, o in zip(value, old))
        return value

    args, kwargs = call
    old_args, old_kwargs = previous
    if len(args) == len(old_args):
        args = tuple(one(a, o) for a, o in zip(args, old_args))
    return args, {name: one(value, old_kwargs.get(name)) for name, value in kwargs.items()}


def _fingerprint(model: nn.Module) -> str:
    """Tells models apart by a few values of every parameter; reads little of each."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(str(tuple(parameter.shape)).encode())
        if parameter.is_meta:  # its values come with its block
            continue
        flat = parameter.detach().reshape(-1)
        step = max(1, flat.numel() // 16)
        digest.update(flat[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def forecast_bytes(
    anatomy: Anatomy, tokens: int, collectors: Sequence[Collector]
) -> Mapping[str, int]:
    """What a walk will need beside the weights: memory for one block, and disk.

    Returns:
        "statistics" (memory, largest block), "streams" (mapped from disk), "disk" (all files).
    """
    stored = [sum(c.bytes(block) for c in collectors) for block in anatomy.blocks]
    history = max((c.history for c in collectors), default=1)
    item = next(anatomy.model.parameters()).element_size()
    streams = tokens * anatomy.hidden_size * item * (history + 1)
    # Beside the sums stand pieces of one batch's products, and what the block passes on.
    gathering = max(stored, default=0) * 3 // 2
    return {"statistics": gathering, "streams": streams, "disk": sum(stored) + streams}
