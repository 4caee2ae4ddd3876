"""What every part of a model has: an address and parameters; and parts that are one module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from modwright.anatomy.projection import Projection
from modwright.core.errors import InvalidInputError
from modwright.nn import CRMSNorm, RestoringCRMSNorm

__all__ = ["Embedding", "LayerScale", "Linear", "ModulePart", "Norm", "OpaqueModule", "Part"]
__all__ += ["PatchEmbedding"]


class Part(ABC):
    """Anything with an address and parameters of its own."""

    address: str
    module: nn.Module

    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """Parameters (and buffers that belong to the structure) by the name that write() takes."""

    def stored_at(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds a tensor of :meth:`parameters`, perhaps with others, and its name
        there."""
        path, _, leaf = name.rpartition(".")
        return self.module.get_submodule(path), leaf

    def write(self, name: str, value: Tensor) -> None:
        """Stores ``value`` under a name of :meth:`parameters`, which shares the model's memory."""
        known = self.parameters()
        if name not in known or known[name].shape != value.shape:
            raise InvalidInputError(
                f"{self.address}: cannot write {name!r} {tuple(value.shape)}; it has "
                + (", ".join(f"{n} {tuple(p.shape)}" for n, p in known.items()) or "nothing")
            )
        known[name].copy_(value)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters().values() if p.is_floating_point())


class ModulePart(Part):
    """A part that is one module with its own ``weight`` and perhaps ``bias``."""

    def __init__(self, module: nn.Module, address: str) -> None:
        self.module, self.address = module, address

    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.module.named_parameters(recurse=False)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address}, {self.num_parameters:,} parameters)"


class OpaqueModule(ModulePart):
    """A module whose inside is not read: it is counted as a whole."""

    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.module.named_parameters()}


class Embedding(ModulePart):
    """A table of vectors, one per token or per position: weight [entries, d].

    A head over the vocabulary is one too: it reads the stream where the others write to it.
    """

    input_axes: ClassVar[Mapping[str, int]] = {"weight": 1}

    @property
    def output_axes(self) -> dict[str, int]:
        """As those of a :class:`Projection`."""
        return dict.fromkeys(self.parameters(), -1)


class Linear(ModulePart):
    """A linear layer of the stream outside the blocks: weight [out, in], perhaps a bias."""

    input_axes, output_axes = Projection.input_axes, Projection.output_axes


class PatchEmbedding(ModulePart):
    """Maps each of ``count`` patches of an image: weight [d, channels, height, width].

    ``count`` is None where images of any size are read.
    """

    output_axes = Projection.output_axes

    def __init__(self, module: nn.Module, address: str, count: int | None) -> None:
        super().__init__(module, address)
        self.count = count


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
