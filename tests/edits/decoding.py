"""Decoding by hand, which every way of generating is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["NEW", "endless", "generate", "greedy_without_cache", "one_row"]

NEW = 7


def endless(model: Any) -> Any:
    """The model without end tokens, so that every row has the same length."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


@torch.no_grad()
def greedy_without_cache(model: Any, batch: dict[str, Tensor], new: int = NEW) -> Tensor:
    """Runs the whole sequence again for every token."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for _ in range(new):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).logits
        ids = torch.cat((ids, logits[:, -1:].argmax(-1)), dim=1)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return ids


def generate(model: Any, batch: dict[str, Tensor], **options: Any) -> Tensor:
    out: Tensor = model.generate(**batch, max_new_tokens=NEW, do_sample=False, **options)
    return out


def one_row(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[:1] for name, tensor in batch.items()}
