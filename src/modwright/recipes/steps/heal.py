"""A step that heals: the model learns from what the recipe opened, judged by held-out texts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from modwright.anatomy import Anatomy
from modwright.checkpoint import Checkpoint
from modwright.checkpoint import open as open_checkpoint
from modwright.checkpoint.source import locate
from modwright.core.errors import InvalidInputError, unknown_name
from modwright.core.options import make_options
from modwright.data import make_data, resolve_data
from modwright.data.schema import data_schema
from modwright.data.texts import default_texts, held_out_texts
from modwright.recipes.options import option_help
from modwright.recipes.steps.base import StepContext, StepKind, StepOutcome, options_in, step_kind
from modwright.recipes.steps.train import goes_on, learner, learning_bytes, trained
from modwright.training import Heal, HealResult, heal
from modwright.training.options import argument_names
from modwright.training.teachers import SOURCE

__all__ = ["HealStep"]


def _learned() -> list[dict[str, str]]:
    return [{"text": name} for name in default_texts()]


def _held_out() -> dict[str, dict[str, str]]:
    return {name: {"text": name} for name in held_out_texts()}


@step_kind("heal")
@dataclass(frozen=True)
class HealStep(StepKind):
    """A healing.

    Attributes:
        options: how.
        data: the key ``data``: what it learns from; news and the language reference of Python, in
            turn, unless it is said.
        held_out: texts by name that judge it.
        teacher: "source", or the path of another baseline.
    """

    options: Heal
    data: Any = field(default_factory=_learned)
    held_out: Mapping[str, Any] = field(default_factory=_held_out)
    teacher: str = SOURCE

    @classmethod
    def of(cls, given: Any) -> HealStep:
        keys = options_in(given, "heal")
        own = {name: keys.pop(name) for name in ("data", "held_out", "teacher") if name in keys}
        taken = [one.name for one in dataclasses.fields(Heal)]
        arguments = {name: keys.pop(name) for name in list(keys) if name in argument_names()}
        if "learning_rate" in arguments:
            keys["learning_rate"] = arguments.pop("learning_rate")
        for key in keys:
            if key not in taken:
                raise unknown_name("key of heal", key, ["data", "held_out", "teacher", *taken])
        options = {**keys, "arguments": {**keys.pop("arguments", {}), **arguments}}
        for name in ("minutes", "learning_rate", "own_loss", "temperature"):
            if isinstance(options.get(name), int | str) and not isinstance(options[name], bool):
                with suppress(ValueError):  # YAML takes 1e-4 for text
                    options[name] = float(options[name])
        if isinstance(own.get("held_out"), str | list):
            texts = own["held_out"]
            own["held_out"] = {one: one for one in ([texts] if isinstance(texts, str) else texts)}
        for text in (own.get("data", _learned()), *own.get("held_out", {}).values()):
            resolve_data(text)
        return cls(make_options(Heal, "heal", options), **own)

    @classmethod
    def schema(cls) -> dict[str, Any]:
        found = TypeAdapter(Heal).json_schema()
        data = data_schema(option_help)
        others: dict[str, Any] = {name: {} for name in argument_names()}
        own = {"data": data, "held_out": {}, "teacher": {"type": "string"}}
        properties = {**others, **found["properties"], **own}
        return {**found, "properties": properties, "additionalProperties": False}

    def title(self) -> str:
        options = self.options
        if options.minutes is not None:
            return f"heal for {options.minutes:g} minutes"
        if "max_steps" in options.arguments:
            return f"heal for {options.arguments['max_steps']} steps"
        return f"heal on {options.tokens or 16_384:,} tokens"

    def resolved(self) -> dict[str, Any]:
        own = {"data": self.data, "held_out": dict(self.held_out), "teacher": self.teacher}
        return {**dataclasses.asdict(self.options), **own}

    def digest(self, opened: Checkpoint) -> str:
        if opened.tokenizer is None:
            raise InvalidInputError(f"{opened.source.name} has no tokenizer")
        if self.teacher != SOURCE:
            locate(self.teacher)
        _ = self.options.rows  # refused where the processes cannot share a step
        return make_data(self.data, opened.tokenizer).digest

    def memory_estimate(self, anatomy: Anatomy) -> tuple[int, int]:
        return learning_bytes(anatomy)

    def run(self, context: StepContext) -> StepOutcome:
        opened, model = context.opened, learner(context)
        is_source = self.teacher == SOURCE
        teacher = opened.model if is_source else open_checkpoint(self.teacher).model
        arguments = {"seed": context.seed, "use_cpu": model.device.type == "cpu"}
        arguments |= dict(self.options.arguments)
        began = time.monotonic()
        done = heal(
            model,
            teacher,
            opened.tokenizer,
            self.data,
            self.held_out,
            dataclasses.replace(self.options, arguments=arguments),
            output=context.directory,
            resume=goes_on(context),
            progress=context.progress,
            log=context.log,
        )
        options = {**done.options, "data": self.data, "held_out": dict(self.held_out)}
        notes = [*done.notes, *filter(None, [done.sentence])]
        return trained(context, model, options, _facts(done), notes, time.monotonic() - began)


def _facts(done: HealResult) -> dict[str, Any]:
    """The curve over tokens of each held-out text, between the baseline and the control."""
    found: dict[str, Any] = {"steps": done.steps, "best_step": done.best_step}
    found |= {"parameters": done.parameters, "gap_closed": done.to_dict()["gap_closed"]}
    for name, baseline in done.baseline.items():
        rows = {"baseline": baseline}
        rows |= {f"{point.tokens:,} tokens": point.texts[name] for point in done.curve}
        rows |= {} if done.control is None else {"control": done.control[name]}
        found[f"on {name}"] = {
            row: {key: value for key, value in one.to_dict().items() if key != "tokens"}
            for row, one in rows.items()
        }
    return found
