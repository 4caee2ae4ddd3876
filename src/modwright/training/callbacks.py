"""What goes on around the steps of a training: schedules, averages, the best state, progress."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from modwright.core import distributed
from modwright.core.errors import CheckpointError
from modwright.core.files import read_json, write_file
from modwright.core.modes import eval_mode
from modwright.core.progress import Progress, Task
from modwright.edits.masks import masked_parameters
from modwright.training.objectives.base import Objective

__all__ = ["BestStateCallback", "EMACallback", "EpochCallback", "LastLogCallback", "NoStepLeft"]
__all__ += [
    "MaskCallback",
    "NoStepLeftCallback",
    "NotFinite",
    "ObjectiveCallback",
    "StepProgressCallback",
    "learning_state",
]

_MEAN = "mean_weights.safetensors"
_PARTS = "objective_parts."


class NotFinite(Exception):
    """A loss or its gradients are not finite; the step was not taken. ``step`` counts those that
    were."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss is not finite in step {step + 1}")
        self.step = step


def learning_state(model: nn.Module) -> dict[str, Tensor]:
    """What a training changes: parameters that learn, and buffers; by the names of the state."""
    learns = {
        name
        for name, p in model.named_parameters(remove_duplicate=False)
        if p.requires_grad and not name.startswith(_PARTS)
    }
    learns |= {name for name, _ in model.named_buffers() if not name.startswith(_PARTS)}
    return {name: tensor for name, tensor in model.state_dict().items() if name in learns}


class ObjectiveCallback(TrainerCallback):
    """Asks an objective what it does around a step, and stops what is not finite.

    It is the first of the callbacks: what the objective corrects is corrected before anything
    averages or measures the model.

    Args:
        objective: that is asked.
        losses: of the batches of a step; emptied after it.
    """

    def __init__(self, objective: Objective, losses: list[Tensor]) -> None:
        self.objective, self.losses = objective, losses

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.losses.clear()
        self.objective.at(state.global_step / max(state.max_steps, 1))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.fp16:  # its scaler looks for such gradients, and leaves their steps out
            return
        # Losses differ between processes, gradients do not: all of them stop at the same step.
        looked_at = _norms(kwargs["model"]) + (self.losses if distributed.size() == 1 else [])
        if not all(bool(torch.isfinite(value)) for value in looked_at):
            raise NotFinite(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.objective.after_step(kwargs["model"])
        if self.objective.finished():
            control.should_training_stop = control.should_log = True


def _norms(model: nn.Module) -> list[Tensor]:
    """Of the gradients that lie on one mesh of devices each."""
    by_mesh: dict[Any, list[Tensor]] = {}
    for parameter in model.parameters():
        if parameter.grad is not None:
            mesh = getattr(parameter.grad, "device_mesh", None)
            by_mesh.setdefault(mesh, []).append(parameter.grad)
    norms: list[Any] = [torch.nn.utils.get_total_norm(grads) for grads in by_mesh.values()]
    return [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]


class MaskCallback(TrainerCallback):
    """Keeps the zeros of masked weights zero, whatever the optimizer does; behind every step.

    Averages of the weights then have the same zeros, and so have adapters that are merged.

    Args:
        model: that is trained, before adapters are put into it.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.keep = {n: tensor.detach() != 0 for n, tensor in masked_parameters(model).items()}
        self.of_steps: dict[str, Tensor] = {}  # the same of what a process holds while it trains

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        there = dict(self.model.named_parameters())
        self.of_steps = {n: there[n].detach() != 0 for n in self.keep.keys() & there.keys()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._set_zeros(self.of_steps)

    def apply(self) -> None:
        """Sets the masked numbers to zero in place, when the training has ended."""
        self._set_zeros(self.keep)

    @torch.no_grad()
    def _set_zeros(self, keep: Mapping[str, Tensor]) -> None:
        """What stands in adapters waits for their end."""
        there = dict(self.model.named_parameters()) if keep else {}
        for name in keep.keys() & there.keys():
            there[name].mul_(keep[name])


class EpochCallback(TrainerCallback):
    """Calls ``set_epoch`` of a dataset that has it before the rows of each epoch are read.

    Data loaders tell it by themselves only where one process begins an epoch at its first batch.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int(state.epoch or 0))


class NoStepLeft(Exception):
    """All steps were done when the training was stopped: its last checkpoint is the end of it."""


class NoStepLeftCallback(TrainerCallback):
    """Ends a training that goes on behind its last step: the Trainer would take one more."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            raise NoStepLeft


class LastLogCallback(TrainerCallback):
    """Logs at the last step, too, however many lie between two entries."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True


class StepProgressCallback(TrainerCallback):
    """Tells a progress display of every step; its phase ends with the stack of contexts."""

    def __init__(self, progress: Progress, stack: ExitStack) -> None:
        self.progress, self.stack = progress, stack
        self.task: Task | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done = state.global_step
        name = f"train, from step {done}" if done else "train"
        self.task = self.stack.enter_context(self.progress.phase(name, state.max_steps - done))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.task is not None:
            self.task.advance()


