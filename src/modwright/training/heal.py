"""Healing: a model that was cut learns from the one that it was made of, and is judged by texts
that it has not seen."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from modwright.anatomy.coerce import model_of
from modwright.core import distributed
from modwright.core.errors import InvalidInputError
from modwright.core.files import read_json, write_file
from modwright.core.options import make_options
from modwright.core.progress import Progress
from modwright.data import Data, make_data
from modwright.data.text import tokenizer_of
from modwright.training.checkpoints import newest_checkpoint
from modwright.training.heal_options import Heal
from modwright.training.heal_result import HealPoint, HealResult, summary_sentence
from modwright.training.held_out import (
    HeldOut,
    HeldOutTexts,
    compared_tokens,
)
from modwright.training.loop import Measured, TrainResult, quarters, train
from modwright.training.objectives import Distillation, NextToken
from modwright.training.teachers import StoredTeacher, as_teacher, model_of_teacher

__all__ = ["Heal", "heal"]

_TIMED = 10
_TOKENS = 16_384
_NOTED = "heal.json"
clock = time.perf_counter
"""What is asked for the time, before the first step and never again."""


@dataclass(frozen=True)
class _Job:
    """One healing, from here on the same for the model and for its control."""

    options: Heal
    data: Any
    collate: Callable[[Sequence[Any]], Any] | None
    texts: HeldOutTexts
    objective: Any
    log: Callable[[str], None]
    progress: Progress | None
    steps: int = 0

    def run(
        self,
        model: Any,
        output: Path | None,
        resume: bool = False,
        only: int | None = None,
    ) -> TrainResult:
        """Measured at every quarter, the best state kept; or the state of ``only`` one step."""

        def measure(now: Any, step: int) -> dict[str, Any]:
            found = self.texts.measure(now)
            score = sum(one.divergence for one in found.values()) / len(found)
            return {"score": score, **{name: one.to_dict() for name, one in found.items()}}

        return train(
            model,
            self.data,
            self.options.training(self.steps, self.objective),
            collate=self.collate,
            best=Measured(measure, quarters(self.steps) if only is None else [only]),
            output=output,
            resume=resume,
            progress=self.progress,
            log=self.log,
        )


def heal(
    model: Any,
    teacher: Any,
    tokenizer: Any,
    data: Any,
    held_out: Mapping[str, Any] | Sequence[str] | str,
    options: Heal | Mapping[str, Any] | None = None,
    *,
    answers: StoredTeacher | str | Path | None = None,
    collate: Callable[[Sequence[Any]], Any] | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    log: Callable[[str], None] = print,
) -> HealResult:
    """Heals a model in place: it learns what its teacher says of a text.

    Held-out texts are measured before, at every quarter and after; the state that is nearest to the
    teacher there is what the model has in the end, which may be the one before.

    Args:
        model: that was cut; an opened checkpoint or the result of an edit, too.
        teacher: the baseline, which stays bit-equal.
        tokenizer: of both, or what holds it.
        data: what it learns from: the key ``data`` of a recipe, as a text, or several of them,
            which are taken in turn; what ``make_data`` makes of it; or rows, whose labels say at
            which tokens (-100: at none).
        held_out: texts that judge, by name, or packaged names and paths; one is of another origin
            than the data.
        options: how; a mapping has its keys.
        answers: a file of the teacher's best answers to the data, in place of its live ones.
        collate: makes a batch of rows of several lengths.
        output: a directory for checkpoints; nothing is kept without one.
        resume: goes on from the newest checkpoint there, if there is one.
        progress: told of every step.
        log: is told what it will take, and what is to be known of the result.

    Raises:
        InvalidInputError: an option out of its range, too little text, too few minutes, a held-out
            text that is trained on, or models that cannot be compared.
        TrainingInterrupted: by Ctrl-C; the model has its best state.

    Example:
        ``heal(edited, "smollm2-135m", tokenizer, "lee-background", "lee").sentence``
    """
    began = clock()
    options = options if isinstance(options, Heal) else make_options(Heal, "heal", options)
    model, tokenizer = model_of(model), tokenizer_of(tokenizer)
    baseline = model_of_teacher(as_teacher(teacher))
    common = compared_tokens(model, baseline, tokenizer)
    found: Any = data
    if not isinstance(data, Data) and not _is_rows(data):
        found = make_data(_asked(data, options.length), tokenizer)
    rows, collate = getattr(found, "train", found), collate or getattr(found, "collate", None)
    options = dataclasses.replace(options, length=max(len(rows[0]["input_ids"]), 2))
    sizes = options.held_out_windows, options.held_out_length
    texts = HeldOutTexts(baseline, tokenizer, _named(held_out), *sizes, vocab_size=common)
    for name, sources in texts.sources.items():
        if set(sources) & set(getattr(found, "sources", ())):
            raise InvalidInputError(
                f"the held-out text {name!r} is what the model learns from; hold another one out"
            )
    objective = _objective(options, baseline, answers, rows, tokenizer, common)
    notes = (
        []
        if common is None
        else [f"the vocabularies are padded to different sizes; {common} tokens are compared"]
    )
    folder = None if output is None else Path(output)
    job = _Job(options, rows, collate, texts, objective, log, progress)
    steps = _steps(job, model, folder if resume else None, began)
    job = dataclasses.replace(job, steps=steps)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    if folder is not None and distributed.is_main():
        write_file(folder / _NOTED, json.dumps({"max_steps": steps}))
    times = steps * options.step_tokens / (len(rows) * options.length)
    if times > 1.01:
        notes.append(f"the text is read {times:.1f} times")
    of_teacher = texts.measure(baseline)
    reads_on = resume and folder is not None and newest_checkpoint(folder) is not None
    done = job.run(model, folder, reads_on)
    control, told = _control(job, baseline, of_teacher, folder, done.best_step or 0)
    result = HealResult(
        baseline=of_teacher,
        curve=_curve(done, options),
        control=control,
        best_step=done.best_step or 0,
        steps=done.steps,
        seconds=done.seconds,
        parameters=done.parameters,
        notes=(*notes, *told, *filter(None, [done.stopped])),
        options=_resolved(options, steps),
    )
    result = dataclasses.replace(result, sentence=summary_sentence(result, options.own_loss))
    for said in (*notes, *told, *filter(None, [result.sentence])):
        log(said)
    return result


def _is_rows(data: Any) -> bool:
    """Rows of one's own, which are taken as they are, labels and padding included."""
    if isinstance(data, str | Mapping) or not hasattr(data, "__getitem__") or not len(data):
        return False
    first = data[0]
    return isinstance(first, Mapping) and all(isinstance(one, Tensor) for one in first.values())


