"""The rotary scaling of a config that gives the frequency factors of a GGUF file."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modwright.core.errors import CheckpointError

__all__ = ["ROTARY_FACTORS", "scale_rotary"]

ROTARY_FACTORS = "rope_freqs.weight"
"""The tensor that rotary frequencies are divided by: Llama 3.1 and later have it."""


def scale_rotary(
    file: Path, config: Any, rotary: dict[str, Any] | None, factors: np.ndarray
) -> None:
    """Find the rotary scaling whose frequencies are the usual ones divided by ``factors``.

    Raises:
        CheckpointError: none is known that gives these.
    """
    factors = factors.astype(np.float64)
    if np.allclose(factors, 1):
        return
    tried: list[dict[str, Any]] = []
    known = rotary is not None and rotary is config.rope_parameters
    known = known and bool(np.isfinite(factors).all()) and float(factors.min()) > 0
    if rotary is not None and known and rotary.get("rope_type", "default") == "default":
        tried = [*_linear(factors), *_llama3(factors, rotary["rope_theta"])]
    for found in tried:
        settings = {**rotary, **found} if rotary else found
        if _gives(config, settings, factors):
            config.rope_parameters = settings
            return
    raise CheckpointError(
        f"{file}: its tensor {ROTARY_FACTORS} divides the rotary frequencies by "
        f"{factors.min():.4g} to {factors.max():.4g}, which no known rotary scaling of "
        f"{config.model_type} does; open the original checkpoint instead"
    )


def _linear(factors: np.ndarray) -> list[dict[str, Any]]:
    if not np.allclose(factors, factors[0]):
        return []
    return [{"rope_type": "linear", "factor": float(factors[0])}]


def _llama3(factors: np.ndarray, base: float) -> list[dict[str, Any]]:
    """Llama 3's scaling: short waves stay, long ones are divided, between them it is smooth.

    Of the three numbers that say where, two are told by the frequencies; the lower bound is one
    original context, as in all that were published.
    """
    factor = float(factors.max())
    common = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0}
    found = [
        common | {"high_freq_factor": 4.0, "original_max_position_embeddings": original}
        for original in (8192, 4096, 2048)
    ]
    # (pairs,): waves of each frequency over one position
    waves = base ** (-np.arange(len(factors)) / len(factors)) / (2 * math.pi)
    between = (factors > 1 + 1e-5) & (factors < factor * (1 - 1e-5))
    if between.sum() >= 2:
        smooth = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
        slope, start = np.polyfit(waves[between], smooth, 1)
        if start < 0 < slope:
            high = 1 - 1 / start
            original = round(slope * (high - 1))
            for bound in (round(high), float(high)):
                found.append(
                    common
                    | {
                        "high_freq_factor": float(bound),
                        "original_max_position_embeddings": original,
                    }
                )
    return found


def _gives(config: Any, settings: dict[str, Any], factors: np.ndarray) -> bool:
    """Whether transformers' own formula leads to the usual frequencies divided by ``factors``."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    tried = deepcopy(config)
    tried.rope_parameters = settings
    try:
        scaled, strength = ROPE_INIT_FUNCTIONS[settings["rope_type"]](tried, torch.device("cpu"))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return False
    pairs = len(factors)
    if scaled.shape != (pairs,) or strength != 1:
        return False
    usual = settings["rope_theta"] ** (-np.arange(pairs) / pairs)
    return bool(np.allclose(scaled.double().numpy() * factors, usual, rtol=1e-4, atol=0))
