"""Trains a classifier of images and measures it, in one call."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import SchedulerType

from modwright.core import distributed
from modwright.core.compat.torch import BATCH_NORMS
from modwright.core.errors import InvalidInputError, unknown_name
from modwright.core.modes import eval_mode, kept_modes, set_eval, set_mode
from modwright.core.progress import Progress
from modwright.data.images import Pictures
from modwright.data.super_resolution import SuperResolutionDataset
from modwright.data.synthetic import TokenDataset
from modwright.training.callbacks import EMACallback, StepProgressCallback
from modwright.training.checkpoints import (
    CheckpointCompleteCallback,
    newest_checkpoint,
    remove_incomplete,
)
from modwright.training.loop import TrainResult, quieten, run_trainer, warn
from modwright.training.objectives import CrossEntropy
from modwright.training.options import ONE_CYCLE as _OWN_SCHEDULE
from modwright.training.parametrization import Parametrization
from modwright.training.trainer import ObjectiveTrainer

__all__ = ["EvalCallback", "Settings", "accuracy", "fit", "name_classes"]


@dataclass(frozen=True)
class Settings:
    """How a model is trained.

    Attributes:
        epochs: passes over the images.
        batch_size: images of a step; several processes share them.
        learning_rate: its height.
        weight_decay: of weights of more than one axis.
        warmup: share of the steps in which the learning rate rises; "one_cycle" has its own, three
            tenths.
        schedule: "one_cycle", or a name that transformers has: "cosine", "linear", "constant".
        clip: the norm that gradients are cut at.
        seed: of the order of images and of everything random in training.
        average: decay of a running mean of the weights, which the result gets; None has none.
        more: further arguments of ``transformers.TrainingArguments``, as ``bf16``, ``report_to``.
    """

    epochs: float = 10
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    schedule: str = "one_cycle"
    clip: float = 1.0
    seed: int = 0
    average: float | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise InvalidInputError(f"{name} is above 0, not {getattr(self, name)}")
        if self.average is not None and not 0 < self.average < 1:
            raise InvalidInputError(f"average lies between 0 and 1, not {self.average}")
        valid = [_OWN_SCHEDULE, *(kind.value for kind in SchedulerType)]
        if self.schedule not in valid:
            raise unknown_name("schedule", self.schedule, valid)


class EvalCallback(TrainerCallback):
    """Measures the model, averaged and in evaluation mode, after every epoch, and logs it."""

    def __init__(self, measure: Callable[[Any], float], averaged: Callable[[Any], Any]) -> None:
        self.measure, self.averaged = measure, averaged

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The last step of an epoch, not the end after it: a checkpoint may be written between them.
        if not float(state.epoch).is_integer():
            return
        model = kwargs["model"]
        with self.averaged(model), eval_mode(model):
            found = self.measure(model)
        entry = {"step": state.global_step, "epoch": state.epoch, "accuracy": found}
        state.log_history.append(entry)


def fit(
    model: Any,
    train: Pictures | SuperResolutionDataset | TokenDataset,
    test: Pictures | None = None,
    settings: Settings | None = None,
    objective: Any = None,
    output: str | Path | None = None,
    resume: bool = False,
    *,
    measure_epochs: bool = False,
    parametrization: Parametrization | str | None = None,
    progress: Progress | None = None,
    log: Callable[[str], None] = warn,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Trains a classifier in place; its classes get the names of the images' classes.

    Args:
        model: takes ``pixel_values`` and gives ``logits``.
        train: what it learns from; pairs of images go with an objective such as
            :class:`~modwright.training.objectives.L1Loss`, tokens with one that takes the model's
            own loss.
        test: what it is measured on at the end.
        settings: how long and how fast.
        objective: cross-entropy unless it is said.
        output: a directory for checkpoints and logs; nothing is kept without one.
        resume: goes on from the newest whole checkpoint in ``output``, to the losses and weights of
            a training that was not stopped.
        measure_epochs: measures the accuracy after every epoch, too.
        parametrization: learning rates and decay by groups of parameters, as itself or by name; the
            objective's own, or :class:`~modwright.training.parametrization.Standard`, without one.
        progress: told of every step; without one transformers shows a bar where there is an
            ``output``.
        log: is told, and warnings say without it, that a damaged checkpoint is passed over, or that
            the last batch of an epoch is left out: one image, which a BatchNorm cannot be trained
            on.
        callbacks: of transformers' Trainer, more of them. What they correct after a step (masks,
            tied weights) is corrected before averaged weights take it up.

    Raises:
        InvalidInputError: the model has fewer classes than the images, there is nothing to resume,
            batches of one that a BatchNorm cannot be trained on, or the images of a step cannot be
            shared by all processes.

    Example:
        >>> from modwright.models import create_model
        >>> from modwright.data.images import digits
        >>> train, test = digits()
        >>> sizes = {"depths": [1, 1], "hidden_sizes": [8, 16]}
        >>> model = create_model("poolformer_s12", num_classes=10, **sizes)
        >>> fitted = fit(model, train.take(64), test.take(50), Settings(epochs=1))
        >>> fitted.steps, 0 <= fitted.accuracy <= 1
        (1, True)
    """
    settings = settings or Settings()
    if isinstance(train, Pictures):
        if model.config.num_labels < len(train.classes):
            raise InvalidInputError(
                f"the model has {model.config.num_labels} classes, the images {len(train.classes)}"
            )
        name_classes(model.config, train.classes)
    if resume and output is not None and distributed.is_main():
        for told in remove_incomplete(output):
            log(told)
    checkpoint = newest_checkpoint(output) if resume and output is not None else None
    if resume and checkpoint is None:
        raise InvalidInputError(f"{output} holds no checkpoint to resume from")
    objective = CrossEntropy() if objective is None else objective
    averaged = None if settings.average is None else EMACallback(settings.average)
    if averaged is not None and checkpoint is not None:
        averaged.restore(checkpoint)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        # What others correct after a step comes before the mean is taken and the model measured.
        watchers: list[TrainerCallback] = [*callbacks, *([] if averaged is None else [averaged])]
        if measure_epochs and test is not None:
            means = nullcontext if averaged is None else averaged.applied_to
            watchers.append(EvalCallback(lambda now: accuracy(now, test), means))
        if progress is not None:
            watchers.append(StepProgressCallback(progress, stack))
        arguments = _arguments(settings, str(output or scratch), keep=output is not None)
        if _leaves_one(model, train, arguments):
            arguments.dataloader_drop_last = True
            log(
                f"the last batch of an epoch is left out: of {len(train)} images in batches of "
                f"{settings.batch_size} it holds one, which a BatchNorm cannot be trained on"
            )
        trainer = ObjectiveTrainer(
            model,
            arguments,
            train_dataset=train,
            objective=objective,
            one_cycle=settings.schedule == _OWN_SCHEDULE,
            parametrization=parametrization,
            callbacks=[*watchers, CheckpointCompleteCallback()],
        )
        quieten(trainer, output is None or progress is not None)
        began = time.perf_counter()
        stopped = run_trainer(trainer, checkpoint)
        seconds = time.perf_counter() - began
    if averaged is not None:
        model.load_state_dict(averaged.mean, strict=False)
    set_eval(model)
    if stopped:
        log(stopped)
    history = trainer.state.log_history
    return TrainResult(
        None if test is None else accuracy(model, test),
        tuple((entry["step"], entry["loss"]) for entry in history if "loss" in entry),
        trainer.state.global_step,
        seconds,
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        tuple(entry for entry in history if entry.keys() & {"loss", "accuracy"}),
        stopped,
    )


