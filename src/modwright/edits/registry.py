"""The closed registry of parts, the only names that an edit can place into a model.

Parts are plain torch; here they are at home in a transformers model: its config, its functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modwright.core.compat.transformers import attention_implementation
from modwright.core.errors import InvalidInputError, refusing, unknown_name
from modwright.core.registry import Registry
from modwright.nn import (
    AttentionShape,
    BareAttention,
    CRMSNorm,
    ExpertFeedForward,
    ExpertShape,
    FactorPair,
    FeedForward,
    FeedForwardShape,
    GridAttention,
    GroupedAttention,
    Identity,
    Mixture,
    MixtureShape,
    PlacedMixer,
    RestoringCRMSNorm,
    RMSNorm,
    SkippedAttention,
    ZeroMeanLinear,
    ZeroModule,
    narrow_,
    zero_mean_,
)
from modwright.nn.activations import ACTIVATIONS
from modwright.nn.component import COMPONENTS, Component
from modwright.nn.token_mixers.attention import naive_attention

__all__ = ["PARTS", "activation", "attend_as_configured", "build_attention", "build_part"]
__all__ += ["call_builder", "check_router_scores", "component_named", "part_names"]
__all__ += ["register_part"]

Builder = Callable[..., nn.Module]
"""Called as ``builder(config, **kwargs)`` with the model's own config object.

One that has a parameter ``current`` gets the module that stands at the place, and may alter it.
"""

PARTS: Registry[Builder] = Registry("part")

register_part = PARTS.register
"""Decorator that makes a part placeable. Registering is code; a config can only name."""


def part_names() -> list[str]:
    """The names that an edit may use: of parts, and of components."""
    return sorted({*PARTS.names(), *COMPONENTS.names()})


def component_named(name: str) -> Component | None:
    """The component that an edit means by a name; None where it is a part."""
    return None if name in PARTS or name not in COMPONENTS else COMPONENTS[name]


def build_part(
    name: str, config: Any, kwargs: dict[str, Any], current: nn.Module | None = None
) -> nn.Module:
    """A new module for a registered name, in a model of this config.

    Args:
        current: what stands where the part will.
    """
    if (component := component_named(name)) is not None:
        with refusing(f"component {name!r}", (TypeError, ValueError)):
            return component.make(**kwargs)
    if name not in PARTS:
        raise unknown_name("part", name, part_names())
    with refusing(f"part {name!r}", (TypeError, ValueError)):
        return call_builder(PARTS[name], config, kwargs, current)


def call_builder(
    builder: Builder, config: Any, kwargs: dict[str, Any], current: nn.Module | None
) -> nn.Module:
    """A new module, made with what stands at its place where the builder asks for that."""
    given = {"current": current} if "current" in inspect.signature(builder).parameters else {}
    return builder(config, **given, **kwargs)


def activation(name: str, kwargs: Mapping[str, Any] | None = None) -> Any:
    """What transformers has under a name, else the registered component of that name.

    Args:
        name: another is refused.
        kwargs: arguments of a component.
    """
    if name in ACT2FN and not kwargs:
        return ACT2FN[name]
    if name not in ACTIVATIONS and name in ACT2FN:
        raise InvalidInputError(f"the activation {name!r} takes no arguments")
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, sorted({*ACT2FN, *ACTIVATIONS}))
    return ACTIVATIONS[name](**(kwargs or {}))


def attend_as_configured(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Runs the attention function that the model's config names: eager, sdpa, flash, flex."""
    chosen = attention_implementation(module.config)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(chosen, naive_attention)
    result: tuple[Tensor, Tensor | None] = attend(module, query, key, value, mask, **kwargs)
    return result


def build_attention(
    config: Any, kwargs: dict[str, Any], kind: type[GroupedAttention] = GroupedAttention
) -> GroupedAttention:
    """A grouped attention that holds the model's own config object.

    The object matters: the model builds its masks for the implementation that its config names.
    Another config could name a function that the mask was not made for, which sees the future.
    """
    part = kind(AttentionShape(**kwargs), attend=attend_as_configured)
    part.config = config
    return part


def check_router_scores(model: nn.Module) -> None:
    """Refuses to return router scores where a mixture stands that keeps none."""
    if any(isinstance(module, Mixture) for module in model.modules()):
        raise _no_router_scores()


def _no_router_scores() -> InvalidInputError:
    return InvalidInputError(
        "output_router_logits is on, and its loss needs the family's own routers in every layer; "
        "set it to False, in the config or in the call"
    )


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
    shape = ExpertShape(**kwargs)
    return ExpertFeedForward(shape, activation(shape.activation, shape.activation_kwargs))


@register_part("factors")
def _factors(
    config: Any, in_features: int, out_features: int, rank: int, bias: bool = True
) -> nn.Module:
    return FactorPair(in_features, out_features, rank, bias)


@register_part("feed_forward")
def _feed_forward(config: Any, **kwargs: Any) -> nn.Module:
    shape = FeedForwardShape(**kwargs)
    return FeedForward(shape, activation(shape.activation, shape.activation_kwargs))


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
    if getattr(config, "output_router_logits", False):
        raise _no_router_scores()  # its loss stacks the scores of all layers as equals
    shape = MixtureShape(**kwargs)
    return Mixture(shape, activation(shape.activation, shape.activation_kwargs))


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
def _rms_norm(config: Any, **kwargs: Any) -> nn.Module:
    return RMSNorm(**kwargs)


@register_part("token_mixer")
def _token_mixer(config: Any, **kwargs: Any) -> nn.Module:
    return PlacedMixer(**kwargs, as_tuple=True)


@register_part("bare_token_mixer")
def _bare_token_mixer(config: Any, **kwargs: Any) -> nn.Module:
    return PlacedMixer(**kwargs)


@register_part("zero_attention")
def _zero_attention(config: Any) -> nn.Module:
    return SkippedAttention(whole=True)


@register_part("zero_mean")
def _zero_mean(config: Any, current: nn.Module) -> nn.Module:
    return zero_mean_(current)


@register_part("zero_mean_linear")
def _zero_mean_linear(
    config: Any, in_features: int, out_features: int, bias: bool = True
) -> nn.Module:
    return ZeroMeanLinear(in_features, out_features, bias)
