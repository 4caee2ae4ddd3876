"""What every part of a model has: an address and parameters; and parts that are one module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

from torch import Tensor, nn

from modwright.anatomy.forward_pass import Pass
from modwright.anatomy.projection import FactoredProjection, Projection, Stored, linear_layer
from modwright.core.errors import InvalidInputError, UnsupportedArchitecture
from modwright.nn import CRMSNorm, RestoringCRMSNorm

__all__ = ["Activation", "Convolution", "Embedding", "LayerScale", "Linear", "ModulePart", "Norm"]
__all__ += ["OpaqueModule", "Part", "PatchEmbedding"]


class Part(ABC):
    """Anything with an address and parameters of its own.

    Attributes:
        encloses_parts: its module may hold modules that are parts of their own.
        is_opaque: what in it reads and writes the residual stream is not known.
        multiplies: it computes matrix products; what else its module may hold does not count.
        normalizes: it is a normalization.
    """

    encloses_parts: ClassVar[bool] = False
    is_opaque: ClassVar[bool] = False
    normalizes: ClassVar[bool] = False
    multiplies: bool = True

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

    def aliases(self) -> dict[str, str]:
        """Other names under which a plan may give values of it -> names of :meth:`parameters`."""
        return {}

    def counted_maps(self) -> dict[str, Projection]:
        """Linear layers in it whose products are counted while the model runs, by role."""
        return {}

    @property
    def linear(self) -> Projection | None:
        """The part as one linear layer; None where it is none."""
        return None

    def modules(self) -> list[nn.Module]:
        """Every module that holds tensors of it, some perhaps twice."""
        return list(self.module.modules())

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters().values() if p.is_floating_point())

    @property
    def kind(self) -> str:
        """Its word in tables of costs: of its class, and "head" for what makes logits."""
        return "head" if self.address == "head" else type(self).__name__.lower()

    def describe(self) -> str:
        """What it is, in words and sizes."""
        return type(self).__name__.lower()

    def macs(self, run: Pass) -> int:
        """Multiply-accumulates in one pass; matrix products only.

        Raises:
            UnsupportedArchitecture: there is no formula, or what it depends on is not known.
        """
        raise UnsupportedArchitecture(
            f"{self.address}: no formula for the cost of a {type(self).__name__}; a view of "
            "another kind overrides `macs`"
        )

    def own_macs(self, batch: int, length: int, cached: int = 0) -> int | None:
        """What its module itself says that one call costs; None where it says nothing."""
        return None

    def activation_width(self, scored: int = 0) -> int:
        """Numbers per position that a pass cannot do without while the part runs, apart from the
        stream that it reads; 0 where that is not known.

        Args:
            scored: positions of which an attention keeps scores and weights.
        """
        return 0


class ModulePart(Stored, Part):
    """A part that is one module with its own ``weight`` and perhaps ``bias``."""

    def __init__(self, module: nn.Module, address: str) -> None:
        self.module, self.address = module, address

    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.module.named_parameters(recurse=False)}

    @property
    def linear(self) -> Projection | None:
        return linear_layer(self.module, self.address)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address}, {self.num_parameters:,} parameters)"


class OpaqueModule(ModulePart):
    """A module whose inside is not read: it is counted as a whole."""

    is_opaque = True

    def describe(self) -> str:
        return type(self.module).__name__

    def macs(self, run: Pass) -> int:
        """As it was counted while the model ran."""
        if self.address in run.counted:
            return run.sequences * run.counted[self.address]
        raise UnsupportedArchitecture(f"{self.address}: its cost is known of a running model only")

    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.module.named_parameters()}


class Activation(OpaqueModule):
    """An activation that has parameters: those of its module, and its buffers."""

    def parameters(self) -> dict[str, Tensor]:
        buffers = {name: buffer.detach() for name, buffer in self.module.named_buffers()}
        return super().parameters() | buffers


class Embedding(ModulePart):
    """A table of vectors, one per token or per position: weight [entries, d].

    A head over the vocabulary is one too: it reads the stream where the others write to it.
    """

    input_axes: ClassVar[Mapping[str, int]] = {"weight": 1}

    @property
    def output_axes(self) -> dict[str, int]:
        """As those of a :class:`Projection`."""
        return dict.fromkeys(self.parameters(), -1)

    def describe(self) -> str:
        if isinstance(self.module, nn.Linear):
            return f"{self.module.in_features} -> {self.module.out_features}"
        stored = self.parameters()
        if "weight" in stored:
            return _times(stored["weight"].shape)
        return ", ".join(f"{_times(t.shape[1:])} {name}" for name, t in stored.items())

    @property
    def multiplies(self) -> bool:  # type: ignore[override]
        """A head does."""
        return isinstance(self.module, nn.Linear)

    def macs(self, run: Pass) -> int:
        """A table is looked up; a head holds the same kind of table and multiplies by it."""
        module = self.module
        return run.positions * module.weight.numel() if isinstance(module, nn.Linear) else 0

    def activation_width(self, scored: int = 0) -> int:
        """Of a head its logits."""
        return len(self.parameters()["weight"]) if self.address == "head" else 0


class Linear(ModulePart):
    """A linear layer of the stream outside the blocks: weight [out, in], perhaps a bias.

    A factor pair has weight [out, rank] and reduce [rank, in] instead.
    """

    output_axes = Projection.output_axes

    @property
    def input_axes(self) -> Mapping[str, int]:
        """As those of a :class:`Projection`."""
        return (FactoredProjection if self.is_factored else Projection).input_axes

    def describe(self) -> str:
        assert self.linear is not None
        return self.linear.describe().removesuffix(", bias")

    def macs(self, run: Pass) -> int:
        assert self.linear is not None
        return run.positions * self.linear.macs


class Convolution(ModulePart):
    """A convolution between stages: weight [out, in / groups, height, width], perhaps a bias."""

    output_axes = Projection.output_axes
    module: nn.Conv2d

    @property
    def input_axes(self) -> dict[str, int]:
        """As those of a :class:`Projection`; none where each output sees a part of the input."""
        return {"weight": 1} if self.module.groups == 1 else {}

    def describe(self) -> str:
        module = self.module
        sizes = f"{_times(module.kernel_size)}, stride {_times(module.stride)}"
        return f"{module.in_channels} -> {module.out_channels}, {sizes}"


class PatchEmbedding(ModulePart):
    """Maps each of ``count`` patches of an image: weight [d, channels, height, width].

    ``count`` is None where images of any size are read.
    """

    output_axes = Projection.output_axes

    def __init__(self, module: nn.Module, address: str, count: int | None) -> None:
        super().__init__(module, address)
        self.count = count

    def describe(self) -> str:
        width, *patch = self.parameters()["weight"].shape
        count = "" if self.count is None else f"{self.count} "
        return f"{count}patches, {_times(patch)} -> {width}"

    def macs(self, run: Pass) -> int:
        """An image is cut once; the tokens beside the patches cost nothing."""
        if self.count is None:
            raise UnsupportedArchitecture(
                f"{self.address}: it has as many patches as an image gives"
            )
        return run.sequences * self.count * self.parameters()["weight"].numel()


class Norm(ModulePart):
    """A normalization, which multiplies no matrices.

    Attributes:
        form: "layer", "rms", "crms" or "other"; :attr:`centers`, :attr:`keeps_mean` and
            :attr:`restores_coordinate` say what each does.
        offset: 1 for norms that multiply by (1 + w).
    """

    multiplies = False
    normalizes = True

    def __init__(self, module: nn.Module, address: str) -> None:
        super().__init__(module, address)
        name = type(module).__name__
        self.form = "rms" if "RMSNorm" in name else "layer" if "LayerNorm" in name else "other"
        if isinstance(module, CRMSNorm | RestoringCRMSNorm):
            self.form = "crms"
        self.offset = 1.0 if name.startswith(("Gemma", "NemotronLayerNorm1P")) else 0.0

    @property
    def centers(self) -> bool:
        """It takes the mean out of what it reads."""
        return self.form == "layer"

    @property
    def keeps_mean(self) -> bool:
        """It divides by the root mean square alone, so the mean of what it reads counts."""
        return self.form == "rms"

    @property
    def restores_coordinate(self) -> bool:
        """It reads a zero-mean stream that is stored without one coordinate."""
        return self.form == "crms"

    @property
    def is_known(self) -> bool:
        """What it does with the mean of what it reads is known: it is one of the above."""
        return self.centers or self.keeps_mean or self.restores_coordinate

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

    def describe(self) -> str:
        try:
            return f"{self.form}, eps {self.eps:g}"
        except InvalidInputError:
            return self.form

    def macs(self, run: Pass) -> int:
        """Norms multiply no matrices."""
        return 0


class LayerScale(Norm):
    """What a branch is multiplied by, channel by channel; nothing is normalized."""

    normalizes = False

    @property
    def scale(self) -> Tensor | None:
        return self.parameters().get("gamma")


def _times(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes))
