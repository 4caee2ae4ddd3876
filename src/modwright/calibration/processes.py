"""The processes that a launcher started for one run, and what they say to each other.

``torchrun`` and ``accelerate launch`` start the same program several times. Each process walks its
share of the calibration data; what they add up is added over all of them. accelerate's
``PartialState`` joins them; nothing is sent between them but sums and short messages.
"""

from __future__ import annotations

import datetime
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from modwright.core.errors import ModwrightError, ProcessFailed

__all__ = ["Failure", "Processes", "joined", "processes"]

PATIENCE = datetime.timedelta(hours=2)
"""How long a process waits for the others to finish their share of one block."""

LONG = datetime.timedelta(days=7)
"""How long the others wait while the main process measures and writes."""

# Where torchrun and accelerate, and three kinds of MPI, say how many they started.
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """What went wrong in one process, as it is told to the others."""

    process: int
    message: str
    exit_code: int
    trace: str

    @classmethod
    def of(cls, process: int, error: BaseException) -> Failure:
        known = isinstance(error, ModwrightError)
        line = str(error) if known else f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
        return cls(process, " ".join(line.split()), getattr(error, "exit_code", 1), trace)

    def error(self) -> ProcessFailed:
        where = "the main process" if self.process == 0 else f"process {self.process}"
        return ProcessFailed(f"{where}: {self.message}", self.exit_code, self.trace)


class _RelievedError(BaseException):
    """The main process has decided and needs no more walks; no handler of errors sees this."""


