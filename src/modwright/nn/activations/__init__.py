"""Activations by name."""

from __future__ import annotations

from torch import nn

__all__ = ["ACTIVATIONS", "make_activation"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "hardswish": nn.Hardswish,
    "identity": nn.Identity,
}


def make_activation(name: str) -> nn.Module:
    """A module of the activation; "gelu" is the exact one."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; valid values: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()
