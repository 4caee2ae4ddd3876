"""Trains a model on any data with any objective, in one call."""

from __future__ import annotations

import errno
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from modwright.core import distributed
from modwright.core.errors import InvalidInputError, ModwrightError, WriteFailed, reason
from modwright.core.modes import set_eval
from modwright.core.progress import Progress
from modwright.data import Data
from modwright.training.callbacks import (
    BestStateCallback,
    EMACallback,
    EpochCallback,
    LastLogCallback,
    NoStepLeft,
    NoStepLeftCallback,
    NotFinite,
    StepProgressCallback,
)
from modwright.training.checkpoints import (
    CheckpointCompleteCallback,
    newest_checkpoint,
    remove_incomplete,
)
from modwright.training.estimate import TrainingEstimate, estimate_training, require_resources
from modwright.training.options import Training
from modwright.training.parametrization import Parametrization
from modwright.training.teachers import with_teacher
from modwright.training.trainer import ObjectiveTrainer

__all__ = ["BEST_STATE", "Measured", "TrainResult", "TrainingInterrupted", "quarters"]
__all__ += ["quieten", "run_trainer", "train", "warn"]

BEST_STATE = "best_state.safetensors"


class TrainingInterrupted(ModwrightError):
    """A training was stopped from outside; the model has the best state that was reached."""

    exit_code = 130


@dataclass(frozen=True)
class TrainResult:
    """What came of a training.

    Attributes:
        accuracy: share of test images whose best class is right; None where that was not measured.
        losses: (step, mean loss since the last entry), as they were logged.
        steps: optimizer steps.
        seconds: of the training.
        parameters: of the model, those that are trained.
        log: all entries of the log: loss, learning rate, norm of the gradients, named numbers of
            the objective, and what was measured on the way.
        stopped: why it ended before its last step, in a sentence; else empty.
        best_step: the step whose state the model has, where something was measured to choose it.
        measured: (step, what was measured there), to choose the best state.
        result: what the objective wants done with the model: a plan, or None.
        estimate: what was expected before it started.
    """

    accuracy: float | None
    losses: tuple[tuple[int, float], ...]
    steps: int
    seconds: float
    parameters: int
    log: tuple[Mapping[str, float], ...] = ()
    stopped: str = ""
    best_step: int | None = None
    measured: tuple[tuple[int, Mapping[str, Any]], ...] = ()
    result: Any = None
    estimate: TrainingEstimate | None = None


@dataclass(frozen=True)
class Measured:
    """What chooses the best state of a training.

    Attributes:
        measure: called with the model, in evaluation mode, and the step; gives plain values, of
            which "score" is lower where the model is better.
        steps: at which it is called; 0 is before the first.
    """

    measure: Callable[[Any, int], Mapping[str, Any]]
    steps: Collection[int]


def warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=3)


