"""Several processes of one program (SPMD): all compute the same, each on its shard of the data.

Every process plans from the same all-reduced sums; the main one alone writes, measures and prints.
This is the only module that calls ``torch.distributed``.
"""

from __future__ import annotations

import datetime
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modwright.core.compat.tools import forget_processes
from modwright.core.errors import InvalidInputError, ModwrightError, ProcessFailed

__all__ = ["all_gather", "all_reduce_", "barrier", "broadcast", "device"]
__all__ += ["fail_together", "init_distributed", "is_main", "launched", "local_size"]
__all__ += ["main_process_only", "rank", "shard", "shard_modules_", "sharded_like", "size", "whole"]

PATIENCE = datetime.timedelta(hours=2)
"""How long a process waits for the others to finish their shard of one block."""

_LONG = datetime.timedelta(days=7)  # while the main process measures and writes

# Where torchrun and accelerate, and three kinds of MPI, say how many they started.
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")

T = TypeVar("T")


def launched() -> int:
    """How many processes a launcher says that it started, of which this is one; 1 without it."""
    return max(int(os.environ.get(name, "1")) for name in _SIZES)


@contextmanager
def init_distributed() -> Iterator[None]:
    """Joins the processes that a launcher started, for one block.

    Without a launcher, or in a block inside another, nothing changes.

    Example:
        >>> with init_distributed():
        ...     rank(), size()
        (0, 1)
    """
    if _ready() or launched() < 2:
        yield
        return
    from accelerate import PartialState

    on_gpus = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "true"
    where: dict[str, Any] = {"backend": "cuda:nccl,cpu:gloo"} if on_gpus else {"cpu": True}
    state = PartialState(**where, timeout=_LONG)
    try:
        yield
    finally:
        state.destroy_process_group()
        forget_processes()


def _ready() -> bool:
    return dist.is_available() and dist.is_initialized()


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _ready() else 1


def rank() -> int:
    """Which of them this one is; 0 is the main process."""
    return dist.get_rank() if _ready() else 0


def is_main() -> bool:
    """Whether this process is the one that writes, measures and prints."""
    return rank() == 0


def local_size() -> int:
    """How many of the processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if size() > 1 else 1


def device() -> torch.device:
    """Where this process computes: its accelerator, if there is one."""
    if size() == 1:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    from accelerate import PartialState

    found: torch.device = PartialState().device
    return found


def shard(items: Sequence[T], index: int | None = None, count: int | None = None) -> list[T]:
    """This process's part of what all work on; some may have one more, or none.

    Example:
        >>> shard(["a", "b", "c"], index=1, count=2)
        ['b']
    """
    return list(items[rank() if index is None else index :: count or size()])


def all_reduce_(sums: Mapping[str, Tensor]) -> None:
    """Adds the other processes' sums to these, in place, in every process."""
    barrier()
    if size() > 1:
        with _connection():
            for name in sorted(sums):
                dist.all_reduce(sums[name], group=_group())


def all_gather(value: T, *, patient: bool = False) -> list[T]:
    """Every process's value, in order of rank; waits for all, for days where it is patient.

    This, and every other exchange, raises ``ProcessFailed`` where a process failed or is gone.
    """
    if size() == 1:
        return [value]
    answers: list[Any] = [None] * size()
    with _connection():
        dist.all_gather_object(answers, value, group=None if patient else _group())
    for answer in answers:
        if isinstance(answer, ProcessFailed):
            answer.reported = not is_main()
            raise answer
    return answers


def broadcast(value: T) -> T:
    """The main process's value, in every process."""
    return all_gather(value)[0]


def barrier() -> None:
    """Waits until all processes are here; hears of one that failed on the way."""
    all_gather(None)


@contextmanager
def fail_together(*, patient: bool = False) -> Iterator[None]:
    """What fails in one process fails in all, in one line, at their next exchange.

    Every exchange above carries such news, so no process waits for one that failed elsewhere. The
    main process raises an error of its own as it is, all others a ``ProcessFailed``.
    """
    try:
        yield
    except Exception as error:
        if size() == 1 or isinstance(error, ProcessFailed) or hasattr(error, "_all_know"):
            raise
        try:
            all_gather(_news_of(error), patient=patient)
        except ProcessFailed as shared:
            if not is_main():
                raise shared from error
            error._all_know = True  # type: ignore[attr-defined]
        raise
    all_gather(None, patient=patient)


def _news_of(error: Exception) -> ProcessFailed:
    """What went wrong here, as the other processes get it."""
    line = str(error) if isinstance(error, ModwrightError) else f"{type(error).__name__}: {error}"
    where = "the main process" if is_main() else f"process {rank()}"
    trace = "".join(traceback.format_exception(error))
    exit_code = getattr(error, "exit_code", 1)
    return ProcessFailed(f"{where}: {' '.join(line.split())}", exit_code, trace)


def main_process_only(work: Callable[[], T]) -> T | None:
    """The main process's work, for which the others wait as long as it takes; they get None.

    Not inside of :func:`fail_together`: others would wait with another patience.
    """
    with fail_together(patient=True):
        return work() if is_main() else None


@contextmanager
def _connection() -> Iterator[None]:
    """An error of the connection to the other processes as one line."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0][:200]
        hours = PATIENCE.total_seconds() / 3600
        raise ProcessFailed(
            f"process {rank()} of {size()}: another process of this run is gone, or was silent "
            f"for {hours:g} h ({first}); what is done is kept, and the same command goes on from it"
        ) from error


def shard_modules_(modules: Sequence[nn.Module], mesh: Any = None) -> None:
    """Gives each process its part of the parameters of ``modules``, one group each (FSDP2)."""
    if not _ready():
        raise InvalidInputError(
            "torch.distributed is not set up: start with torchrun, and call this inside "
            "modwright.core.distributed.init_distributed()"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if mesh is None:
        kind = next(modules[0].parameters()).device.type
        mesh = init_device_mesh(kind, (size(),), mesh_dim_names=("shard",))
    for module in modules:
        # Also behind the last group's forward pass: what is measured there is in parts again.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def whole(tensor: Any) -> Any:
    """A tensor; the parts of one that is sharded put together, for which all processes wait."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def sharded_like(tensor: Any, other: Any) -> Any:
    """A tensor that all processes hold, sharded as the other one is, if it is."""
    if not hasattr(other, "placements") or hasattr(tensor, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    given = tensor.to(other.device), other.device_mesh, other.placements
    return distribute_tensor(*given, src_data_rank=None)


_groups: dict[Any, Any] = {}


def _group() -> Any:
    """The group of all that loses patience with one who is silent, sooner than the world does."""
    world = dist.group.WORLD
    if world not in _groups:
        _groups.clear()
        _groups[world] = dist.new_group(timeout=PATIENCE)
    return _groups[world]
