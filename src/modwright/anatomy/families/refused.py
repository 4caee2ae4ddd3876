"""Model types that look like a known one and cannot be opened, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["reason_against", "refused_types"]

_MORE_NORMS = (
    "its blocks normalize what attention and MLP return (norms after the sublayers), and no layout "
    "here stands for that"
)
_SHARED = "its layers are one module used many times, so none can be edited alone"

_REASONS: Mapping[str, str] = {
    "residual_network": "a network of convolutions: it has no attention and no MLP",
    **dict.fromkeys(
        (
            "exaone4",
            "gemma2",
            "gemma3",
            "gemma3_text",
            "gemma3n",
            "gemma3n_text",
            "gemma4",
            "gemma4_text",
            "glm4",
            "olmo2",
            "olmo3",
        ),
        _MORE_NORMS,
    ),
    "albert": _SHARED,
}


def reason_against(model_type: str, config: Any) -> str:
    """Why a model that no family serves cannot be opened; empty where nothing more is known.

    Example:
        >>> reason_against("albert", None)
        'its layers are one module used many times, so none can be edited alone'
    """
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder with a decoder, and there is no part for cross-attention"
    return _REASONS.get(model_type, "")


def refused_types() -> dict[str, str]:
    """Model types that are known and cannot be opened, each with the reason.

    Example:
        >>> "gemma2" in refused_types()
        True
    """
    return dict(_REASONS)
