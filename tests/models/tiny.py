"""One small config of every architecture: what tests of all of them are run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

__all__ = ["TINY", "tiny"]

TINY: dict[str, dict[str, Any]] = {
    file.stem: yaml.safe_load(file.read_text(encoding="utf-8"))
    for file in sorted((Path(__file__).parent / "small").glob("*.yaml"))
}
"""Model type -> fields; sizes are chosen so that one forward pass takes milliseconds."""


def tiny(model_type: str, **fields: Any) -> Any:
    """The small model of an architecture, with its random weights, in eval mode."""
    from transformers import AutoConfig

    from modwright.models.registry import model_class

    config = AutoConfig.for_model(model_type, **{"num_labels": 5, **TINY[model_type], **fields})
    return model_class(config)(config).eval()
