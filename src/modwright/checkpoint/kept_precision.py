"""Stored tensors that components keep in float32, and what to say of those that were narrower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from modwright.edits.precision import kept_in_float32

if TYPE_CHECKING:
    from modwright.checkpoint.directory import StoredTensor

__all__ = ["describe_kept", "kept_tensors"]

_NARROW = ("F16", "BF16")


def kept_tensors(model: Any, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Those of a file's tensors, by their names there, that a model keeps in float32.

    The names of a backbone and of a model with a head differ by a prefix. None keeps nothing.
    """
    ends = [] if model is None else [f".{name}" for name in kept_in_float32(model)]
    return {
        key: tensor
        for key, tensor in stored.items()
        if any(f".{key}".endswith(end) or end.endswith(f".{key}") for end in ends)
    }


def describe_kept(
    kept: Mapping[str, StoredTensor], asked: torch.dtype | None = None
) -> tuple[str, ...]:
    """Sentences on tensors that are float32 though they are stored, or asked for, narrower."""
    narrow = {key: tensor.dtype for key, tensor in kept.items() if tensor.dtype in _NARROW}
    others = [key for key in kept if key not in narrow and asked in (torch.float16, torch.bfloat16)]
    said = []
    for keys, why in (
        (list(narrow), f"and stored as {' and '.join(sorted(set(narrow.values())))}"),
        (others, f"not {asked}".replace("torch.", "")),
    ):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            said.append(
                f"{', '.join(keys[:3])}{more}: opened as float32, as the component asks, {why}."
            )
    return tuple(said)
