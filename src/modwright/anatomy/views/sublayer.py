"""What adds to the residual stream, whatever its kind."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from modwright.anatomy.projection import Projection
from modwright.anatomy.views.part import Norm, Part
from modwright.core.capture import HookPoint

__all__ = ["OpaqueMixer", "Sublayer"]


@dataclass(kw_only=True)
class Sublayer(Part):
    """What adds to the residual stream: an attention or an MLP, with the places to watch it.

    Attributes:
        norm: the norm that is removed with it; None where the block has none of its own.
        resid_pre: the residual stream h that the sublayer (with its norm) reads.
        sublayer_input: what the sublayer proper reads, norm(h) in a pre-norm block.
        sublayer_output: what the sublayer proper returns.
        resid_post: the residual stream after it; None where that is h plus ``sublayer_output``.
        writes_residual: roles of the maps that write to the stream; the others read it.
        generic: modwright's modules that may stand in place of the family's.
    """

    writes_residual: ClassVar[tuple[str, ...]]
    generic: ClassVar[tuple[type[nn.Module], ...]] = ()

    address: str
    module: nn.Module
    norm: Norm | None
    resid_pre: HookPoint
    sublayer_input: HookPoint
    sublayer_output: HookPoint
    resid_post: HookPoint | None = None

    @property
    def is_generic(self) -> bool:
        """The family's own module was replaced by one of modwright's."""
        return isinstance(self.module, self.generic)

    @abstractmethod
    def projections(self) -> dict[str, Projection]:
        """Its linear layers by role: "q", "up" and the like."""

    def members(self) -> Mapping[str, Projection | Norm]:
        """What holds its parameters, by role: its linear layers, and norms inside it."""
        return self.projections()

    def buffers(self) -> dict[str, Tensor]:
        """What a part of modwright's stores beside its weights, by name: index tables and such."""
        return dict(self.module.named_buffers(recurse=False)) if self.is_generic else {}

    def parameters(self) -> dict[str, Tensor]:
        weights = {
            f"{role}.{name}": tensor
            for role, member in self.members().items()
            for name, tensor in member.parameters().items()
        }
        return weights | {name: buffer.detach() for name, buffer in self.buffers().items()}

    def stored_at(self, name: str) -> tuple[nn.Module, str]:
        role, _, leaf = name.rpartition(".")
        member = self.members().get(role)
        return super().stored_at(name) if member is None else member.stored_at(leaf)

    def write(self, name: str, value: Tensor) -> None:
        role, _, leaf = name.rpartition(".")
        member = self.members().get(role)
        if member is None:
            super().write(name, value)
        else:
            member.write(leaf, value)

    @property
    def num_parameters(self) -> int:
        """With the norm that goes when the sublayer goes."""
        own = sum(member.num_parameters for member in self.members().values())
        return own + (self.norm.num_parameters if self.norm is not None else 0)


@dataclass
class OpaqueMixer(Sublayer):
    """What stands at the place of an attention or an MLP and is neither, such as pooling.

    It is counted as a whole, and can be removed and replaced.
    """

    writes_residual = ()

    def projections(self) -> dict[str, Projection]:
        """None that are known."""
        return {}

    def parameters(self) -> dict[str, Tensor]:
        stored = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return {name: tensor.detach() for name, tensor in stored.items()}

    @property
    def num_parameters(self) -> int:
        return super().num_parameters + sum(p.numel() for p in self.module.parameters())

    def __repr__(self) -> str:
        return f"OpaqueMixer({self.address}: {type(self.module).__name__})"
