"""Normalizations, and what a branch is multiplied by."""

from __future__ import annotations

from torch import Tensor, nn

from modwright.anatomy.views.part import ModulePart
from modwright.core.errors import InvalidInputError
from modwright.nn import CRMSNorm, RestoringCRMSNorm

__all__ = ["LayerScale", "Norm"]


class Norm(ModulePart):
    """A normalization.

    Attributes:
        kind: "layer" (centering), "rms", "crms" (of a zero-mean stream that is stored without one
            coordinate), or "other".
        offset: 1 for norms that multiply by (1 + w).
    """

    def __init__(self, module: nn.Module, address: str) -> None:
        super().__init__(module, address)
        name = type(module).__name__
        self.kind = "rms" if "RMSNorm" in name else "layer" if "LayerNorm" in name else "other"
        if isinstance(module, CRMSNorm | RestoringCRMSNorm):
            self.kind = "crms"
        self.offset = 1.0 if name.startswith(("Gemma", "NemotronLayerNorm1P")) else 0.0

    @property
    def scale(self) -> Tensor | None:
        """(d,): what it multiplies by; None where that is one."""
        weight = self.parameters().get("weight")
        return weight if weight is None or not self.offset else weight + self.offset

    @property
    def bias(self) -> Tensor | None:
        """(d,): what it adds at the end, or None."""
        return self.parameters().get("bias")

    @property
    def eps(self) -> float:
        for name in ("eps", "variance_epsilon"):
            if isinstance(value := getattr(self.module, name, None), float):
                return value
        raise InvalidInputError(f"{self.address}: {type(self.module).__name__} shows no epsilon")


class LayerScale(Norm):
    """What a branch is multiplied by, channel by channel; nothing is normalized."""

    @property
    def scale(self) -> Tensor | None:
        return self.parameters().get("gamma")
