"""Data, and LLM-Drop in one line, for its tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from modwright.anatomy import Anatomy
from modwright.calibration import TokenWindows
from modwright.calibration.text import from_sequences
from modwright.edits import Applied
from modwright.surgery import apply, make_method
from modwright.surgery.llm_drop import LlmDrop

__all__ = ["PARTS", "TARGETS", "data", "drop", "method", "removed"]

PARTS = ("attention", "mlp")
TARGETS = (*PARTS, "block", "joint")


def data(seed: int = 0) -> TokenWindows:
    generator = torch.Generator().manual_seed(seed)
    sequences = [torch.randint(3, 128, (16,), generator=generator) for _ in range(4)]
    return from_sequences(sequences, 0, batch_size=2)


def method(**options: Any) -> LlmDrop:
    found: LlmDrop = make_method("llm_drop", options)
    return found


def removed(model: Any) -> dict[str, list[int]]:
    """Which blocks of a model have no attention and no MLP."""
    blocks = Anatomy.of(model).blocks
    return {part: [b.index for b in blocks if getattr(b, part) is None] for part in PARTS}


def drop(model: Any, config: dict[str, Any], place: Path, **options: Any) -> Applied:
    path = place / "config.json"
    path.write_text(json.dumps(config))
    return apply(model, method(lists=str(path), **options))
