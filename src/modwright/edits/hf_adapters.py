"""Components at the place of an attention or an MLP, called as the blocks of a model call these.

A component is plain torch: it reads (B, L, C) or a map, and what it asks for by the names of its
parameters. Here it gets that from what its host knows: the state from a slot of the cache, the
padding from an attention mask of any form, rotary angles, the spatial shape. The component itself
becomes the module of the host, its class with a forward in the host's convention mixed in; so its
tensors have the names that they have in the component, right below the place. Each convention, of
transformers' blocks, timm's and modwright's own, is one adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StaticCache

from modwright.core.errors import InvalidInputError
from modwright.edits.cache_state import StateLayer, StockState, state_layer
from modwright.edits.padding import packed, padding_in
from modwright.edits.registry import KIND_AT, make_part
from modwright.nn.component import Component
from modwright.nn.layouts import SpatialShape, to_feature_map, to_tokens
from modwright.nn.placeholders import Opaque, become

__all__ = ["Adapted", "Handover", "InOwnBlock", "InTimm", "OwnBlockAttention", "TimmAttention"]
__all__ += [
    "Within",
    "adapter_of",
    "cache_among",
    "component_builder",
    "host",
    "keeps_state",
    "needs_grid",
]
__all__ += ["states_in"]

_CACHES = ("cache", "past_key_values", "cache_params", "layer_past")


@dataclass(frozen=True)
class Handover:
    """What a component is handed where it stands.

    Attributes:
        name: of the component, within its ``kind``.
        needs: see :data:`modwright.nn.component.HANDED`.
        recurrent: it returns (y, state), and a slot of the cache is its own.
        pairs: its host takes (y, attention weights).
        reads: see :class:`modwright.nn.component.Component`.
        grid: (H, W) of the tokens, where blocks do not tell it; ``prefix`` tokens come before.
    """

    name: str
    kind: str
    needs: tuple[str, ...]
    recurrent: bool
    pairs: bool
    reads: str = "tokens"
    grid: SpatialShape | None = None
    prefix: int = 0


class Adapted(Opaque):
    """Mixed into the class of a component that stands in a block of transformers.

    hidden_states (B, L, C) -> the same, or a pair with None for the attention weights.

    Attributes:
        handover: what it is handed.
        layer_idx: its slot in the cache, where it keeps a state.
    """

    handover: Handover
    layer_idx: int | None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        # Whatever else stands in this class would hide what the component calls so.
        told = {"attention_mask": args[0]} if args else {}
        run, own = super(Opaque, self).forward, self.handover
        shape = own.grid or kwargs.get("spatial_shape")
        mixed = _mixed(self, run, hidden_states, shape, {**kwargs, **told})
        return (mixed, None) if own.pairs else mixed


class InTimm(Adapted):
    """Mixed in where a block of timm's calls: (B, L, C) -> the same."""

    def forward(self, hidden_states: Tensor, attn_mask: Any = None, **kwargs: Any) -> Any:
        run, told = super(Opaque, self).forward, {"attention_mask": attn_mask}
        return _mixed(self, run, hidden_states, self.handover.grid, told)


class InOwnBlock(Adapted):
    """Mixed in where one of modwright's own blocks calls, in the layout of that block.

    (B, L, C) or (B, C, H, W), with the grid (H, W) -> the same. What else a stage tells its mixers
    is handed over by name.
    """

    def forward(self, hidden_states: Tensor, spatial_shape: Any = None, **mixing: Any) -> Any:
        run = super(Opaque, self).forward
        return _mixed(self, run, hidden_states, spatial_shape, mixing)


