"""An MLP whose first neurons are an MLP by themselves (MatFormer, arXiv 2310.07707).

Axes: b batch, t positions, d hidden_size, I intermediate_size, m the neurons that are used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.channel_mixers.feed_forward import FeedForwardShape
from modwright.nn.component import component

__all__ = ["NestedFeedForward", "NestedShape", "granularities"]

SIZES = ("S", "M", "L", "XL")
"""What the paper calls its four widths."""


def granularities(intermediate_size: int, count: int = 4) -> list[int]:
    """The widths of the paper: all neurons, half of them, a quarter, ..., smallest first.

    A width that is no whole number is rounded to a multiple of 8.

    Raises:
        ValueError: two widths would be the same.

    Example:
        >>> granularities(96), granularities(100)
        ([12, 24, 48, 96], [16, 25, 50, 100])
    """
    shares = [2**i for i in reversed(range(1, count))]
    widths = [
        intermediate_size // share
        if intermediate_size % share == 0
        else 8 * round(intermediate_size / share / 8)
        for share in shares
    ]
    return list(_checked([*widths, intermediate_size], intermediate_size))


@dataclass(frozen=True)
class NestedShape(FeedForwardShape):
    """Everything that fixes the structure of a :class:`NestedFeedForward`; plain JSON values.

    Attributes:
        widths: m of every MLP in it, increasing to intermediate_size; the paper's four unless said.
        width: m of the one that is used; all neurons unless said.
        names: what the stock MLP calls its layers, by role, where this one has its tensors.
    """

    widths: tuple[int, ...] | None = field(default=None, kw_only=True)
    width: int | None = field(default=None, kw_only=True)
    names: Mapping[str, str] | None = field(default=None, hash=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_arguments("names")
        size = self.intermediate_size
        widths = granularities(size) if self.widths is None else self.widths
        object.__setattr__(self, "widths", _checked(widths, size))
        object.__setattr__(self, "width", self.width_of(size if self.width is None else self.width))

    def width_of(self, asked: int | str) -> int:
        """A width by its number, or by its name S, M, L, XL where there are four.

        Raises:
            ValueError: no such width or name.

        Example:
            >>> NestedShape(8, 32, "relu").width_of("M")
            8
        """
        widths = self.widths or ()
        if isinstance(asked, str):
            if len(widths) != len(SIZES) or asked not in SIZES:
                raise ValueError(
                    f"unknown width {asked!r}; there are {', '.join(map(str, widths))}"
                )
            return widths[SIZES.index(asked)]
        if isinstance(asked, bool) or not isinstance(asked, int):
            raise ValueError(
                f"a width is a whole number or one of {', '.join(SIZES)}, not {asked!r}"
            )
        if not 1 <= asked <= self.intermediate_size:
            raise ValueError(f"a width lies in 1 to {self.intermediate_size}, not {asked}")
        return asked


def _has_stock_tensors(config: Any, shape: NestedShape) -> bool:
    return shape.names is not None and shape.width == shape.intermediate_size


@component(
    "nested_feed_forward",
    kind="channel_mixer",
    shape=NestedShape,
    stock_tensors=_has_stock_tensors,
)
class NestedFeedForward(nn.Module):
    """down(act(up x)), or down(act(gate x) * up x), of the first m neurons: (b, t, d) -> the same.

    Each width m in 1 to I is an MLP of its own, made of the first m rows of up and gate, the first
    m columns of down, and all of the bias of down (arXiv 2310.07707). Tensors are sliced, not
    masked: no other neuron is computed, and its gradient is 0.

    Args:
        shape: sizes, widths, and names of the layers.
        act: what ``shape.activation`` names; a host gives its own.
        current: the stock MLP, whose layers it takes where ``shape.names`` names them.

    Attributes:
        width: m, the neurons that are used.

    Example:
        >>> import torch
        >>> mlp = NestedFeedForward(NestedShape(8, 32, "relu", width=4), torch.relu)
        >>> mlp(torch.zeros(1, 5, 8)).shape, mlp.macs(1, 5)
        (torch.Size([1, 5, 8]), 320)
    """

    host_initialized = True  # it stands for the family's own

    def __init__(
        self,
        shape: NestedShape,
        act: Callable[[Tensor], Tensor],
        current: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.act, self.width = shape, act, int(shape.width or 0)
        d, inner, taken = shape.hidden_size, shape.intermediate_size, dict(shape.names or {})
        self.roles = ("gate", "up", "down") if shape.gated else ("up", "down")
        if taken and sorted(taken) != sorted(self.roles):
            raise ValueError(f"names are those of {', '.join(self.roles)}, not {sorted(taken)}")
        self.names = {role: taken.get(role, f"{role}_proj") for role in self.roles}
        for role, name in self.names.items():
            sizes = (inner, d) if role == "down" else (d, inner)
            stock = getattr(current, name, None) if taken else None
            made = nn.Linear(*sizes, bias=role[0] in shape.biases) if stock is None else stock
            if _out_in(made).shape != sizes[::-1]:
                raise ValueError(f"{name} is not {sizes[0]} to {sizes[1]} wide in the stock MLP")
            self.add_module(name, made)
        dropout = getattr(current, "dropout", None)
        self.dropout = dropout if isinstance(dropout, nn.Dropout) else None

    def layer(self, role: str) -> Any:
        """The linear layer up, down or gate."""
        return getattr(self, self.names[role])

    def prefix(self, width: int) -> dict[str, Any]:
        """Weights (out, in) and biases of the MLP of the first ``width`` neurons, as views.

        Example:
            >>> import torch
            >>> mlp = NestedFeedForward(NestedShape(8, 32, "relu"), torch.relu)
            >>> cut = mlp.prefix(4)
            >>> cut["up.weight"].shape, cut["down.weight"].shape, cut["up.bias"]
            (torch.Size([4, 8]), torch.Size([8, 4]), None)
        """
        found: dict[str, Any] = {}
        for role in self.roles:
            layer = self.layer(role)
            weight, bias = _out_in(layer), layer.bias
            cut = weight[:, :width] if role == "down" else weight[:width]
            found[f"{role}.weight"] = cut
            found[f"{role}.bias"] = bias if role == "down" or bias is None else bias[:width]
        return found

    def forward(self, x: Tensor) -> Tensor:
        cut = self.prefix(self.width)
        up = F.linear(x, cut["up.weight"], cut["up.bias"])
        if "gate.weight" in cut:
            inner = self.act(F.linear(x, cut["gate.weight"], cut["gate.bias"])) * up
        else:
            inner = self.act(up)
        out = F.linear(inner, cut["down.weight"], cut["down.bias"])
        return out if self.dropout is None else self.dropout(out)

    def macs(self, batch: int, length: int, cached: int = 0) -> int:
        """Multiply-accumulates of the neurons that are used."""
        return batch * length * len(self.roles) * self.shape.hidden_size * self.width

    def describe(self) -> str:
        return f"{self.width} of {self.shape.intermediate_size} neurons, {self.shape.activation}"

    def extra_repr(self) -> str:
        return f"width={self.width} of {self.shape.intermediate_size}"


def _out_in(layer: Any) -> Tensor:
    """The weight as (out, in), whichever way it is stored."""
    weight: Tensor = layer.weight
    return weight if isinstance(layer, nn.Linear) else weight.T


def _checked(widths: Sequence[int], size: int) -> tuple[int, ...]:
    """Increasing widths, the last of which is all neurons."""
    told = tuple(widths)
    for width in told:
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"a width is a whole number from 1 on, not {width!r}")
    if not told or told[-1] != size or any(a >= b for a, b in itertools.pairwise(told)):
        raise ValueError(
            f"widths increase to the {size} neurons that there are; {list(told)} do not"
        )
    return told
