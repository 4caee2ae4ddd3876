"""Measures a model for the report: what it costs, how well it predicts, how fast it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from modwright.anatomy import Anatomy, Block
from modwright.checkpoint.export import runtime_support
from modwright.core.progress import Progress
from modwright.cost import compare_speed, count, measure_speed
from modwright.edits.remodeled import edits_of
from modwright.metrics.generation import generate_sample, repetition
from modwright.recipes.quality import measure_quality, timed, writes_text
from modwright.recipes.schema import Evaluate, Speed
from modwright.report import Stage

__all__ = ["Baseline", "is_same_model", "measure_stage"]


def measure_stage(
    model: Any,
    tokenizer: Any,
    evaluate: Evaluate,
    progress: Progress,
    baseline: Baseline | None = None,
    log: Callable[[str], None] | None = None,
    **info: Any,
) -> Stage:
    """A stage of the report: everything that the recipe asks to measure, plus what is ``info``.

    With a ``baseline`` speed is measured against it, in pairs of neighboring runs.
    """
    anatomy = Anatomy.of(model)
    counted = count(anatomy, length=evaluate.length)
    teacher = baseline.model if baseline is not None else None
    quality, seconds = measure_quality(model, tokenizer, evaluate, progress, teacher, log)
    speed = sample = None
    if evaluate.speed is not None:
        with timed("speed", seconds):
            speed = _speed(model, evaluate.speed, baseline, progress)
    if evaluate.generate is not None and writes_text(model, tokenizer):
        with timed("sample", seconds), progress.phase("sample", 1) as task:
            written = generate_sample(model, tokenizer, **evaluate.generate.model_dump())
            task.advance()
        sample = {
            "prompt": written.prompt,
            "text": written.text,
            "repetition": repetition(written.text),
            "settings": written.settings,
        }
    return Stage(
        cost={name: getattr(counted, name) for name in _COSTS}
        | ({"state_bytes": counted.state_bytes} if counted.state_bytes else {}),
        **quality,
        speed=speed,
        sample=sample,
        shape=[_shape(block) for block in anatomy.blocks],
        servable={entry.runtime: entry.to_dict() for entry in runtime_support(model)},
        seconds={**info.pop("seconds", {}), **seconds},
        **info,
    )


@dataclass(frozen=True)
class Baseline:
    """The baseline and the speed that was measured on it."""

    model: Any
    speed: Mapping[str, Any] | None


_TIMED = (
    "tokens per second of the baseline, by the median of several runs of random tokens; "
    "an edited model's are these times the median ratio of pairs of neighboring runs of both, so "
    "that they can be compared although the machine's speed drifts; the interval of a ratio "
    "encloses its median with 95 % confidence"
)
_COSTS: tuple[str, ...] = ("parameters", "stored_bytes", "prefill_macs", "decode_macs", "kv_bytes")
_COSTS += ("activation_bytes", "recipe")
_RATES = {"prefill": "prefill_tokens_per_second", "decode": "decode_tokens_per_second"}


def _speed(
    model: Any, asked: Speed, baseline: Baseline | None, progress: Progress
) -> dict[str, Any]:
    conditions = asked.model_dump()
    recipe = {"method": _TIMED, "threads": torch.get_num_threads(), **conditions}
    if baseline is None or baseline.speed is None:
        del conditions["max_seconds"]
        timing = measure_speed(model, **conditions, progress=progress)
        return {**{name: getattr(timing, name) for name in _RATES.values()}, "recipe": recipe}
    if is_same_model(baseline.model, model):
        rates = {name: baseline.speed.get(name) for name in _RATES.values()}
        return {**rates, "unchanged": True, "recipe": recipe}
    ratios = compare_speed(baseline.model, model, **conditions, progress=progress).ratios
    rates = dict.fromkeys(_RATES.values())
    for phase, ratio in ratios.items():
        if (before := baseline.speed.get(_RATES[phase])) is not None:
            rates[_RATES[phase]] = before * ratio.median
    info = {phase: asdict(ratio) for phase, ratio in ratios.items()}
    return {**rates, "ratios": info, "recipe": recipe}


def is_same_model(one: Any, other: Any) -> bool:
    """Whether two models have one structure and equal tensors, so that one needs no timing."""
    first, second = one.state_dict(), other.state_dict()
    return (
        type(one) is type(other)
        and edits_of(one.config) == edits_of(other.config)
        and first.keys() == second.keys()
        and all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    )


def _shape(block: Block) -> dict[str, Any]:
    """Widths of a block, as the report draws them."""
    attention, mlp = block.attention, block.mlp
    heads = None
    if attention is not None:
        heads = {
            "heads": attention.num_heads,
            "kv_heads": attention.num_kv_heads,
            "qk": attention.shape.qk_head_dim,
            "v": attention.shape.v_head_dim,
        }
    return {"attention": heads, "mlp": None if mlp is None else mlp.intermediate_size}
