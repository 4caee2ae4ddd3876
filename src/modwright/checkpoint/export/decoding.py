"""Decodes with a traced pair of graphs, prefill and decode, beside the live model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modwright.checkpoint.export.comparing import positions_of
from modwright.checkpoint.export.export_job import ExportJob
from modwright.core.errors import VerificationError
from modwright.core.modes import eval_mode
from modwright.core.subprocess_worker import write_greedily
from modwright.edits.verify import probe_batch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["decode_greedily", "prefill"]

_CACHE = ("cache", "past_key_values")


def prefill(work: ExportJob, graph: Any, batch: Mapping[str, Tensor]) -> Any:
    """Runs the graph that reads a prompt; it gets an empty cache where it was traced with one."""
    from transformers import DynamicCache

    empty = {
        name: DynamicCache(config=work.model.config)
        for name in graph.metadata.kwargs
        if name in _CACHE
    }
    return graph(**batch, **empty)


def decode_greedily(work: ExportJob, graphs: Mapping[str, Any], new_tokens: int = 6) -> str:
    """Writes tokens with the two graphs, the cache handed on, and holds them to ``generate``.

    Returns:
        A sentence on what was written.

    Raises:
        VerificationError: other tokens.
    """
    import torch

    batch = probe_batch(work.model, 1, 5, seed=2)
    mask, written = batch["attention_mask"], batch["input_ids"]
    out = prefill(work, graphs["prefill"], {**batch, "position_ids": positions_of(batch)})
    cache = next(name for name in graphs["decode"].metadata.kwargs if name in _CACHE)
    for _ in range(new_tokens):
        chosen = out["logits"][:, -1:].argmax(-1)
        written = torch.cat((written, chosen), -1)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        out = graphs["decode"](
            input_ids=chosen,
            attention_mask=mask,
            position_ids=mask.sum(-1, keepdim=True) - 1,
            **{cache: out[cache]},
        )
    with torch.no_grad(), eval_mode(work.model):
        live = write_greedily(work.model, batch, new_tokens)
    if not torch.equal(written, live):
        raise VerificationError("prefill and decode write other tokens than the model does")
    return f"wrote the same {new_tokens} tokens, step by step with the cache handed on"
