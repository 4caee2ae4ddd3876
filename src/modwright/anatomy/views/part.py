"""What every part of a model has: an address and parameters that are read and written."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from modwright.core.errors import InvalidInputError

__all__ = ["ModulePart", "OpaqueModule", "Part", "store"]


class Part(ABC):
    """Anything with an address and parameters of its own."""

    address: str
    module: nn.Module

    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """Parameters (and buffers that belong to the structure) by the name that write() takes."""

    def stored_at(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds a tensor of :meth:`parameters`, and its name there.

        Several names may lie in one tensor, as the rows of a fused projection do.
        """
        path, _, leaf = name.rpartition(".")
        return self.module.get_submodule(path), leaf

    @abstractmethod
    def write(self, name: str, value: Tensor) -> None:
        """Stores ``value`` under a name of :meth:`parameters`."""

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters().values() if p.is_floating_point())


def store(part: Part, name: str, value: Tensor) -> None:
    """Writes into what ``part.parameters()`` gives, which shares the model's memory."""
    known = part.parameters()
    if name not in known or known[name].shape != value.shape:
        raise InvalidInputError(
            f"{part.address}: cannot write {name!r} {tuple(value.shape)}; it has "
            + (", ".join(f"{n} {tuple(p.shape)}" for n, p in known.items()) or "nothing")
        )
    known[name].copy_(value)


class ModulePart(Part):
    """A part that is one module with its own ``weight`` and perhaps ``bias``."""

    def __init__(self, module: nn.Module, address: str) -> None:
        self.module, self.address = module, address

    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.module.named_parameters(recurse=False)}

    def write(self, name: str, value: Tensor) -> None:
        store(self, name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address}, {self.num_parameters:,} parameters)"


class OpaqueModule(ModulePart):
    """A module whose inside is not read: it is counted as a whole."""

    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.module.named_parameters()}
