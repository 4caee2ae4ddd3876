"""Trains a classifier of images and measures it, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import SchedulerType

from modwright.core import distributed
from modwright.core.compat.torch import BATCH_NORMS
from modwright.core.errors import InvalidInputError, unknown_name
from modwright.core.modes import kept_modes, set_mode
from modwright.core.progress import Progress
from modwright.data import Data, stack_rows
from modwright.training.loop import TrainResult, train, warn
from modwright.training.options import ONE_CYCLE, Training
from modwright.training.parametrization import Parametrization

__all__ = ["Settings", "accuracy", "fit", "name_classes"]


@dataclass(frozen=True)
class Settings:
    """How a model is trained.

    Attributes:
        epochs: passes over the data.
        batch_size: rows of a step; several processes share them.
        learning_rate: its height.
        weight_decay: of weights of more than one axis.
        warmup: share of the steps in which the learning rate rises; "one_cycle" has its own, three
            tenths.
        schedule: "one_cycle", or a name that transformers has: "cosine", "linear", "constant".
        clip: the norm that gradients are cut at.
        seed: of the order of rows and of everything random in training.
        average: decay of a running mean of the weights, which the result gets; None has none.
        more: further arguments of ``transformers.TrainingArguments``, as ``bf16``, ``report_to``.
    """

    epochs: float = 10
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    schedule: str = ONE_CYCLE
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
        valid = [ONE_CYCLE, *(kind.value for kind in SchedulerType)]
        if self.schedule not in valid:
            raise unknown_name("schedule", self.schedule, valid)

    def training(self, objective: Any) -> Training:
        """The same in the words of transformers' Trainer."""
        shared = distributed.size()
        if self.batch_size % shared:
            raise InvalidInputError(
                f"batch_size {self.batch_size} cannot be shared by {shared} processes"
            )
        arguments = {
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": self.batch_size // shared,
            "per_device_eval_batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.clip,
            "seed": self.seed,
            "lr_scheduler_type": self.schedule,
            "warmup_steps": self.warmup,
        }
        average = None if self.average is None else float(self.average)
        return Training(objective, None, average, {**arguments, **self.more})


