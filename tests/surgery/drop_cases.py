"""Data, and LLM-Drop in one line, for its tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers import random_data
from modwright.anatomy import Anatomy
from modwright.calibration import CalibrationData
from modwright.data.text import from_sequences
from modwright.edits import Applied
from modwright.surgery import apply, make_method
from modwright.surgery.llm_drop import LlmDrop

__all__ = ["PARTS", "TARGETS", "data", "drop", "method", "removed"]

PARTS = ("attention", "mlp")
TARGETS = (*PARTS, "block", "joint")


def sequences(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 128, (16,), generator=generator) for _ in range(4)]


def data(model: Any = None, seed: int = 0) -> CalibrationData:
    """For a model that reads text, unless another one is given."""
    if model is not None:
        return random_data(model, count=4, length=16, batch_size=2, seed=seed)
    return from_sequences(sequences(seed), 0, batch_size=2)


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