def _arguments(settings: Settings, directory: str, keep: bool) -> TrainingArguments:
    own_schedule = settings.schedule == _OWN_SCHEDULE
    shared = distributed.size()
    if settings.batch_size % shared:
        raise InvalidInputError(
            f"batch_size {settings.batch_size} cannot be shared by {shared} processes"
        )
    given: dict[str, Any] = {
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size // shared,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.clip,
        "seed": settings.seed,
        "lr_scheduler_type": "constant" if own_schedule else settings.schedule,
        "warmup_steps": 0 if own_schedule else settings.warmup,
        "logging_steps": 10,
        "logging_nan_inf_filter": False,
        "save_strategy": "epoch" if keep else "no",
        "report_to": [],
        "disable_tqdm": not keep,
        "use_cpu": not torch.cuda.is_available(),
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    return TrainingArguments(output_dir=directory, **{**given, **settings.more})


def name_classes(config: Any, classes: Sequence[str]) -> None:
    """Gives outputs the names of the classes; outputs beyond them are LABEL_i."""
    names = {i: f"LABEL_{i}" for i in range(config.num_labels)} | dict(enumerate(classes))
    config.id2label, config.label2id = names, {name: index for index, name in names.items()}


def _leaves_one(model: Any, train: Any, arguments: TrainingArguments) -> bool:
    """Whether the last batch holds one image that the model cannot be trained on; not every one."""
    size = arguments.per_device_train_batch_size
    if distributed.size() > 1:  # batches are filled up, then
        return False
    if (len(train) % size != 1 and size != 1) or arguments.dataloader_drop_last:
        return False
    if not any(isinstance(module, BATCH_NORMS) for module in model.modules()):
        return False
    pixels = train[0]["pixel_values"][None].to(next(model.parameters()).device)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), kept_modes(model):
            set_mode(model, True)
            torch.func.functional_call(model, buffers, (), {"pixel_values": pixels})
        return False
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
    if size == 1 or len(train) == 1:
        raise InvalidInputError(
            "a BatchNorm cannot be trained on batches of one image of this size"
        )
    return True


@torch.no_grad()
def accuracy(model: nn.Module, images: Pictures, batch_size: int = 256) -> float:
    """Share of images whose best class is right; in the mode that the model is in."""
    right = 0
    device = next(model.parameters()).device
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        logits: Tensor = model(pixel_values=images.pixels[batch].to(device)).logits
        right += int((logits.argmax(-1).cpu() == images.labels[batch]).sum())
    return right / len(images)
