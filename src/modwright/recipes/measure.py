"""Measures a model for the report: what it costs, how well it predicts, how fast it is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from modwright.anatomy import Anatomy
from modwright.checkpoint.export import serving_table
from modwright.core.progress import Progress
from modwright.cost import compare_speed, count, measure_speed
from modwright.recipes.quality import measure_quality
from modwright.recipes.schema import Evaluate, Speed
from modwright.recipes.texts import writes_text
from modwright.report import Stage
from modwright.tasks.generation import generate_sample, repetition

__all__ = ["Baseline", "measure_stage", "servable", "shape_of"]


def measure_stage(
    model: Any,
    tokenizer: Any,
    evaluate: Evaluate,
    progress: Progress,
    baseline: Baseline | None = None,
    **told: Any,
) -> Stage:
    """A stage of the report: everything that the recipe asks to measure, plus what is ``told``.

    With a ``baseline`` speed is measured against it, in turns.
    """
    anatomy = Anatomy.of(model)
    seconds: dict[str, float] = dict(told.pop("seconds", {}))
    writes = writes_text(model, tokenizer)
    counted = count(anatomy, length=evaluate.length)
    cost = {
        name: getattr(counted, name)
        for name in (
            "parameters",
            "stored_bytes",
            "prefill_macs",
            "decode_macs",
            "kv_bytes",
            "activation_bytes",
            "recipe",
        )
    }
    speed = sample = None
    teacher = baseline.model if baseline is not None else None
    quality, spent = measure_quality(model, tokenizer, evaluate, progress, teacher)
    seconds.update(spent)
    if evaluate.speed is not None:
        start = time.monotonic()
        speed = _speed(model, evaluate.speed, baseline, progress)
        seconds["speed"] = time.monotonic() - start
    if writes and evaluate.generate is not None:
        start = time.monotonic()
        with progress.phase("sample", 1) as task:
            written = generate_sample(model, tokenizer, **evaluate.generate.model_dump())
            task.advance()
        sample = {
            "prompt": written.prompt,
            "text": written.text,
            "repetition": repetition(written.text),
            "settings": written.settings,
        }
        seconds["sample"] = time.monotonic() - start
    return Stage(
        cost=cost,
        **quality,
        speed=speed,
        sample=sample,
        shape=shape_of(anatomy),
        servable=servable(model),
        seconds=seconds,
        **told,
    )


@dataclass(frozen=True)
class Baseline:
    """The model as it came and the speed that was measured on it."""

    model: Any
    speed: Mapping[str, Any] | None


_TIMED = (
    "tokens per second of the model as it came, by the median of several runs of random tokens; an "
    "edited model's are these times the median ratio of runs of both in turns, so that they can be "
    "compared although the machine's speed drifts"
)
_RATES = {"prefill": "prefill_tokens_per_second", "decode": "decode_tokens_per_second"}


def _speed(
    model: Any, asked: Speed, baseline: Baseline | None, progress: Progress
) -> dict[str, Any]:
    conditions = asked.model_dump()
    recipe = {"method": _TIMED, "threads": torch.get_num_threads(), **conditions}
    if baseline is None or baseline.speed is None:
        timing = measure_speed(model, **conditions, progress=progress)
        return {**{name: getattr(timing, name) for name in _RATES.values()}, "recipe": recipe}
    ratios = compare_speed(baseline.model, model, **conditions, progress=progress).ratios
    rates: dict[str, Any] = {}
    for phase, name in _RATES.items():
        before = baseline.speed.get(name)
        rates[name] = None if before is None or phase not in ratios else before * ratios[phase]
    return {**rates, "recipe": recipe}


def shape_of(anatomy: Anatomy) -> list[dict[str, Any]]:
    """Widths of every block, as the report draws them."""
    shapes: list[dict[str, Any]] = []
    for block in anatomy.blocks:
        attention, mlp = block.attention, block.mlp
        shapes.append(
            {
                "attention": None
                if attention is None
                else {
                    "heads": attention.num_heads,
                    "kv_heads": attention.num_kv_heads,
                    "qk": attention.shape.qk_head_dim,
                    "v": attention.shape.v_head_dim,
                },
                "mlp": None if mlp is None else mlp.intermediate_size,
            }
        )
    return shapes


def servable(model: Any) -> dict[str, dict[str, str]]:
    """Which runtimes take a model's checkpoint, and why not, as a report has it."""
    return {entry.runtime: entry.to_json() for entry in serving_table(model)}
