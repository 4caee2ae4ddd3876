"""Measures a model for the report: what it costs, and all that the recipe asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modwright.anatomy import Anatomy, Block
from modwright.checkpoint.export import runtime_support
from modwright.core.progress import Progress
from modwright.cost import count
from modwright.metrics.registry import Subject
from modwright.recipes.quality import measure_all, supported
from modwright.recipes.schema import Evaluate
from modwright.report import Stage

__all__ = ["measure_stage"]

_COSTS: tuple[str, ...] = ("parameters", "stored_bytes", "prefill_macs", "decode_macs", "kv_bytes")
_COSTS += ("activation_bytes", "recipe")


def measure_stage(
    subject: Subject,
    evaluate: Evaluate,
    progress: Progress,
    log: Callable[[str], None] = lambda message: None,
    **info: Any,
) -> Stage:
    """A stage of the report: everything that the recipe asks to measure, plus what is ``info``.

    Where the subject has a reference, the baseline, metrics that compare are measured beside it.
    """
    anatomy = Anatomy.of(subject.model)
    counted = count(anatomy, length=evaluate.length)
    metrics, left_out = supported(evaluate, subject)
    if subject.reference is None:
        for note in left_out:
            log(note)
    measured, seconds = measure_all(metrics, subject, progress, log)
    return Stage(
        cost={name: getattr(counted, name) for name in _COSTS}
        | ({"state_bytes": counted.state_bytes} if counted.state_bytes else {}),
        measured=measured,
        shape=[_shape(block) for block in anatomy.blocks],
        servable={entry.runtime: entry.to_dict() for entry in runtime_support(subject.model)},
        seconds={**info.pop("seconds", {}), **seconds},
        **info,
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
