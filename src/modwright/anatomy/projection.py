"""Linear maps seen as ``weight [out, in]`` and ``bias [out]``, whatever stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modwright.core.errors import InvalidInputError
from modwright.nn import FactorPair, ZeroMean
from modwright.nn.zero_mean import recentered

__all__ = ["FactoredProjection", "PointwiseProjection", "Projection", "Stored", "as_projection"]
__all__ += ["component_module", "linear_layer", "projections_of", "stored_in"]


class Stored:
    """What is stored in a module."""

    module: nn.Module

    @property
    def is_zero_mean(self) -> bool:
        """What it returns is recentered when the model runs."""
        return isinstance(self.module, ZeroMean)

    @property
    def is_factored(self) -> bool:
        """Two thin factors stand for its weight."""
        return isinstance(self.module, FactorPair)


class Projection(Stored):
    """One linear layer of a model: a whole module, or some output rows of a fused one.

    Args:
        module: what stores the parameters ``weight`` and, perhaps, ``bias``.
        address: where the map stands, for messages and plans ("blocks.3.mlp.up").
        rows: which output rows of the module belong to this map; None for all.
        transposed: the module stores [in, out] (GPT-2's Conv1D).

    What is read is detached, and a view but for rows that an index names. ``input_axes`` and
    ``output_axes`` name the parameters that hold the channels of what is read and of what is
    returned, and along which axis.
    """

    input_axes: ClassVar[Mapping[str, int]] = {"weight": 1}
    output_axes: ClassVar[Mapping[str, int]] = {"weight": 0, "bias": 0}
    axis: ClassVar[int] = -1
    """Where channels lie in what is read and returned."""

    def __init__(
        self,
        module: nn.Module,
        address: str,
        rows: slice | Tensor | None = None,
        transposed: bool = False,
    ) -> None:
        self.module, self.address, self.rows, self.transposed = module, address, rows, transposed

    def stored_at(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds a parameter of :meth:`parameters`, and its name there."""
        return self.module, name

    def _stored(self, name: str) -> Tensor | None:
        """What the module stores under a name, rows of other maps included; a view of it."""
        found: Tensor | None = getattr(self.module, name, None)
        return None if found is None else found.detach()

    def _full_weight(self) -> Tensor:
        weight = self._stored("weight")
        if weight is None:
            raise InvalidInputError(
                f"{self.address}: {type(self.module).__name__} stores no weight"
            )
        return weight.T if self.transposed else weight

    @property
    def weight(self) -> Tensor:
        """[out, in]."""
        full = self._full_weight()
        return full if self.rows is None else full[self.rows]

    @property
    def bias(self) -> Tensor | None:
        """[out], or None."""
        bias = self._stored("bias")
        return bias if bias is None or self.rows is None else bias[self.rows]

    @property
    def in_features(self) -> int:
        return self._full_weight().shape[1]

    @property
    def out_features(self) -> int:
        full = self._full_weight().shape[0]
        if self.rows is None:
            return full
        return len(range(full)[self.rows]) if isinstance(self.rows, slice) else len(self.rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one position: in x out."""
        return self.in_features * self.out_features

    def describe(self) -> str:
        """Its widths in words: "48 -> 96, bias"."""
        bias = ", bias" if self.bias is not None else ""
        return f"{self.in_features} -> {self.out_features}{bias}"

    @property
    def linear(self) -> Projection:
        """Itself; parts that are one linear layer answer with their view of it."""
        return self

    @property
    def num_parameters(self) -> int:
        """Numbers that this map owns: its share of a fused module."""
        return self.out_features * (self.in_features + (self.bias is not None))

    def parameters(self) -> dict[str, Tensor]:
        """The stored parameters, by the name under which :meth:`write` takes them."""
        named = {"weight": self.weight, "bias": self.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def write(self, name: str, value: Tensor) -> None:
        """Stores ``value`` as "weight" [out, in] or "bias" [out]; other shapes are refused."""
        current = self.parameters().get(name)
        if current is None:
            raise InvalidInputError(
                f"{self.address} has no {name!r}; it has "
                + (", ".join(self.parameters()) or "nothing")
            )
        if current.shape != value.shape:
            raise InvalidInputError(
                f"{self.address}.{name}: shape {tuple(value.shape)} where "
                f"{tuple(current.shape)} stands"
            )
        stored: Any = self._stored(name)
        rows = slice(None) if self.rows is None else self.rows
        if name == "weight" and self.transposed:
            stored[:, rows] = value.T.to(stored)
        else:
            stored[rows] = value.to(stored)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address}: {Projection.describe(self)})"


class FactoredProjection(Projection):
    """A linear layer of two factors. ``weight`` is their product; the factors are written."""

    input_axes = {"reduce": 1}

    module: FactorPair

    @property
    def weight(self) -> Tensor:
        return self.module.weight.detach() @ self.module.reduce.detach()

    @property
    def in_features(self) -> int:
        return self.module.in_features

    @property
    def out_features(self) -> int:
        return self.module.out_features

    @property
    def rank(self) -> int:
        return self.module.rank

    @property
    def macs(self) -> int:
        """Of both factors."""
        return self.rank * (self.in_features + self.out_features)

    def describe(self) -> str:
        """With the rank in between: "48 -> 5 -> 96"."""
        inside, arrow, outside = super().describe().partition(" -> ")
        return f"{inside}{arrow}{self.rank}{arrow}{outside}"

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.module.named_parameters()}


class ZeroMeanProjection(Projection):
    """A linear layer that recentres what it returns: ``weight`` and ``bias`` are those that act."""

    @property
    def weight(self) -> Tensor:
        return recentered(super().weight, 0)

    @property
    def bias(self) -> Tensor | None:
        bias = super().bias
        return None if bias is None else recentered(bias)

    def parameters(self) -> dict[str, Tensor]:
        """As they are stored, not recentered; :meth:`write` takes these."""
        named = {"weight": super().weight, "bias": super().bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


class PointwiseProjection(Projection):
    """A linear layer of the channels of maps: a 1 x 1 convolution, weight (out, in, 1, 1)."""

    axis = 1

    def _stored(self, name: str) -> Tensor | None:
        stored = super()._stored(name)
        return stored[:, :, 0, 0] if stored is not None and name == "weight" else stored


def as_projection(module: nn.Module, address: str, transposed: bool = False) -> Projection:
    """The view of a whole module."""
    if isinstance(module, ZeroMean):
        return ZeroMeanProjection(module, address, transposed=transposed)
    if isinstance(module, FactorPair):
        return FactoredProjection(module, address)
    return Projection(module, address, transposed=transposed)


def linear_layer(module: nn.Module, address: str, rows: slice | None = None) -> Projection | None:
    """The view of a linear layer, a 1 x 1 convolution or a factor pair; None of other modules.

    ``rows`` are output rows of a layer that gives more.
    """
    if isinstance(module, nn.Conv2d):
        one = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
        return PointwiseProjection(module, address, rows) if one else None
    if isinstance(module, Conv1D):
        return Projection(module, address, rows, transposed=True)
    if isinstance(module, nn.Linear | FactorPair):
        return as_projection(module, address) if rows is None else Projection(module, address, rows)
    return None


def projections_of(module: Any, address: str) -> dict[str, Projection]:
    """The linear layers that a module says it has, by role; none where it says nothing.

    A role whose module is not one linear layer is left out.

    Example:
        >>> from modwright.nn.token_mixers.self_attention import SelfAttention
        >>> projections_of(SelfAttention(8, 2), "blocks.0.attention")["k"].rows
        slice(8, 16, None)
    """
    views = {}
    for role, (layer, rows) in _said(module).items():
        if (view := linear_layer(layer, f"{address}.{role}", rows)) is not None:
            views[role] = view
    return views


def stored_in(module: nn.Module, role: str) -> str | None:
    """Path in a module of the layer that it says it has in a role, if that gives nothing else."""
    layer, rows = _said(module).get(role, (None, None))
    if layer is None or rows is not None:
        return None
    return next((path for path, inner in module.named_modules() if inner is layer and path), None)


def _said(module: Any) -> dict[str, tuple[nn.Module, slice | None]]:
    answer: Any = getattr(component_module(module), "projections", None)
    if isinstance(answer, nn.Module) or not callable(answer):
        return {}
    return {
        role: layer if isinstance(layer, tuple) else (layer, None)
        for role, layer in answer().items()
    }


def component_module(module: nn.Module) -> nn.Module:
    """The module that answers for what stands at a place: itself, or what its host wraps.

    A host that wraps a component has it as ``component``; one that is mixed into its class is it.

    Example:
        >>> component_module(nn.Linear(2, 2))
        Linear(in_features=2, out_features=2, bias=True)
    """
    inner = getattr(module, "component", None)
    return inner if isinstance(inner, nn.Module) else module
