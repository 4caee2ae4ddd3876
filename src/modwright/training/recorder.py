"""Records quantities of a model while it is trained, without changing the training by a bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from modwright.anatomy import Anatomy
from modwright.calibration.trajectory import Trajectory
from modwright.core import distributed
from modwright.core.capture import HookPoint
from modwright.core.captured import capture_batches
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.core.modes import eval_mode
from modwright.training.batches import unwrapped

__all__ = ["Recorder", "at_points", "of_parameters"]

Quantities = Callable[[Any], Mapping[str, Tensor]]
"""Of a model, in evaluation mode: tensors by name, of the same shapes every time."""


class Recorder(TrainerCallback):
    """Writes quantities at steps 0, 1, 2, 4 and so on, then every ``every`` steps, into one file.

    They are copies, so later steps do not change them. The random numbers of the training go on as
    if nothing had been recorded. A training that was stopped and goes on from a checkpoint ends
    with the file that it would have had. The whole file is written each time: record
    statistics rather than whole activations.

    Args:
        file: of a :class:`~modwright.calibration.trajectory.Trajectory`, with the suffix
            .safetensors.
        quantities: :func:`at_points`, :func:`of_parameters`, or a function of one's own.
        every: steps between two records behind ``dense``.
        dense: powers of two are recorded up to here.
        force: a training from the start may replace the file.

    Raises:
        InvalidInputError: numbers below 1.

    Example:
        >>> recorder = Recorder("run.safetensors", of_parameters("*.bias"), every=50, dense=8)
        >>> [step for step in range(120) if recorder.is_recorded(step)]
        [0, 1, 2, 4, 8, 50, 100]
    """

    def __init__(
        self,
        file: str | Path,
        quantities: Quantities,
        *,
        every: int = 50,
        dense: int = 128,
        force: bool = False,
    ) -> None:
        if every < 1 or dense < 1:
            raise InvalidInputError(
                f"recorder: every and dense are 1 or more, not {every}, {dense}"
            )
        self.file, self.quantities, self.force = Path(file), quantities, force
        self.every, self.dense = every, dense
        self.trajectory = Trajectory()

    def is_recorded(self, step: int) -> bool:
        """Whether a step is one of those that are recorded."""
        if step <= self.dense:
            return step & (step - 1) == 0
        return step % self.every == 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            self.trajectory = Trajectory.load(self.file).until(state.global_step)
            return
        if self.file.exists() and not self.force:
            raise CheckpointError(f"{str(self.file)!r} exists; name another file, or force=True")
        self.trajectory = Trajectory()
        self._record(kwargs["model"], 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.is_recorded(state.global_step):
            self._record(kwargs["model"], state.global_step)

    def _record(self, model: Any, step: int) -> None:
        model = unwrapped(model)
        devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        with torch.random.fork_rng(devices=devices), eval_mode(model), torch.no_grad():
            found = self.quantities(model)
        self.trajectory = self.trajectory.extended(step, found)
        if distributed.is_main():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.trajectory.save(self.file)


def of_parameters(*patterns: str) -> Quantities:
    """The parameters whose names match a pattern, such as ``*.bias``.

    Raises:
        InvalidInputError: when it records, where nothing matches.
    """
    from fnmatch import fnmatchcase

    def read(model: Any) -> dict[str, Tensor]:
        named = dict(model.named_parameters())
        found = {n: p for n, p in named.items() if any(fnmatchcase(n, one) for one in patterns)}
        if not found:
            raise InvalidInputError(f"recorder: no parameter is called {', '.join(patterns)}")
        return found

    return read


def at_points(
    batches: Iterable[Any],
    points: Callable[[Anatomy], Mapping[str, HookPoint]],
    statistic: Callable[[Tensor], Tensor] = lambda seen: seen,
) -> Quantities:
    """A statistic of what passes hook points while the model runs over a few batches.

    Args:
        batches: the same every time.
        points: of a model's anatomy, by name.
        statistic: of all batches of one point, (B, ..., d); the tensors themselves by default.
    """
    kept = list(batches)

    def read(model: Any) -> dict[str, Tensor]:
        found = capture_batches(model, kept, (there := points(Anatomy.of(model))))
        return {name: statistic(found[name]) for name in there}

    return read