class _EpochEvaluationCallback(TrainerCallback):
    """Evaluates at the last step of every epoch: a checkpoint may be written behind it."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_evaluate |= float(state.epoch).is_integer()


def fit(
    model: Any,
    data: Any,
    test: Any = None,
    settings: Settings | None = None,
    objective: Any = "cross_entropy",
    output: str | Path | None = None,
    resume: bool = False,
    *,
    measure_epochs: bool = False,
    parametrization: Parametrization | str | None = None,
    progress: Progress | None = None,
    log: Callable[[str], None] = warn,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Trains a classifier in place; its classes get the names of the data's classes.

    Args:
        model: takes ``pixel_values`` and gives ``logits``, where it is measured; any other with
            rows and an objective for it.
        data: what it learns from: :func:`~modwright.data.make_data` makes it; or rows.
        test: rows that it is measured on at the end; what the data holds out, unless it is said.
        settings: how long and how fast.
        objective: its name, or itself.
        output: a directory for checkpoints and logs; nothing is kept without one.
        resume: goes on from the newest whole checkpoint in ``output``, to the losses and weights of
            a training that was not stopped.
        measure_epochs: measures the accuracy after every epoch, too.
        parametrization: learning rates and decay by groups of parameters, as itself or by name; the
            objective's own, or :class:`~modwright.training.parametrization.Standard`, without one.
        progress: told of every step; without one transformers shows a bar where there is an
            ``output``.
        log: is told, and warnings say without it, what it will take, that a damaged checkpoint is
            passed over, or that the last batch of an epoch is left out: one row, which a BatchNorm
            cannot be trained on.
        callbacks: of transformers' Trainer, more of them. What they correct after a step (masks,
            tied weights) is corrected before averaged weights take it up.

    Raises:
        InvalidInputError: the model has fewer classes than the data, there is nothing to resume,
            batches of one that a BatchNorm cannot be trained on, or the rows of a step cannot be
            shared by all processes.

    Example:
        >>> from modwright.data import make_data
        >>> from modwright.models import create_model
        >>> data = make_data({"images": "digits", "train": 64})
        >>> sizes = {"depths": [1, 1], "hidden_sizes": [8, 16]}
        >>> model = create_model("poolformer_s12", num_classes=10, **sizes)
        >>> fitted = fit(model, data, settings=Settings(epochs=1), log=lambda said: None)
        >>> fitted.steps, 0 <= fitted.accuracy <= 1
        (1, True)
    """
    settings = settings or Settings()
    if isinstance(data, Data):
        test = data.test if test is None else test
        if model.config.num_labels < len(data.labels):
            raise InvalidInputError(
                f"the model has {model.config.num_labels} classes, the data {len(data.labels)}"
            )
        if data.labels:
            name_classes(model.config, data.labels)
    rows = getattr(data, "train", data)
    if _leaves_one(model, rows, settings):
        settings = replace(settings, more={**settings.more, "dataloader_drop_last": True})
        log(
            f"the last batch of an epoch is left out: of {len(rows)} rows in batches of "
            f"{settings.batch_size} it holds one, which a BatchNorm cannot be trained on"
        )

    def told(sentence: str) -> None:
        if log is not warn or not sentence.startswith("the training: "):  # nothing to warn of
            log(sentence)

    evaluated = {"eval_data": test, "compute_metrics": _top1} if measure_epochs else {}
    found = train(
        model,
        data,
        settings.training(objective),
        **evaluated,
        parametrization=parametrization,
        output=output,
        resume=resume,
        progress=progress,
        log=told,
        callbacks=[*callbacks, *([_EpochEvaluationCallback()] if measure_epochs else [])],
    )
    return found if test is None else replace(found, accuracy=accuracy(model, test))


def name_classes(config: Any, classes: Sequence[str]) -> None:
    """Gives outputs the names of the classes; outputs beyond them are LABEL_i."""
    names = {i: f"LABEL_{i}" for i in range(config.num_labels)} | dict(enumerate(classes))
    config.id2label, config.label2id = names, {name: index for index, name in names.items()}


def _leaves_one(model: Any, rows: Any, settings: Settings) -> bool:
    """Whether the last batch holds one row that the model cannot be trained on; not every one."""
    size = settings.batch_size
    if distributed.size() > 1:  # batches are filled up, then
        return False
    if (len(rows) % size != 1 and size != 1) or settings.more.get("dataloader_drop_last"):
        return False
    if not any(isinstance(module, BATCH_NORMS) for module in model.modules()):
        return False
    pixels = rows[0]["pixel_values"][None].to(next(model.parameters()).device)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), kept_modes(model):
            set_mode(model, True)
            torch.func.functional_call(model, buffers, (), {"pixel_values": pixels})
        return False
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
    if size == 1 or len(rows) == 1:
        raise InvalidInputError(
            "a BatchNorm cannot be trained on batches of one image of this size"
        )
    return True


def _top1(found: Any) -> dict[str, float]:
    """Of all logits and labels of an evaluation of transformers' Trainer."""
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}


@torch.no_grad()
def accuracy(model: nn.Module, rows: Any, batch_size: int = 256) -> float:
    """Share of images whose best class is right; in the mode that the model is in."""
    right = 0
    device = next(model.parameters()).device
    for start in range(0, len(rows), batch_size):
        batch = stack_rows([rows[at] for at in range(start, min(start + batch_size, len(rows)))])
        logits: Tensor = model(pixel_values=batch["pixel_values"].to(device)).logits
        right += int((logits.argmax(-1).cpu() == batch["labels"]).sum())
    return right / len(rows)
