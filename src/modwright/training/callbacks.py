"""What is told of a training while it runs: how far it is, and how good the model is by then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from transformers import TrainerCallback

from modwright.core.modes import eval_mode
from modwright.core.progress import Progress, Task

__all__ = ["EvalCallback", "StepProgressCallback"]


class StepProgressCallback(TrainerCallback):
    """Tells a progress display of every step.

    Args:
        progress: where it is shown.
        stack: the phase ends with it, however the training ends.
    """

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


class EvalCallback(TrainerCallback):
    """Measures the model after every epoch and puts the number into the log.

    Args:
        measure: gives the number; called with the model in evaluation mode.
        averaged: puts averaged weights into a model meanwhile, if there are any.
    """

    def __init__(
        self,
        measure: Callable[[Any], float],
        averaged: Callable[[Any], AbstractContextManager[None]],
    ) -> None:
        self.measure, self.averaged = measure, averaged

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The last step of an epoch, not the end after it: a checkpoint may be written between them.
        if not float(state.epoch).is_integer():
            return
        model = kwargs["model"]
        with self.averaged(model), eval_mode(model):
            found = self.measure(model)
        state.log_history.append(
            {"step": state.global_step, "epoch": state.epoch, "accuracy": found}
        )
