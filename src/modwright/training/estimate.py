"""What a training will take, before it starts: seconds, memory, disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modwright.checkpoint import require_memory
from modwright.core import distributed
from modwright.core.errors import InvalidInputError
from modwright.core.files import require_space
from modwright.core.formatting import format_bytes
from modwright.core.modes import kept_modes, set_mode

__all__ = ["TrainingEstimate", "estimate_training", "require_resources", "saved_bytes"]

_PROBE = 2  # rows: a batch norm cannot be trained on one


@dataclass(frozen=True)
class TrainingEstimate:
    """What a training is expected to take.

    Attributes:
        steps: of the optimizer.
        seconds: of all steps, from one that was tried on a few rows.
        memory_bytes: beside what the process holds already: gradients, the optimizer's moments, a
            running mean, the best state, and what a backward pass keeps of a batch.
        disk_bytes: checkpoints and the best state; 0 where nothing is kept.
    """

    steps: int
    seconds: float
    memory_bytes: int
    disk_bytes: int

    def sentence(self) -> str:
        """In words.

        Example:
            >>> TrainingEstimate(40, 130.0, 2_000_000, 0).sentence()
            '40 steps, about 2.2 min and 2.0 MB of memory beside the model'
        """
        s = self.seconds
        long = f"{s:.0f} s" if s < 90 else f"{s / 60:.1f} min" if s < 5400 else f"{s / 3600:.1f} h"
        disk = f", {format_bytes(self.disk_bytes)} on disk" if self.disk_bytes else ""
        memory = format_bytes(self.memory_bytes)
        return f"{self.steps} steps, about {long} and {memory} of memory beside the model{disk}"


def estimate_training(
    trainer: Any, *, averaged: bool = False, best: bool = False, keeps: bool = False
) -> TrainingEstimate:
    """Of a training that is ready to start; nothing of it changes, its random numbers included.

    Args:
        trainer: an :class:`~modwright.training.trainer.ObjectiveTrainer`.
        averaged: it keeps a running mean of the weights.
        best: it keeps the best state.
        keeps: it writes checkpoints.
    """
    model, args = trainer.model, trainer.args
    learns = [p for p in model.parameters() if p.requires_grad]
    learning = sum(p.numel() * p.element_size() for p in learns)
    changing = learning + sum(b.numel() * b.element_size() for b in model.buffers())
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    size = args.per_device_train_batch_size
    seconds, kept = _tried(trainer, min(_PROBE, max(size, 1)))
    accumulated = args.gradient_accumulation_steps
    steps = _steps(trainer)
    shared = distributed.size() if trainer.sharded else 1
    memory = 3 * learning // shared + size * kept + changing * (2 * averaged + best)
    disk = 0
    if keeps:
        one = whole + 2 * learning + changing * averaged
        limit = args.save_total_limit
        several = _saves(args, steps) if limit is None else min(limit + 1, _saves(args, steps))
        disk = one * several + changing * best
    return TrainingEstimate(steps, seconds * size * accumulated * steps, int(memory), int(disk))


def require_resources(estimate: TrainingEstimate, directory: Path | None) -> None:
    """Refuses a training that cannot fit.

    Raises:
        InvalidInputError: less memory is available.
        CheckpointError: less disk is free.
    """
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        if estimate.memory_bytes > free:
            raise InvalidInputError(
                f"the training needs about {format_bytes(estimate.memory_bytes)} on the device and "
                f"{format_bytes(free)} are free; a smaller per_device_train_batch_size with "
                "gradient_accumulation_steps, or gradient_checkpointing, needs less"
            )
    else:
        require_memory(estimate.memory_bytes, "the training")
    if directory is not None and estimate.disk_bytes:
        there = next(p for p in (directory, *directory.absolute().parents) if p.exists())
        require_space(there, estimate.disk_bytes, "the training, with its checkpoints,")


def _steps(trainer: Any) -> int:
    """Of the optimizer, over the whole training."""
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    batch = args.per_device_train_batch_size * max(distributed.size(), 1)
    batches = -(-len(trainer.train_dataset) // batch)
    each = max(-(-batches // args.gradient_accumulation_steps), 1)
    return max(round(each * args.num_train_epochs), 1)


def _saves(args: Any, steps: int) -> int:
    if args.save_strategy == "no":
        return 0
    if args.save_strategy == "steps" and args.save_steps >= 1:
        return max(int(steps // args.save_steps), 1)
    return max(round(args.num_train_epochs), 1)


def _first(data: Any, count: int) -> list[Any]:
    """The first rows of a data set, of one that is only iterated over, too."""
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return [data[index] for index in range(min(count, len(data)))]
    return list(islice(iter(data), count))


def _tried(trainer: Any, count: int) -> tuple[float, float]:
    """Seconds, and bytes that the backward pass keeps, for one row."""
    model = trainer.model
    with torch.random.fork_rng(), _untouched(model, trainer.objective.parts):
        rows = _first(trainer.train_dataset, count)
        if not rows:
            raise InvalidInputError("there is no row to learn from")
        batch = trainer.data_collator(rows)
        where = next(model.parameters()).device
        batch = {name: tensor.to(where) for name, tensor in batch.items()}
        _checkpoint_activations(model, trainer.args)
        began = time.perf_counter()
        with saved_bytes(model) as kept, trainer.compute_loss_context_manager():
            trainer.objective.step(model, batch, lambda loss: loss.backward())
        if where.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / len(rows), kept[0] / len(rows)


def _checkpoint_activations(model: Any, args: Any) -> None:
    """As the training will, where it is asked for; the argument has two names."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    if any(getattr(args, name, None) for name in names):
        ways = [getattr(model, f"{name}_enable", None) for name in names]
        for enable in [way for way in ways if way is not None][:1]:
            enable()


@contextmanager
def _untouched(model: nn.Module, parts: nn.Module | None) -> Iterator[None]:
    """Buffers, modes and gradients are what they were; the model is in training mode meanwhile."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with kept_modes(model):
        set_mode(model, True)
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for module in filter(None, (model, parts)):
                for parameter in module.parameters():
                    parameter.grad = None


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Bytes that autograd keeps for the backward pass while the block lasts, parameters left out.

    What several operations keep counts once.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> with saved_bytes(layer) as kept:
        ...     y = layer(torch.ones(3, 4))
        >>> kept[0] == 3 * 4 * 4
        True
    """
    of_model = {p.untyped_storage().data_ptr() for p in model.parameters() if not p.is_meta}
    seen: set[int] = set()
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address and address not in of_model and address not in seen:
            seen.add(address)
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
