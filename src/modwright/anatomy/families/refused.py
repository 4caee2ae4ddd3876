"""Model types that look like a known one and cannot be opened, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["REFUSED"]

_MORE_NORMS = (
    "its blocks normalize what attention and MLP return (norms after the sublayers), and no layout "
    "here stands for that"
)
_NORMED = (
    "exaone4 gemma2 gemma3 gemma3_text gemma3n gemma3n_text gemma4 gemma4_text glm4 olmo2 olmo3"
)

REFUSED: Mapping[str, str] = {
    "residual_network": "a network of convolutions: it has no attention and no MLP",
    **dict.fromkeys(_NORMED.split(), _MORE_NORMS),
    "albert": "its layers are one module used many times, so none can be edited alone",
}
