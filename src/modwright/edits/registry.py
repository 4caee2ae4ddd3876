"""The closed registry of parts, the only names that an edit can place into a model: components, and
alterations of what stands there.

Parts are plain torch; here they are at home in a transformers model: its config, its functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modwright.core.compat.transformers import attention_implementation
from modwright.core.errors import InvalidInputError, refusing, unknown_name
from modwright.core.registry import Registry
from modwright.nn import narrow_, zero_mean_
from modwright.nn.activations import ACTIVATIONS
from modwright.nn.component import COMPONENTS, Component, Kind, components
from modwright.nn.token_mixers.attention import naive_attention

__all__ = [
    "KIND_AT",
    "PARTS",
    "activation",
    "attend_as_configured",
    "build_part",
    "check_router_scores",
]
__all__ += ["component_named", "is_registered", "make_part", "maker_of", "part_names"]
__all__ += ["qualified", "register_part"]

R = TypeVar("R", bound=Callable[..., nn.Module])

Builder = Callable[..., nn.Module]
"""Called as ``builder(config, **kwargs)`` with the model's own config object.

One that has a parameter ``current`` gets the module that stands at the place, and may alter it.
"""

PARTS: Registry[Builder] = Registry("part")
"""What alters the module that stands at a place, and builders that are no components.

A name is that of a part before it is that of a component of a kind that the place does not tell."""

KIND_AT: Mapping[str, Kind] = {"attention": "token_mixer", "mlp": "channel_mixer"}
"""What stands as a whole at a place in a block -> its kind."""


def register_part(name: str) -> Callable[[R], R]:
    """Decorator that makes a function of a config placeable. A component needs no such function:
    :func:`modwright.nn.component.component` registers its class."""

    def register(builder: R) -> R:
        for known in map(COMPONENTS.of, COMPONENTS.kinds_of(name)):
            if known[name].make.__module__.startswith("modwright."):
                known.add(name, Component(name, "norm", builder))  # refuses: the name is taken
        return PARTS.register(name)(builder)

    return register


def part_names() -> list[str]:
    """The names that an edit may use: of parts, and of components."""
    return sorted({*PARTS.names(), *components()})


def is_registered(name: str) -> bool:
    """An edit may use the name."""
    return name in PARTS or name in COMPONENTS


def component_named(name: str, kind: Kind | None = None) -> Component | None:
    """The component that an edit means by a name; None where it is a part.

    Args:
        name: a component of another kind is found, too, where no other has the name.
        kind: of what stands at the place, where that is known.

    Raises:
        InvalidInputError: the name is not known, or is that of several kinds.
    """
    if kind is not None and name in COMPONENTS.of(kind) and not _is_users_part(name):
        return COMPONENTS.of(kind)[name]
    if name in PARTS:
        return None
    if name not in COMPONENTS:
        raise unknown_name("part", name, part_names())
    return COMPONENTS[name]


def _is_users_part(name: str) -> bool:
    return name in PARTS and name in PARTS.outside()


def build_part(
    name: str,
    config: Any,
    kwargs: dict[str, Any],
    current: nn.Module | None = None,
    kind: Kind | None = None,
) -> nn.Module:
    """A new module for a registered name, in a model of this config.

    Args:
        current: what stands where the part will.
        kind: of what stands there as a whole.
    """
    make, shape = maker_of(name, kind)
    with refusing(f"part {name!r}", (TypeError, ValueError)):
        return make_part(make, shape, config, kwargs, current)


def maker_of(
    name: str, kind: Kind | None = None
) -> tuple[Callable[..., nn.Module], type[Any] | None]:
    """What makes a module of a registered name, and of which shape; see :func:`make_part`."""
    word, _, alone = name.partition(".")
    if not is_registered(name) and (told := [one for one in get_args(Kind) if one == word]):
        kind, name = told[0], alone
    component = component_named(name, kind)
    return (PARTS[name], None) if component is None else (component.make, component.shape)


def qualified(name: str, kind: Kind | None) -> str:
    """A name that :func:`maker_of` understands without the kind: with it where others have it."""
    if kind is None or component_named(name, kind) is None:
        return name
    alone = name not in PARTS and len(COMPONENTS.kinds_of(name)) == 1
    return name if alone else f"{kind}.{name}"


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


def make_part(
    make: Callable[..., nn.Module],
    shape: type[Any] | None,
    config: Any,
    kwargs: dict[str, Any],
    current: nn.Module | None,
) -> nn.Module:
    """A new module of what edits can name, at home in a model of this config.

    Args:
        make: its class, or a function that makes it.
        shape: see :class:`modwright.nn.component.Component`.
        kwargs: what the edit stores.
        current: what stands at the place.
    """
    scored = getattr(make, "returns_router_scores", True)
    if not scored and getattr(config, "output_router_logits", False):
        raise _no_router_scores()  # its loss stacks the scores of all layers as equals
    taken = inspect.signature(make).parameters
    given = {"config": config, "current": current, "attend": attend_as_configured}
    told: Any = kwargs if shape is None else {"shape": shape(**kwargs)}
    if shape is not None and "act" in taken:
        named = told["shape"]
        given["act"] = activation(named.activation, named.activation_kwargs)
    part = make(**{word: value for word, value in given.items() if word in taken} | told)
    if getattr(part, "config", part) is None:
        # The object matters: the model builds its masks for the implementation that its config
        # names. Another could name a function that the mask was not made for: it sees the future.
        part.config = config
    return part


def check_router_scores(model: nn.Module) -> None:
    """Refuses to return router scores where a mixture stands that keeps none."""
    if not all(getattr(module, "returns_router_scores", True) for module in model.modules()):
        raise _no_router_scores()


def _no_router_scores() -> InvalidInputError:
    return InvalidInputError(
        "output_router_logits is on, and its loss needs the family's own routers in every layer; "
        "set it to False, in the config or in the call"
    )


@PARTS.register("identity")
def _identity(config: Any) -> nn.Module:
    return nn.Identity()


@PARTS.register("narrowed")
def _narrowed(config: Any, current: nn.Module, axes: dict[str, int], size: int) -> nn.Module:
    return narrow_(current, axes, size)


@PARTS.register("zero_mean")
def _zero_mean(config: Any, current: nn.Module) -> nn.Module:
    return zero_mean_(current)