class Processes:
    """One process, alone or among several.

    Attributes:
        index: 0 is the main process, which plans, prints, measures and writes.
        size: how many there are.
        device: where this process computes: its accelerator, if there is one.
        local_size: how many of them are on this machine.
    """

    def __init__(
        self,
        index: int = 0,
        size: int = 1,
        device: torch.device | None = None,
        local_size: int = 1,
        walkers: Any = None,
    ) -> None:
        """``walkers`` is torch's group of them all that loses patience with one who is silent."""
        self.index, self.size, self.local_size = index, size, local_size
        self._device, self._walkers = device, walkers
        self._planning = False
        self._called_to_walk = False

    @property
    def is_main(self) -> bool:
        return self.index == 0

    @property
    def device(self) -> torch.device:
        if self._device is not None:
            return self._device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of what all work on; some may have one more, or none.

        Example:
            >>> Processes(index=1, size=2).share(["a", "b", "c"])
            ['b']
        """
        return list(items[self.index :: self.size])

    def add_up(self, sums: Mapping[str, Tensor]) -> None:
        """Adds the other processes' sums to these, in place, in every process."""
        if self.size == 1:
            return
        import torch.distributed as dist

        with self._connection():
            for name in sorted(sums):
                dist.all_reduce(sums[name], group=self._walkers)

    def agree(self, value: T, error: BaseException | None = None) -> list[T]:
        """Every process's value, in order; waits for all.

        Raises:
            ProcessFailed: one of them told of an error instead.
        """
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        told: Any = value if error is None else Failure.of(self.index, error)
        answers: list[Any] = [None] * self.size
        with self._connection():
            dist.all_gather_object(answers, told, group=self._walkers)
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        if failures:
            raise failures[0].error()
        return answers

    @contextmanager
    def same_fate(self) -> Iterator[None]:
        """What fails in one process fails in all, when all have come to the end of the block."""
        try:
            yield
        except ProcessFailed:
            raise  # all know already
        except Exception as error:
            if self.size == 1:
                raise
            try:
                self.agree(None, error)
            except ProcessFailed as shared:
                if self.is_main:
                    error.told = True  # type: ignore[attr-defined]
                    raise error from None
                raise shared from error
        else:
            self.agree(None)

    @contextmanager
    def leading(self) -> Iterator[None]:
        """The main process's work; the others hear when it is over (None), or why it failed."""
        try:
            yield
        except BaseException as error:
            # What failed in :meth:`same_fate` is known to all.
            if not isinstance(error, ProcessFailed) and not getattr(error, "told", False):
                with suppress(ProcessFailed):
                    self.tell(Failure.of(self.index, error))
            raise
        self.tell(None)

    def tell(self, message: Any) -> None:
        """The main process says something to all others."""
        if self.size > 1:
            self._broadcast(message)

    def hear(self) -> Any:
        """What the main process says next.

        Raises:
            ProcessFailed: it failed, or it is gone.
        """
        message = self._broadcast(None)
        if isinstance(message, Failure):
            raise message.error()
        return message

    def decide(self, work: Callable[[], T]) -> T | None:
        """The main process decides by ``work``; the others take part in its walks and get None.

        ``work`` runs in every process. In the others it ends where it would read statistics that
        the main process needs no other walk to judge.
        """
        if self.size == 1:
            return work()
        self._planning = True
        try:
            if self.is_main:
                found = work()
                self.tell("decided")
                return found
            work()
            self.hear()
        except _RelievedError:
            pass
        except Exception as error:
            if self.is_main or isinstance(error, ProcessFailed):
                raise
            self.confess(error)
        finally:
            self._planning = self._called_to_walk = False
        return None

    def confess(self, error: Exception) -> None:
        """One of the others failed outside a walk: all learn of it where the next one begins.

        Raises:
            ProcessFailed: then; or when the main process is done without it.
        """
        while not self._called_to_walk:
            message = self.hear()
            self._called_to_walk = message == "walk"
            if message is None:  # nobody hears of it any more
                failure = Failure.of(self.index, error)
                raise ProcessFailed(failure.error().args[0], failure.exit_code, lost=True)
        self.agree(None, error)

    def begin_walk(self) -> None:
        """Calls the others to a walk; they wait here until they are called, or relieved."""
        if self.size == 1 or not self._planning:
            return
        if self.is_main:
            self.tell("walk")
        elif not self._called_to_walk:
            self._wait_for_call()
        self._called_to_walk = False

    def before_reading(self) -> None:
        """Others go on after a walk only when the main process begins another."""
        if self._planning and not self.is_main and not self._called_to_walk:
            self._wait_for_call()

    def _wait_for_call(self) -> None:
        if self.hear() != "walk":
            raise _RelievedError
        self._called_to_walk = True

    def _broadcast(self, message: Any) -> Any:
        import torch.distributed as dist

        box = [message]
        with self._connection():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    @contextmanager
    def _connection(self) -> Iterator[None]:
        """An error of the connection as one line."""
        try:
            yield
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0][:200]
            hours = PATIENCE.total_seconds() / 3600
            raise ProcessFailed(
                f"process {self.index} of {self.size}: another process of this run is gone, or was "
                f"silent for {hours:g} h ({first}); what is done is kept, and the same command "
                "goes on from it",
                lost=True,
            ) from error


_ALONE = Processes()
_found: Processes | None = None


def processes() -> Processes:
    """The processes that this one belongs to: those of torch.distributed, once it is set up.

    Example:
        >>> processes().size
        1
    """
    global _found
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return _ALONE
    if _found is None:
        from accelerate import PartialState

        state = PartialState()
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        # Those who walk lose patience sooner than those who wait for the report.
        walkers = torch.distributed.new_group(timeout=PATIENCE)
        _found = Processes(state.process_index, state.num_processes, state.device, local, walkers)
    return _found


@contextmanager
def joined() -> Iterator[Processes]:
    """Joins the processes that ``torchrun``, ``accelerate launch`` or MPI started, for one block.

    Without a launcher, or in a block inside another, nothing changes.
    """
    global _found
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    if ready or max(int(os.environ.get(name, "1")) for name in _SIZES) < 2:
        yield processes()
        return
    from accelerate import PartialState

    if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "true":
        state = PartialState(backend="cuda:nccl,cpu:gloo", timeout=LONG)
    else:
        state = PartialState(cpu=True, timeout=LONG)
    try:
        yield processes()
    finally:
        _found = None
        state.destroy_process_group()
        PartialState._reset_state()
