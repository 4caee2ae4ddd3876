"""The closed registry of parts: the only names that an edit can place into a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from modwright.core.errors import refusing
from modwright.core.registry import Registry
from modwright.edits.hf_adapters import (
    build_attention,
    build_experts,
    build_feed_forward,
    build_mixture,
)
from modwright.nn import (
    BareAttention,
    CRMSNorm,
    FactorPair,
    GridAttention,
    Identity,
    PlacedMixer,
    RestoringCRMSNorm,
    RMSNorm,
    SkippedAttention,
    ZeroMeanLinear,
    ZeroModule,
    narrow_,
    zero_mean_,
)

__all__ = ["PARTS", "build_part", "part_names", "register_part"]

Builder = Callable[..., nn.Module]
"""Called as ``builder(config, **kwargs)`` with the model's own config object.

One that has a parameter ``current`` gets the module that stands at the place, and may alter it.
"""

PARTS: Registry[Builder] = Registry("part")


def register_part(name: str) -> Callable[[Builder], Builder]:
    """Decorator that makes a part placeable. Registering is code; a config can only name."""

    return PARTS.register(name)


def part_names() -> list[str]:
    """The names that an edit may use."""
    return PARTS.names()


def build_part(
    name: str, config: Any, kwargs: dict[str, Any], current: nn.Module | None = None
) -> nn.Module:
    """A new module for a registered name.

    Args:
        name: of the part.
        config: of the model.
        kwargs: of the part.
        current: what stands where the part will.

    Raises:
        InvalidInputError: unknown name, or arguments that the part does not take.
    """
    builder = PARTS[name]
    given = {"current": current} if "current" in inspect.signature(builder).parameters else {}
    with refusing(f"part {name!r}", (TypeError, ValueError)):
        return builder(config, **given, **kwargs)


@register_part("absent")
def _absent(config: Any) -> nn.Module:
    return ZeroModule()


@register_part("absent_attention")
def _absent_attention(config: Any) -> nn.Module:
    return SkippedAttention()


@register_part("attention")
def _attention(config: Any, **kwargs: Any) -> nn.Module:
    return build_attention(config, kwargs)


@register_part("bare_attention")
def _bare_attention(config: Any, **kwargs: Any) -> nn.Module:
    return build_attention(config, kwargs, BareAttention)


@register_part("crms_norm")
def _crms_norm(config: Any, hidden_size: int, eps: float) -> nn.Module:
    return CRMSNorm(hidden_size, eps)


@register_part("expert_feed_forward")
def _expert_feed_forward(config: Any, **kwargs: Any) -> nn.Module:
    return build_experts(kwargs)


@register_part("factors")
def _factors(
    config: Any, in_features: int, out_features: int, rank: int, bias: bool = True
) -> nn.Module:
    return FactorPair(in_features, out_features, rank, bias)


@register_part("feed_forward")
def _feed_forward(config: Any, **kwargs: Any) -> nn.Module:
    return build_feed_forward(kwargs)


@register_part("grid_attention")
def _grid_attention(config: Any, **kwargs: Any) -> nn.Module:
    return build_attention(config, kwargs, GridAttention)


@register_part("identity")
def _identity(config: Any) -> nn.Module:
    return nn.Identity()


@register_part("linear")
def _linear(config: Any, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
    return nn.Linear(in_features, out_features, bias)


@register_part("mixture")
def _mixture(config: Any, **kwargs: Any) -> nn.Module:
    return build_mixture(config, kwargs)


@register_part("narrowed")
def _narrowed(config: Any, current: nn.Module, axes: dict[str, int], size: int) -> nn.Module:
    return narrow_(current, axes, size)


@register_part("pass_through")
def _pass_through(config: Any, as_tuple: bool = False) -> nn.Module:
    return Identity(as_tuple)


@register_part("pointwise")
def _pointwise(config: Any, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
    return nn.Conv2d(in_features, out_features, 1, bias=bias)


@register_part("restoring_crms_norm")
def _restoring_crms_norm(
    config: Any, hidden_size: int, eps: float, index: int, weight: bool = True, bias: bool = False
) -> nn.Module:
    return RestoringCRMSNorm(hidden_size, eps, weight, bias, cast_first=False, index=index)


@register_part("rms_norm")
def _rms_norm(
    config: Any,
    hidden_size: int,
    eps: float,
    weight: bool = True,
    bias: bool = False,
    cast_first: bool = True,
) -> nn.Module:
    return RMSNorm(hidden_size, eps, weight, bias, cast_first)


@register_part("token_mixer")
def _token_mixer(config: Any, **kwargs: Any) -> nn.Module:
    return PlacedMixer(**kwargs, as_tuple=True)


@register_part("bare_token_mixer")
def _bare_token_mixer(config: Any, **kwargs: Any) -> nn.Module:
    return PlacedMixer(**kwargs)


@register_part("zero_mean")
def _zero_mean(config: Any, current: nn.Module) -> nn.Module:
    return zero_mean_(current)


@register_part("zero_mean_linear")
def _zero_mean_linear(
    config: Any, in_features: int, out_features: int, bias: bool = True
) -> nn.Module:
    return ZeroMeanLinear(in_features, out_features, bias)