def train(
    model: Any,
    data: Any,
    training: Training | Mapping[str, Any] | None = None,
    *,
    eval_data: Any = None,
    compute_metrics: Callable[[Any], dict[str, float]] | None = None,
    collate: Callable[[Sequence[Any]], Any] | None = None,
    source: Any = None,
    best: Measured | None = None,
    parametrization: Parametrization | str | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    log: Callable[[str], None] = print,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Trains a model in place; it is in evaluation mode afterwards, with adapters merged.

    What it will take is estimated and said before it starts, and refused if it cannot fit. It stops
    when the loss is not finite: the model then has the best state that was measured, or the one
    before that step. When it is interrupted, or the disk is full, the best state is kept alike.

    Args:
        model: of transformers, or one of ours, perhaps edited.
        data: what :func:`~modwright.data.make_data` makes; or rows, each a mapping of tensors, as
            transformers' Trainer takes them.
        training: how; a mapping has the keys of a recipe.
        eval_data: what ``compute_metrics`` and the evaluations of the arguments are made of; what
            the data holds out, unless it is said.
        compute_metrics: as transformers' Trainer takes it.
        collate: makes a batch of rows; the data's own, or they are stacked, without it.
        source: what the teacher "source" means.
        best: what chooses the best state; the last is the result without it.
        parametrization: learning rates and decay by groups of parameters.
        output: a directory for checkpoints and the best state; nothing is kept without one.
        resume: goes on from the newest whole checkpoint in ``output``.
        progress: told of every step.
        log: is told what it will take, what is left out and why it stopped.
        callbacks: of transformers' Trainer, more of them.

    Raises:
        InvalidInputError: what is asked for does not fit the model, the data or this machine, or
            there is nothing to resume.
        TrainingInterrupted: by Ctrl-C; the model has the best state.
        WriteFailed: a checkpoint cannot be written; the model has the best state.
        ModwrightError: the loss of the first step is not finite.

    Example:
        >>> import modwright
        >>> model = modwright.open("preset:tiny-llama").model
        >>> rows = [{"input_ids": torch.arange(i, i + 8)} for i in range(8)]
        >>> keys = {"max_steps": 2, "learning_rate": 1e-3}
        >>> result = train(model, rows, keys, log=lambda said: None)
        >>> result.steps, result.parameters
        (2, 98736)
    """
    training = training if isinstance(training, Training) else Training.of(training or {})
    objective = with_teacher(training.objective, source)
    if isinstance(data, Data):
        collate, eval_data = collate or data.collate, eval_data or data.test
        data = data.train
    checkpoint = _checkpoint_of(output, resume, log)
    folder = None if output is None else Path(output)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        arguments = training.training_arguments(str(output or scratch), keep=output is not None)
        mean = None if training.ema_decay is None else EMACallback(training.ema_decay)
        chooser = _chooser(best, folder, mean)
        if mean is not None and checkpoint is not None:
            mean.restore(checkpoint)
        watchers: list[TrainerCallback] = [*callbacks, *filter(None, (mean, chooser))]
        watchers.append(EpochCallback(data))
        if progress is not None:
            watchers.append(StepProgressCallback(progress, stack))
        trainer = ObjectiveTrainer(
            model,
            arguments,
            train_dataset=data,
            eval_dataset=eval_data,
            compute_metrics=compute_metrics,
            data_collator=collate,
            objective=objective,
            learns=training.learns,
            one_cycle=training.one_cycle,
            parametrization=parametrization,
            sharded=training.sharded,
            callbacks=[*watchers, *(callback() for callback in _LAST)],
        )
        if mean is not None:
            trainer.averaged = mean.applied_to
        quieten(trainer, output is None or progress is not None)
        with _keeping(trainer, chooser, mean, folder):
            expected = estimate_training(
                trainer, averaged=mean is not None, best=best is not None, keeps=folder is not None
            )
            for said in (*trainer.learned.notes, f"the training: {expected.sentence()}"):
                log(said)
            require_resources(expected, folder)
            began = time.perf_counter()
            stopped = run_trainer(trainer, checkpoint)
            seconds = time.perf_counter() - began
    if stopped:
        log(stopped)
    history = trainer.state.log_history
    return TrainResult(
        None,
        tuple((entry["step"], entry["loss"]) for entry in history if "loss" in entry),
        trainer.state.global_step,
        seconds,
        trainer.learned.num_parameters,
        tuple(map(_without_times, filter(_is_told, history))),
        stopped,
        None if chooser is None or chooser.best is None else chooser.best[1],
        () if chooser is None else tuple(sorted(chooser.values.items())),
        objective.result(model),
        expected,
    )


_LAST = (NoStepLeftCallback, LastLogCallback, CheckpointCompleteCallback)


def _is_told(entry: Mapping[str, float]) -> bool:
    return "loss" in entry or "eval_loss" in entry


def _without_times(entry: Mapping[str, float]) -> dict[str, float]:
    """An entry of the log that is the same whenever the training is done again."""
    return {k: v for k, v in entry.items() if not k.endswith(("_runtime", "_per_second"))}


def _checkpoint_of(output: Any, resume: bool, log: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from; damaged ones are removed, and said."""
    if not resume or output is None:
        if resume:
            raise InvalidInputError("resume needs the output of the training that was stopped")
        return None
    if distributed.is_main():
        for told in remove_incomplete(output):
            log(told)
    found = newest_checkpoint(output)
    if found is None:
        raise InvalidInputError(f"{output} holds no checkpoint to resume from")
    return found


def _chooser(
    best: Measured | None, folder: Path | None, mean: EMACallback | None
) -> BestStateCallback | None:
    if best is None:
        return None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    file = None if folder is None else folder / BEST_STATE
    return BestStateCallback(
        best.measure, best.steps, file, None if mean is None else mean.applied_to
    )


def quieten(trainer: Any, quiet: bool) -> None:
    """No bar, and nothing that transformers prints where it shows none."""
    if quiet:
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)


def run_trainer(trainer: Any, checkpoint: Path | None = None) -> str:
    """Runs the steps; why they ended before the last, in a sentence, or an empty one.

    Raises:
        ModwrightError: the loss of the first step is not finite.
    """
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except NoStepLeft:
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    except NotFinite as error:
        if error.step == 0:
            raise ModwrightError(
                f"{error}: the model or its data give numbers that are not finite, whatever is "
                "learned"
            ) from None
        rate = trainer.args.learning_rate
        return (
            f"the training stopped: {error}; a learning rate below {rate:g}, warmup_steps or "
            "float32 may help"
        )
    return ""


@contextmanager
def _keeping(
    trainer: ObjectiveTrainer,
    chooser: BestStateCallback | None,
    mean: EMACallback | None,
    folder: Path | None,
) -> Iterator[None]:
    """Whatever ends the training, the model has its best state afterwards, adapters merged."""
    try:
        yield
    except KeyboardInterrupt:
        step = _settle(trainer, chooser, mean)
        kept = f"; {folder} has what it goes on from" if folder is not None else ""
        raise TrainingInterrupted(
            f"interrupted after step {trainer.state.global_step}; the model has the state of step "
            f"{step}{kept}"
        ) from None
    except BaseException as error:
        if not _is_full_disk(error):
            trainer.learned.finish()
            raise
        step = _settle(trainer, chooser, mean)
        raise WriteFailed(
            f"cannot write after step {trainer.state.global_step}: {reason(error)}; the model has "
            f"the state of step {step}"
        ) from error
    distributed.barrier()  # the main process writes the best state, and all read it
    _settle(trainer, chooser, mean)


def _settle(
    trainer: ObjectiveTrainer, chooser: BestStateCallback | None, mean: EMACallback | None
) -> int:
    """Gives the model the state that is to come out, and says of which step it is."""
    model: Any = trainer.model
    step = int(trainer.state.global_step if trainer.left_at is None else trainer.left_at)
    if chooser is not None and chooser.best is not None:
        chooser.restore(model)
        step = chooser.best[1]
    elif mean is not None and mean.mean and trainer.left_at is None:
        model.load_state_dict(mean.whole(), strict=False)
    trainer.learned.finish()
    set_eval(model)
    return step


def _is_full_disk(error: BaseException) -> bool:
    """A file could not be written; torch and safetensors raise errors of their own for it."""
    if isinstance(error, WriteFailed | SafetensorError):
        return True
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
    return isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error)


def quarters(steps: int) -> list[int]:
    """The first step, every quarter and the last, each once.

    Example:
        >>> quarters(10), quarters(2)
        ([0, 3, 5, 8, 10], [0, 1, 2])
    """
    return sorted({math.floor(steps * part / 4 + 0.5) for part in range(5)})
