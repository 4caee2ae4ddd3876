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


def _alone(kind: Builder, **fixed: Any) -> Builder:
    """Builds a part that reads nothing of the model's config."""
    return lambda config, **kwargs: kind(**kwargs, **fixed)


_BUILDERS: dict[str, Builder] = {
    "absent": _alone(ZeroModule),
    "absent_attention": _alone(SkippedAttention),
    "attention": lambda config, **kwargs: build_attention(config, kwargs),
    "bare_attention": lambda config, **kwargs: build_attention(config, kwargs, BareAttention),
    "bare_token_mixer": _alone(PlacedMixer),
    "crms_norm": _alone(CRMSNorm),
    "expert_feed_forward": lambda config, **kwargs: build_experts(kwargs),
    "factors": _alone(FactorPair),
    "feed_forward": lambda config, **kwargs: build_feed_forward(kwargs),
    "grid_attention": lambda config, **kwargs: build_attention(config, kwargs, GridAttention),
    "identity": lambda config: nn.Identity(),
    "linear": _alone(nn.Linear),
    "mixture": lambda config, **kwargs: build_mixture(config, kwargs),
    "narrowed": lambda config, current, axes, size: narrow_(current, axes, size),
    "pass_through": _alone(Identity),
    "pointwise": lambda config, in_features, out_features, bias=True: nn.Conv2d(
        in_features, out_features, 1, bias=bias
    ),
    "restoring_crms_norm": _alone(RestoringCRMSNorm, cast_first=False),
    "rms_norm": _alone(RMSNorm),
    "token_mixer": _alone(PlacedMixer, as_tuple=True),
    "zero_mean": lambda config, current: zero_mean_(current),
    "zero_mean_linear": _alone(ZeroMeanLinear),
}
for _name, _builder in _BUILDERS.items():
    PARTS.add(_name, _builder)
