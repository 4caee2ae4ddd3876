"""The registry of components: what mixes tokens or channels, and norms, activations, projections.

A component is a module in plain torch that registers itself where it is defined. Edits, recipes,
composed models, cost and the tables of the docs know it by the name that it registers under.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from torch import Tensor, nn

from modwright.core.registry import KindRegistry

__all__ = ["COMPONENTS", "HANDED", "Component", "Kind", "component", "component_of", "components"]
__all__ += ["has_shape", "listed_tensors", "said_by"]

Kind = Literal[
    "token_mixer", "channel_mixer", "norm", "projection", "activation", "embedding", "stem", "head"
]

HANDED = ("state", "padding_mask", "position_embeddings", "spatial_shape")
"""What a host hands over to a component whose ``forward`` has a parameter of that name:

- ``state``: what the component returned for the tokens before, None at the beginning; only to
  components that are registered with ``state="recurrent"``, which return ``(y, state)``.
- ``padding_mask``: (B, L) booleans, True where a token is real; None where all are.
- ``position_embeddings``: cos and sin of the rotary embedding, (B, L, head_dim) each.
- ``spatial_shape``: (H, W) of the grid that the tokens are the positions of.
"""

C = TypeVar("C", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class Component:
    """What a name in the registry stands for, and what a host must know of it.

    Args:
        name: what edits and recipes call it.
        kind: where it can stand.
        make: the class, or a function, that makes the module from keyword arguments.
        reads: "tokens" (B, L, C), "map" (B, C, H, W), or "either" where the layout does not matter.
        state: what it keeps of the tokens before: "none", "keys" (keys and values that grow with
            the length), or "recurrent" (a tree of tensors whose size does not depend on it).
        causal: no output depends on a later token. None where there is no order.
        any_length: weights do not depend on the number of tokens.
        needs: the names in :data:`HANDED` that its ``forward`` takes.
        shape: a frozen dataclass whose fields are the keyword arguments that a config stores; the
            module is made with one of these, called ``shape``. None: with the arguments themselves.
        is_stock: ``is_stock(stock, **arguments)`` says whether it is what the stock class of a
            model builds at its place; ``stock`` is that part, with its ``shape``, ``module`` and
            ``parameters()``. The edit that names it then disappears.
        stock_tensors: ``stock_tensors(config, **arguments)`` says whether it has the tensors of
            what the stock class of this config builds at its place, by name, and computes the same
            from them. The edit stays, and stock classes may open the file.
    """

    name: str
    kind: Kind
    make: Callable[..., nn.Module]
    reads: Literal["tokens", "map", "either"] = "tokens"
    state: Literal["none", "keys", "recurrent"] = "none"
    causal: bool | None = None
    any_length: bool = True
    needs: tuple[str, ...] = ()
    shape: type | None = None
    is_stock: Callable[..., bool] | None = None
    stock_tensors: Callable[..., bool] | None = None

    def told(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What a config stores as the functions of the component take it: a ``shape``, if it has
        one, or the arguments themselves."""
        return dict(arguments) if self.shape is None else {"shape": self.shape(**arguments)}


COMPONENTS: KindRegistry[Component] = KindRegistry("component", get_args(Kind), "modwright.nn")
"""A name is that of one component of a kind; several kinds may have it, as "identity"."""


