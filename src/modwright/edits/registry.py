"""The closed registry of parts: the only names that an edit can place into a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from modwright.edits.hosting import hosted_attention, hosted_feed_forward
from modwright.errors import Refused, unknown_name
from modwright.nn import Absent, AbsentAttention, FactorPair, PassThrough

__all__ = ["build_part", "part_names", "register_part"]

Builder = Callable[..., nn.Module]
"""Called as ``builder(config, **kwargs)`` with the model's own config object."""

_PARTS: dict[str, Builder] = {}


def register_part(name: str) -> Callable[[Builder], Builder]:
    """Decorator that makes a part placeable. Registering is code; a config can only name."""

    def register(builder: Builder) -> Builder:
        if name in _PARTS:
            raise Refused(f"a part called {name!r} is registered already")
        _PARTS[name] = builder
        return builder

    return register


def part_names() -> list[str]:
    """The names that an edit may use."""
    return sorted(_PARTS)


def build_part(name: str, config: Any, kwargs: dict[str, Any]) -> nn.Module:
    """A new module for a registered name.

    Raises:
        Refused: unknown name, or arguments that the part does not take.
    """
    builder = _PARTS.get(name)
    if builder is None:
        raise unknown_name("part", name, _PARTS)
    try:
        return builder(config, **kwargs)
    except (TypeError, ValueError) as error:
        raise Refused(f"part {name!r}: {error}") from error


@register_part("absent")
def _absent(config: Any) -> nn.Module:
    return Absent()


@register_part("absent_attention")
def _absent_attention(config: Any) -> nn.Module:
    return AbsentAttention()


@register_part("attention")
def _attention(config: Any, **kwargs: Any) -> nn.Module:
    return hosted_attention(config, kwargs)


@register_part("factors")
def _factors(
    config: Any, in_features: int, out_features: int, rank: int, bias: bool = True
) -> nn.Module:
    return FactorPair(in_features, out_features, rank, bias)


@register_part("feed_forward")
def _feed_forward(config: Any, **kwargs: Any) -> nn.Module:
    return hosted_feed_forward(kwargs)


@register_part("identity")
def _identity(config: Any) -> nn.Module:
    return nn.Identity()


@register_part("linear")
def _linear(config: Any, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
    return nn.Linear(in_features, out_features, bias)


@register_part("pass_through")
def _pass_through(config: Any, as_tuple: bool = False) -> nn.Module:
    return PassThrough(as_tuple)
