"""A step that trains the model: any data, any objective, the keys of transformers' Trainer."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from typing import Any

from modwright.anatomy import Anatomy
from modwright.checkpoint import Checkpoint, weights_bytes
from modwright.core import distributed
from modwright.core.errors import InvalidInputError
from modwright.data import Data, make_data, resolve_data
from modwright.data.schema import data_schema
from modwright.edits.remodeled import is_plain
from modwright.metrics.registry import Subject
from modwright.recipes.options import option_help
from modwright.recipes.steps.base import StepContext, StepKind, StepOutcome, options_in, step_kind
from modwright.training import Training, train
from modwright.training.checkpoints import newest_checkpoint
from modwright.training.objectives.base import OBJECTIVES, resolve_objective
from modwright.training.options import argument_names

__all__ = ["TrainStep", "goes_on", "learner", "learning_bytes", "trained"]

_KEYS = ("objective", "teacher", "learns", "ema_decay", "data")


@step_kind("train")
@dataclass(frozen=True)
class TrainStep(StepKind):
    """A training.

    Attributes:
        training: how.
        data: the key ``data``: what it learns from.
        objective: its name and its options, as the recipe has them.
    """

    training: Training
    data: Any
    objective: dict[str, Any]

    @classmethod
    def of(cls, given: Any) -> TrainStep:
        keys = options_in(given, "train")
        if "data" not in keys:
            raise InvalidInputError("train: needs the key data, such as {text: FILE}")
        data, objective = resolve_data(keys.pop("data")), keys.get("objective", "next_token")
        found = resolve_objective(objective)
        ((name, options),) = found.items()
        if "teacher" in keys:
            found = {name: {**options, "teacher": keys["teacher"]}}
        return cls(Training.of(keys), data, found)

    @classmethod
    def schema(cls) -> dict[str, Any]:
        names = [name for name in argument_names() if name not in _KEYS]
        objective = {"anyOf": [{"enum": OBJECTIVES.names()}, {"type": "object"}]}
        return {
            "type": "object",
            "properties": {
                **{name: {} for name in (*_KEYS, *names)},
                "objective": objective,
                "data": data_schema(option_help),
            },
            "required": ["data"],
            "additionalProperties": False,
        }

    def title(self) -> str:
        (name,) = self.objective
        return f"train with {name.replace('_', ' ')}"

    def resolved(self) -> dict[str, Any]:
        return {
            "objective": self.objective,
            "data": self.data,
            "learns": self.training.learns,
            "ema_decay": self.training.ema_decay,
            **self.training.arguments,
        }

    def digest(self, opened: Checkpoint) -> str:
        return make_data(self.data, opened.tokenizer).digest

    def images(self, opened: Checkpoint) -> Data | None:
        if not Subject(opened.model).reads_images:
            return None
        return make_data(self.data, opened.tokenizer)

    def memory_estimate(self, anatomy: Anatomy) -> tuple[int, int]:
        return learning_bytes(anatomy)

    def run(self, context: StepContext) -> StepOutcome:
        data = make_data(self.data, context.opened.tokenizer)
        context.log(f"learns from {data.describe()}")
        model = learner(context)
        arguments = {
            "seed": context.seed,
            "use_cpu": model.device.type == "cpu",
            **self.training.arguments,
        }
        began = time.monotonic()
        done = train(
            model,
            data,
            replace(self.training, arguments=arguments),
            source=context.opened.model,
            output=context.directory,
            resume=goes_on(context),
            progress=context.progress,
            log=context.log,
        )
        facts = {"steps": done.steps, "parameters": done.parameters, "data": data.facts()}
        facts["losses"] = [list(entry) for entry in done.losses]
        notes = [*data.notes, *filter(None, [done.stopped])]
        return trained(context, model, self.resolved(), facts, notes, time.monotonic() - began)


def goes_on(context: StepContext) -> bool:
    """Whether the step was stopped before; said alike in every process."""
    return bool(distributed.broadcast(newest_checkpoint(context.directory) is not None))


def learner(context: StepContext) -> Any:
    """The model to train in place: never the source itself, which stays as it is."""
    same = context.model is context.opened.model
    return copy.deepcopy(context.model) if same else context.model


def trained(
    context: StepContext,
    model: Any,
    options: dict[str, Any],
    reasons: dict[str, Any],
    notes: list[str],
    seconds: float,
) -> StepOutcome:
    """What a report holds of a training."""
    info = {"options": options, "reasons": reasons, "notes": notes, "plain": is_plain(model)}
    info |= {"seconds": {"train": seconds}, "source_blocks": context.source_blocks or []}
    return StepOutcome(model, info)


def learning_bytes(anatomy: Anatomy) -> tuple[int, int]:
    """Gradients and AdamW's two moments of all weights, and the weights that are its own."""
    size = weights_bytes(anatomy.model)
    return 3 * size, size
