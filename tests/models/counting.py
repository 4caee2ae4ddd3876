"""Parameters and products of a variant against those of the released code."""

from __future__ import annotations

import pytest
import torch

from modwright.cost import forward_macs
from modwright.models import create_model

__all__ = ["check_counts"]


def check_counts(name: str, parameters: int, macs: float | None) -> None:
    """Parameters exactly; billions of products, where they are known, within a thousandth."""
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    if macs is not None:
        counted = forward_macs(model, 1, 3, *model.config.size)
        assert counted / 1e9 == pytest.approx(macs, rel=1e-3)