class TimmAttention:
    """Mixed into modwright's attention where a block of timm's calls: a tensor in, a tensor out."""

    handover: Handover

    def forward(
        self: Any,
        hidden_states: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        if is_causal:
            length = hidden_states.shape[1]
            attn_mask = hidden_states.new_ones(length, length, dtype=torch.bool).tril()
        mixed: Tensor = super().forward(hidden_states, attn_mask, **kwargs)[0]  # type: ignore[misc]
        return mixed


class OwnBlockAttention:
    """Mixed into modwright's attention where one of modwright's own blocks calls.

    The grid, and what else a stage tells its mixers, is of no use to it.
    """

    layout = "tokens"
    handover: Handover

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mixed: Tensor = super().forward(hidden_states)[0]  # type: ignore[misc]
        return mixed


_ADAPTERS = {"transformers": Adapted, "timm": InTimm, "modwright": InOwnBlock}
_OF_ATTENTION: Mapping[str, Any] = {"timm": TimmAttention, "modwright": OwnBlockAttention}
"""Convention -> what is mixed into modwright's attention, which follows that of transformers."""


class Within(nn.Module):
    """A component below a name of its own, where older checkpoints have its tensors."""

    def __init__(self, name: str, component: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, component)

    @property
    def component(self) -> nn.Module:
        """What answers for it."""
        return self.get_submodule(self.name)

    def forward(self, x: Tensor, **given: Any) -> Any:
        return self.component(x, **given)


def _mixed(
    module: Adapted,
    run: Callable[..., Any],
    x: Tensor,
    shape: SpatialShape | None,
    host_told: Mapping[str, Any],
) -> Tensor:
    """What a component makes of ``x``, handed what it asks for."""
    told = module.handover
    if x.ndim == 4 and told.reads == "tokens":
        tokens = _mixed(module, run, to_tokens(x), shape, host_told)
        return to_feature_map(tokens, (x.shape[2], x.shape[3]))
    layer = _state_layer(told, module.layer_idx, x, host_told)
    given = _handed(told, x, layer, shape, host_told)
    if not told.recurrent:
        return _on_grid(told, run, x, shape, given)
    state = None if layer is None else layer.state
    mixed, state = _two(told, run(x, state=state, **given))
    if layer is not None:
        layer.write(state, *x.shape[:2])
    return mixed


def _on_grid(
    told: Handover,
    run: Callable[..., Any],
    x: Tensor,
    shape: SpatialShape | None,
    given: Mapping[str, Any],
) -> Tensor:
    """Calls a component that reads maps with a map of the tokens.

    Tokens before the positions of the grid each get the mean of these minus themselves.
    """
    if told.reads != "map" or x.ndim == 4:
        mixed: Tensor = run(x, **given)
        return mixed
    if shape is None:
        raise _no_grid(told.name)
    before = told.prefix if told.grid is not None else x.shape[1] - shape[0] * shape[1]
    prefix, positions = x[:, :before], x[:, before:]
    mixed = to_tokens(run(to_feature_map(positions, shape), **given))
    if not before:
        return mixed
    return torch.cat([positions.mean(1, keepdim=True) - prefix, mixed], dim=1)


def _no_grid(name: str) -> InvalidInputError:
    return InvalidInputError(
        f"{name} reads feature maps (B, C, H, W), and the tokens there lie on no grid"
    )


def _state_layer(
    told: Handover, slot: int | None, x: Tensor, kwargs: Mapping[str, Any]
) -> StateLayer | StockState | None:
    """Where the state is kept; None without a state, or without a cache."""
    if not told.recurrent or (cache := cache_among(kwargs)) is None:
        return None
    assert slot is not None, "replay gives every state a slot"
    layer = state_layer(cache, slot)
    layer.check_batch(x.shape[0])
    return layer


def _handed(
    told: Handover,
    x: Tensor,
    layer: StateLayer | StockState | None,
    shape: SpatialShape | None,
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """What the component asks for beside its state."""
    found = {"position_embeddings": kwargs.get("position_embeddings"), "spatial_shape": shape}
    given = {name: value for name, value in found.items() if name in told.needs}
    for name, value in given.items():
        if value is None:
            raise InvalidInputError(f"{told.name} asks for {name}, and the model hands over none")
    if "padding_mask" in told.needs:
        given["padding_mask"] = _padding(told, kwargs.get("attention_mask"), x, layer, kwargs)
    return given


def _padding(
    told: Handover,
    mask: Any,
    x: Tensor,
    layer: StateLayer | StockState | None,
    kwargs: Mapping[str, Any],
) -> Tensor | None:
    if kwargs.get("cu_seq_lens_q") is not None:
        raise packed()
    static = isinstance(cache_among(kwargs), StaticCache) and not isinstance(layer, StockState)
    if static and layer is None:
        raise InvalidInputError(
            f"{told.name} asks for the padding and keeps no state, so nothing tells which tokens "
            "of a static cache are new; leave cache_implementation out"
        )
    seen = 0 if layer is None else layer.seen
    return padding_in(mask, x.shape[0], x.shape[1], seen, static=static)


def _two(told: Handover, out: Any) -> tuple[Tensor, Any]:
    if isinstance(out, tuple) and len(out) == 2:
        return out
    raise InvalidInputError(
        f"{told.name} is registered as recurrent, so its forward returns (y, state), not a "
        f"{type(out).__name__}"
    )


def needs_grid(component: Component) -> bool:
    """It mixes the positions of a grid, which the host must know."""
    return component.reads == "map" or "spatial_shape" in component.needs


def host(
    module: nn.Module,
    component: Component,
    role: str,
    convention: str = "transformers",
    told: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The module itself, as the blocks of a model call what stands at a place.

    Args:
        module: what the component made.
        role: "attention" or "mlp".
        convention: how blocks call it; see :class:`modwright.anatomy.families.table.FamilyTable`.
        told: what the host knows: ``grid`` (H, W) and ``prefix``, tokens before it, where blocks do
            not tell them; ``layout`` of modwright's own blocks; ``within``, the name below which
            its tensors lie; ``pairs``, False where blocks of transformers take a tensor from an
            attention, too.

    Raises:
        InvalidInputError: the component is of another kind, or asks for what a host has not.

    Example:
        >>> from modwright.nn.component import Component
        >>> told = Component("linear", "token_mixer", nn.Linear)
        >>> y, weights = host(nn.Linear(4, 4), told, "attention")(torch.zeros(1, 3, 4))
        >>> y.shape, weights
        (torch.Size([1, 3, 4]), None)
    """
    name, kind, asked = component.name, component.kind, dict(told or {})
    if KIND_AT[role] != kind:
        place = next((place for place, stands in KIND_AT.items() if stands == kind), None)
        where = "inside another part" if place is None else f"at {place}"
        raise InvalidInputError(f"{name} is a {kind}, which stands {where}, not at {role}")
    adapter: Any = None if getattr(module, "host_called", False) else _ADAPTERS[convention]
    if getattr(module, "follows_transformers", False):
        adapter = _OF_ATTENTION.get(convention)
    elif component.state == "keys":
        raise InvalidInputError(
            f"{name} keeps keys and values, and only modwright's attention is handed a cache of "
            "them; a component may keep a recurrent state"
        )
    if adapter is None:
        return module
    if component.reads == "map" and convention != "modwright":
        if role == "mlp":
            raise InvalidInputError(f"{name} reads feature maps (B, C, H, W), and mlp reads tokens")
        if asked.get("grid") is None:
            raise _no_grid(name)
    missing = {"state", "padding_mask", "position_embeddings"} & {*component.needs}
    if role == "mlp" and (missing or component.state != "none"):
        words = ", ".join(sorted(missing)) or f"a state ({component.state})"
        raise InvalidInputError(f"{name} asks for {words}, which no host hands over at mlp")
    recurrent = component.state == "recurrent"
    pairs = role == "attention" and convention == "transformers" and asked.get("pairs", True)
    own = Handover(name, kind, component.needs, recurrent, pairs, component.reads)
    return _with_adapter(module, adapter, own, asked)


def _with_adapter(
    module: nn.Module, adapter: Any, handover: Handover, told: Mapping[str, Any]
) -> nn.Module:
    if told.get("within"):
        module = Within(told["within"], module)
    grid = told.get("grid")
    adapted: Any = become(module, adapter)
    adapted.handover = handover
    if grid is not None:
        shape = (int(grid[0]), int(grid[1]))
        adapted.handover = replace(handover, grid=shape, prefix=int(told.get("prefix", 0)))
    if issubclass(adapter, Adapted):
        adapted.layer_idx = None
        if "layout" in told:
            adapted.layout = told["layout"]
    return module


def adapter_of(module: nn.Module) -> type[Any]:
    """What is mixed into a component that stands in a model."""
    return next(kind for kind in type(module).__mro__[1:] if kind.__module__ == __name__)


def component_builder(
    make: Callable[..., nn.Module], shape: type[Any] | None, adapter: Any, handover: Handover
) -> Callable[..., nn.Module]:
    """Builds a component where nothing is registered: in the file of a standalone checkpoint."""

    def build(
        config: Any, current: Any, host: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> nn.Module:
        module = make_part(make, shape, config, kwargs, current)
        return _with_adapter(module, adapter, handover, host or {})

    return build


def cache_among(kwargs: Mapping[str, Any]) -> Any:
    """The cache that a block hands over, by whichever name its family and version gives it."""
    return next((kwargs[name] for name in _CACHES if kwargs.get(name) is not None), None)


def keeps_state(module: Any) -> bool:
    """A recurrent component stands there, so a slot of the cache is its own."""
    return isinstance(module, Adapted) and module.handover.recurrent


def states_in(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """The recurrent components of a model by their paths, first to last."""
    for path, module in model.named_modules():
        if isinstance(module, Adapted) and keeps_state(module):
            yield path, module