def _named(held_out: Any) -> dict[str, Any]:
    """Texts by name; those that are names or paths are called so."""
    if isinstance(held_out, Mapping):
        return dict(held_out)
    return {text: text for text in ([held_out] if isinstance(held_out, str) else held_out)}


def _asked(data: Any, length: int) -> Any:
    """The key ``data`` with the length of a window, where texts do not say their own."""
    entries = [data] if isinstance(data, str | Mapping) else list(data)
    named = [{"text": one} if isinstance(one, str) else dict(one) for one in entries]
    return [{"length": length, **one} if "text" in one else one for one in named]


def _objective(
    options: Heal,
    baseline: Any,
    answers: Any,
    rows: Any,
    tokenizer: Any,
    common: int | None,
) -> Any:
    """The divergence from the teacher, with or without the text's own loss."""
    if options.own_loss == 1:
        if answers is not None:
            raise InvalidInputError("heal: own_loss 1 asks no teacher, so it takes no answers")
        return NextToken()
    teacher: Any = baseline
    if answers is not None:
        teacher = answers if isinstance(answers, StoredTeacher) else StoredTeacher(answers)
        teacher.check_data(tokenizer, (rows[index] for index in range(len(rows))))
    weight = 1 - options.own_loss
    return Distillation(teacher, weight, options.temperature, vocab_size=common)


def _steps(job: _Job, model: Any, noted: Path | None, began: float) -> int:
    """Optimizer steps: as given, as noted by the healing that goes on, or as the minutes allow."""
    options = job.options
    told = None if noted is None else read_json(noted / _NOTED)
    if isinstance(told, dict) and isinstance(told.get("max_steps"), int):
        return int(told["max_steps"])
    if "max_steps" in options.arguments:
        return int(options.arguments["max_steps"])
    if options.minutes is None:
        return max(math.ceil((options.tokens or _TOKENS) / options.step_tokens), 1)
    # What is timed is the main process's time in all: they take the same number of steps.
    before = clock()
    job.texts.measure(model)
    measured = distributed.broadcast(clock() - before)
    before = clock()
    tried = copy.deepcopy(model)
    asked = options.training(_TIMED, job.objective)
    train(tried, job.data, asked, collate=job.collate, log=lambda said: None)
    each = distributed.broadcast((clock() - before) / _TIMED)
    spent = distributed.broadcast(clock() - began)
    del tried
    # Still to come: five measurements of the model, and one of its teacher.
    left = options.minutes * 60 - spent - 6 * measured
    steps = int(left / each)
    if steps < 1:
        least = (spent + 6 * measured + each) / 60
        raise InvalidInputError(
            f"heal: {options.minutes:g} minutes are too few: a step takes {each:.1f} s and the "
            f"held-out texts {measured:.1f} s, so {least:.1f} minutes are the least"
        )
    return steps


def _control(
    job: _Job, baseline: Any, of_teacher: dict[str, HeldOut], folder: Path | None, step: int
) -> tuple[dict[str, HeldOut] | None, list[str]]:
    """The baseline trained the same way, after as many steps; and what is to be said of it."""
    if job.options.own_loss == 0:
        said = "the control of a healing without the text's own loss is the baseline itself"
        return (of_teacher, [said]) if job.options.control else (None, [])
    if not job.options.control:
        return None, [
            "the text's own loss teaches its domain, too; control: true trains the baseline the "
            "same way, and tells the two apart"
        ]
    if not step:
        return of_teacher, []
    twin = copy.deepcopy(baseline)
    place = None if folder is None else folder / "control"
    job.run(twin, place, place is not None and newest_checkpoint(place) is not None, only=step)
    return job.texts.measure(twin), []


def _curve(done: TrainResult, options: Heal) -> tuple[HealPoint, ...]:
    return tuple(
        HealPoint(
            step,
            step * options.step_tokens,
            {name: HeldOut(**one) for name, one in found.items() if name != "score"},
        )
        for step, found in done.measured
    )


def _resolved(options: Heal, steps: int) -> dict[str, Any]:
    """The options with the number of steps, which make the same healing again."""
    plain = dataclasses.asdict(options)
    plain |= {"minutes": None, "learning_rate": options.rate}
    plain["tokens"] = None if options.minutes is not None else options.tokens
    plain["arguments"] = {**options.arguments, "max_steps": steps}
    return plain
