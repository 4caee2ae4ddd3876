"""What stands in a block and is read as a whole."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from modwright.anatomy.projection import Projection
from modwright.anatomy.views.part import store
from modwright.anatomy.views.sublayer import Sublayer

__all__ = ["OpaqueMixer"]


@dataclass
class OpaqueMixer(Sublayer):
    """What stands at the place of an attention or an MLP and is neither: pooling, a convolution.

    It is counted as a whole, and can be removed and replaced.
    """

    writes_residual = ()

    def projections(self) -> dict[str, Projection]:
        """None that are known."""
        return {}

    def parameters(self) -> dict[str, Tensor]:
        stored = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return {name: tensor.detach() for name, tensor in stored.items()}

    def write(self, name: str, value: Tensor) -> None:
        store(self, name, value)

    @property
    def num_parameters(self) -> int:
        own = sum(p.numel() for p in self.module.parameters())
        return own + (self.norm.num_parameters if self.norm is not None else 0)

    def __repr__(self) -> str:
        return f"OpaqueMixer({self.address}: {type(self.module).__name__})"