class BestStateCallback(TrainerCallback):
    """Measures the model at some steps, and keeps the state whose score was lowest.

    What was measured, and the best state, are written each time, so that a training which is
    stopped leaves them, and one that goes on knows them.

    Args:
        measure: called with the model, in evaluation mode and with averaged weights where there are
            some, and with the step; gives plain values, of which "score" is lower where the model
            is better.
        steps: at which it is measured; 0 is before the first.
        file: where the best state is kept; in memory without one.
        averaged: puts averaged weights into a model.
    """

    def __init__(
        self,
        measure: Callable[[Any, int], Mapping[str, Any]],
        steps: Collection[int],
        file: Path | None = None,
        averaged: Callable[[Any], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.measure, self.steps, self.file = measure, set(steps), file
        self.averaged = averaged or (lambda model: nullcontext())
        self.best: tuple[float, int] | None = None
        self.state: dict[str, Tensor] = {}
        self.values: dict[int, Mapping[str, Any]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            self._recall()
        if state.global_step in self.steps and state.global_step not in self.values:
            self.look(kwargs["model"], state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            self.look(kwargs["model"], state.global_step)

    def look(self, model: Any, step: int) -> Mapping[str, Any]:
        """Measures the model now."""
        with self.averaged(model), eval_mode(model), torch.no_grad():
            found = self.values[step] = self.measure(model, step)
            score = float(found["score"])
            if math.isfinite(score) and (self.best is None or score < self.best[0]):
                self._keep(model)
                self.best = score, step
        self._note()
        return found

    def _note(self) -> None:
        """What was measured, beside the best state."""
        if self.file is not None and distributed.is_main():
            told = {"best": self.best, "values": {str(k): v for k, v in self.values.items()}}
            write_file(self.file.with_suffix(".json"), json.dumps(told), kept_in=self.file.parent)

    def _recall(self) -> None:
        """What the same training measured before it was stopped, also behind its checkpoint: it
        comes to the same numbers again."""
        told = None if self.file is None else read_json(self.file.with_suffix(".json"))
        if isinstance(told, dict) and told.get("best") and self.file and self.file.is_file():
            self.best = float(told["best"][0]), int(told["best"][1])
            self.values = {int(step): value for step, value in told["values"].items()}

    def _keep(self, model: Any) -> None:
        state = _whole(learning_state(model))
        if self.file is None:
            self.state = {name: tensor.detach().clone() for name, tensor in state.items()}
        elif distributed.is_main():
            flat = {n: t.detach().cpu().contiguous() for n, t in _apart(state).items()}
            write_file(
                self.file, lambda partial: save_file(flat, partial), kept_in=self.file.parent
            )

    def restore(self, model: nn.Module) -> None:
        """Gives the model its best state."""
        best = self.state if self.file is None else load_file(self.file)
        current = learning_state(model)
        with torch.no_grad():
            for name, tensor in best.items():
                current[name].copy_(tensor)


def _whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: distributed.whole(tensor) for name, tensor in state.items()}


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One of the names of each tensor: a file holds no memory twice."""
    seen: dict[int, str] = {}
    for name, tensor in state.items():
        seen.setdefault(tensor.untyped_storage().data_ptr() if tensor.numel() else id(tensor), name)
    kept = set(seen.values())
    return {name: tensor for name, tensor in state.items() if name in kept}


class EMACallback(TrainerCallback):
    """Keeps a running mean of what learns, and of buffers, while a model is trained.

    With every checkpoint the mean is stored, too; :meth:`restore` takes it from there. In each step
    ``decay`` of it is kept; the first count for more, as step n keeps (1 + n) / (10 + n) at most.
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = decay
        self.mean: dict[str, Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model: nn.Module = kwargs["model"]
        step = state.global_step
        kept = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, tensor in learning_state(model).items():
                if name not in self.mean or not tensor.is_floating_point():
                    self.mean[name] = tensor.detach().clone()
                else:
                    mean = self.mean[name] = distributed.sharded_like(self.mean[name], tensor)
                    mean.lerp_(tensor, 1 - kept)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        whole = self.whole()
        if not state.is_world_process_zero:
            return
        whole = {name: tensor.contiguous() for name, tensor in whole.items()}
        save_file(whole, Path(args.output_dir, f"checkpoint-{state.global_step}", _MEAN))

    def restore(self, checkpoint: Path) -> None:
        """Takes the mean that was stored with a checkpoint, which must have one."""
        if not (checkpoint / _MEAN).is_file():
            raise CheckpointError(f"{checkpoint} holds no mean of the weights")
        self.mean = load_file(checkpoint / _MEAN)

    def whole(self) -> dict[str, Tensor]:
        """The mean, its parts put together; all processes call it."""
        return _whole(self.mean)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Puts the mean into a model while the context lasts."""
        before = {name: tensor.clone() for name, tensor in learning_state(model).items()}
        mean = {n: distributed.sharded_like(t, before[n]) for n, t in self.mean.items()}
        model.load_state_dict(mean, strict=False)
        try:
            yield
        finally:
            model.load_state_dict(before, strict=False)