def component(name: str, kind: Kind, **facts: Any) -> Callable[[C], C]:
    """Decorator that registers a component: a class of modules, or a function that makes one.

    A name is unique within its kind. The keyword arguments of a component are what a config stores,
    so they are numbers, strings, booleans, None and lists of them. Where it has parameters of these
    names, it is given beside them: ``config``, the model's own; ``current``, the module that stands
    at its place; ``attend``, the attention function that the config names; ``act``, the function
    that ``shape.activation`` names. An attribute ``config`` that is None is set to the model's
    config. The module itself may answer, as methods or attributes:

    - ``returns_router_scores``: False of a mixture that keeps no scores for a loss over routers.
    - ``every_expert()``: a context in which all experts of what chooses them work on every token;
      verification runs the model so, as choices at a near tie turn on rounding.
    - ``macs(batch, length, cached=0) -> int``: multiply-accumulates of one call.
    - ``state_bytes(dtype) -> int``: what it keeps of one sequence, whatever its length.
    - ``kv_bytes(positions, dtype) -> int``: keys and values of so many positions of one sequence.
    - ``reset_parameters()``: start values of all that its constructor makes. Hosts never
      initialize what is inside a mixer, but for one with ``host_initialized = True``, which stands
      for the host's own; without the method the modules in it start as torch does it.
    - ``no_weight_decay`` and ``keep_in_fp32``: names of its parameters, as ``A_log`` or
      ``conv.bias``; ``force_weight_decay``: of those that decay although they have one axis;
      ``learning_rate_multipliers``: a number for each such name.
    - ``projections() -> dict[str, nn.Module | tuple[nn.Module, slice]]``: linear layers by role,
      which may be scored and factored; a slice says which output rows of a fused layer. Roles of
      an attention are q, k, v and o. ``writes_residual`` and ``reads_residual`` name the roles that
      touch the residual stream, "o" and "q", "k", "v" unless they are said.
    - ``narrowing_blocker``: why its heads cannot go one by one, in a few words.
    - ``separable``: False where an activation or a channel mixer mixes its neurons.
    - ``mixing_matrix(x)``: the (B, L, L) or (B, H, L, L) matrix that it applies to its values.
    - ``describe() -> str``: a few words for reports.

    Args:
        name: what edits and recipes call it.
        kind: where it can stand: "token_mixer", "channel_mixer", "activation", ...
        facts: ``reads``, ``state``, ``causal``, ``any_length``, ``shape``, ``is_stock``,
            ``stock_tensors`` of :class:`Component`.

    Raises:
        ValueError: the kind or a fact is not known; a recurrent component takes no ``state``.
        InvalidInputError: the name is taken.

    Example:
        >>> from modwright.core.registry import registries_restored
        >>> with registries_restored():
        ...     @component("mean", kind="token_mixer", causal=False)
        ...     class Mean(nn.Module):
        ...         def forward(self, x):
        ...             return x.mean(1, keepdim=True).expand_as(x)
        ...     COMPONENTS["mean"].kind, COMPONENTS["mean"].needs
        ('token_mixer', ())
    """
    if kind not in get_args(Kind):
        raise ValueError(f"unknown kind {kind!r}; valid values: {', '.join(get_args(Kind))}")
    unknown = [word for word in facts if word not in _FACTS]
    if unknown:
        raise ValueError(f"unknown fact {unknown[0]!r} of component {name!r}")

    def register(make: C) -> C:
        taken = inspect.signature(getattr(make, "forward", make)).parameters
        needs = tuple(word for word in HANDED if word in taken)
        if facts.get("state") == "recurrent" and isinstance(make, type) and "state" not in needs:
            raise ValueError(f"component {name!r} is recurrent, so its forward takes a state")
        made = Component(name, kind, make, needs=needs, **facts)
        COMPONENTS.of(kind).add(name, made, again=_same(make))
        if isinstance(make, type):
            _NAMES[make] = (kind, name)
        return make

    return register


def has_shape(stock: Any, shape: Any) -> bool:
    """``is_stock`` of a component whose shape tells all of it: the stock part has the same."""
    return bool(getattr(stock, "shape", None) == shape)


def components(kind: Kind | None = None) -> dict[str, Component]:
    """The components of a kind by name; without a kind all, one of each name."""
    return COMPONENTS.all() if kind is None else COMPONENTS.of(kind).all()


def component_of(module: nn.Module) -> Component | None:
    """The component that a module is: by what its host says that it hosts, by its class or one that
    this derives from; else None."""
    told = getattr(module, "handover", None)
    adapted = (getattr(told, "kind", None), getattr(told, "name", ""))
    known: list[Any] = [adapted, *(_NAMES.get(each) for each in type(module).__mro__)]
    named = (one for one in known if one is not None and one[0] in COMPONENTS.kinds_of(one[1]))
    return next((COMPONENTS.of(kind)[name] for kind, name in named), None)


def said_by(module: nn.Module, word: str) -> Any:
    """What a module says under a name, as an attribute or a method; () where it says nothing."""
    said = getattr(module, word, ())
    return said() if callable(said) else said


def listed_tensors(module: nn.Module, word: str) -> dict[str, Tensor]:
    """The tensors whose names a module lists under a word such as ``no_weight_decay``.

    A name may lead into what is in the module (``conv.bias``). One that other variants of the
    module have, and which is None in this one, is left out.

    Raises:
        ValueError: the module never has a tensor of that name.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> layer.keep_in_fp32 = ("weight", "bias")
        >>> list(listed_tensors(layer, "keep_in_fp32"))
        ['weight']
    """
    found = {}
    for name in said_by(module, word):
        path, _, leaf = name.rpartition(".")
        try:
            tensor = getattr(module.get_submodule(path), leaf)
        except AttributeError:
            known = ", ".join(own for own, _ in module.named_parameters())
            raise ValueError(f"{word} names {name!r}, which is not there; it has {known}") from None
        if isinstance(tensor, Tensor):
            found[name] = tensor
    return found


_NAMES: dict[type, tuple[Kind, str]] = {}
_FACTS = ("reads", "state", "causal", "any_length", "shape", "is_stock", "stock_tensors")


def _same(make: Callable[..., nn.Module]) -> Callable[[Component], bool]:
    """Whether a component that is registered is this one, its file being run again."""

    def again(taken: Component) -> bool:
        names = [(f.__module__, f.__qualname__) for f in (taken.make, make)]
        return names[0] == names[1]

    return again
