"""Activations by name: those of torch, and the components that are files here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from modwright.nn.component import component, components
from modwright.nn.layouts import Layout

__all__ = ["ACTIVATIONS", "make_activation"]


def _of_torch(kind: type[nn.Module]) -> Callable[..., nn.Module]:
    """A function, so that a module of torch's is not taken for a component by its class."""

    def make() -> nn.Module:
        return kind()

    make.__name__ = make.__qualname__ = kind.__name__  # what messages call it
    return make


for _name, _kind in {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "hardswish": nn.Hardswish,
    "identity": nn.Identity,
}.items():
    component(_name, kind="activation", reads="either")(_of_torch(_kind))


class _Activations(Mapping[str, Callable[..., nn.Module]]):
    """The registered components of the kind "activation": name -> what makes the module."""

    def __getitem__(self, name: str) -> Callable[..., nn.Module]:
        return components("activation")[name].make

    def __iter__(self) -> Iterator[str]:
        return iter(components("activation"))

    def __len__(self) -> int:
        return len(components("activation"))


ACTIVATIONS = _Activations()


def make_activation(name: str, *, layout: Layout = "tokens", **kwargs: Any) -> nn.Module:
    """A module of the activation; "gelu" is the exact one.

    Args:
        name: of a registered component of the kind "activation".
        layout: of what it reads. One that works over the channels finds them in the last axis of
            "tokens" (B, L, C) and in axis 1 of a "map" (B, C, H, W).
        kwargs: its own arguments.

    Raises:
        ValueError: the name is not known.

    Example:
        >>> make_activation("relu"), make_activation("poly_norm", order=2).weight.shape
        (ReLU(), torch.Size([2]))
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; valid values: {', '.join(ACTIVATIONS)}")
    make = ACTIVATIONS[name]
    if layout == "map" and "dim" in inspect.signature(make).parameters:
        kwargs = {"dim": 1, **kwargs}
    return make(**kwargs)
