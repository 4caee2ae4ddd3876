"""A feed-forward part that can stand in for the MLP of any family.

Axes: b batch, t positions, d hidden_size, I intermediate_size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from modwright.nn.component import component, has_shape

__all__ = ["FeedForward", "FeedForwardShape", "Shape"]


@dataclass(frozen=True)
class Shape:
    """The structure of a part, in plain JSON values."""

    def to_dict(self) -> dict[str, Any]:
        """Only what differs from the defaults, so that stored configs stay short."""
        defaults = {f.name: f.default for f in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}

    def check_positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    def check_arguments(self, name: str) -> None:
        """Arguments of a component are a mapping, and None where there are none."""
        given = getattr(self, name)
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"{name} must map names to values, not {given!r}")
        object.__setattr__(self, name, dict(given) if given else None)


@dataclass(frozen=True)
class FeedForwardShape(Shape):
    """Everything that fixes the structure of a :class:`FeedForward`; plain JSON values.

    Attributes:
        intermediate_size: neurons.
        activation: its name, as configs of transformers have it ("silu", "gelu_new"), or that of a
            registered component ("poly_norm").
        gated: down(act(gate x) * up x) rather than down(act(up x)).
        biases: which of gate "g", up "u" and down "d" have a bias.
        activation_kwargs: arguments of a registered activation.
    """

    hidden_size: int
    intermediate_size: int
    activation: str
    gated: bool = False
    biases: str = ""
    activation_kwargs: Mapping[str, Any] | None = field(default=None, hash=False, kw_only=True)

    def __post_init__(self) -> None:
        self.check_positive("hidden_size", "intermediate_size")
        self.check_arguments("activation_kwargs")
        if set(self.biases) - set("gud" if self.gated else "ud"):
            raise ValueError(f"biases {self.biases!r} name a map that is not there")


@component("feed_forward", kind="channel_mixer", shape=FeedForwardShape, is_stock=has_shape)
class FeedForward(nn.Module):
    """down(act(up x)), or down(act(gate x) * up x): the MLP of a Transformer, dense.

    x (b, t, d) -> (b, t, d); up and gate (I, d), down (d, I). ``act`` is what ``shape.activation``
    names; a host gives its own. Where that is a module, its parameters are called ``act.weight``
    and the like.

    Example:
        >>> import torch
        >>> shape = FeedForwardShape(hidden_size=8, intermediate_size=32, activation="relu")
        >>> FeedForward(shape, torch.relu)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    layout = "tokens"  # channels lie last; blocks of maps call it so
    host_called = host_initialized = True  # it stands for the family's own

    def __init__(self, shape: FeedForwardShape, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.shape, self.act = shape, act
        d, inner = shape.hidden_size, shape.intermediate_size
        self.gate_proj = nn.Linear(d, inner, bias="g" in shape.biases) if shape.gated else None
        self.up_proj = nn.Linear(d, inner, bias="u" in shape.biases)
        self.down_proj = nn.Linear(inner, d, bias="d" in shape.biases)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        up = self.up_proj(hidden_states)
        gate = self.gate_proj
        inner = self.act(up) if gate is None else self.act(gate(hidden_states)) * up
        return self.down_proj(inner)

    def extra_repr(self) -> str:
        s = self.shape
        return f"{'gated, ' if s.gated else ''}intermediate_size={s.intermediate_size}"
