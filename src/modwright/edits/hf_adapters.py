"""Components at the place of an attention or an MLP, called as the blocks of a model call these.

A component is plain torch: it reads (B, L, C) and what it asks for by the names of its parameters.
Here it gets that from what its host knows: the state from a slot of the cache, the padding from an
attention mask of any form, rotary angles, the spatial shape. The component itself becomes the
module of the host, its class with a forward in the host's convention mixed in; so its tensors have
the names that they have in the component, right below the place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StaticCache

from modwright.core.errors import InvalidInputError
from modwright.edits.cache_state import StateLayer, StockState, state_layer
from modwright.edits.registry import make_part
from modwright.nn.component import Component
from modwright.nn.placeholders import Opaque, become

__all__ = ["Adapted", "Handover", "cache_among", "component_builder", "host", "keeps_state"]
__all__ += ["names_in_float32", "padding_in", "states_in"]

_PLACES = {"token_mixer": "attention", "channel_mixer": "mlp"}
_CACHES = ("cache", "past_key_values", "cache_params", "layer_past")
_HIDDEN = -1e3
"""What is added to scores of hidden tokens is at most this; no bias of a near token is."""


@dataclass(frozen=True)
class Handover:
    """What a component is handed where it stands.

    Attributes:
        name: of the component.
        needs: see :data:`modwright.nn.component.HANDED`.
        recurrent: it returns (y, state), and a slot of the cache is its own.
        pairs: its host takes (y, attention weights).
    """

    name: str
    needs: tuple[str, ...]
    recurrent: bool
    pairs: bool


class Adapted(Opaque):
    """Mixed into the class of a component that stands where an attention or an MLP stood.

    hidden_states (B, L, C) -> the same, or a pair with None for the attention weights.

    Attributes:
        handover: what it is handed.
        layer_idx: its slot in the cache, where it keeps a state.
    """

    handover: Handover
    layer_idx: int | None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        # Whatever else stands in this class would hide what the component calls so.
        told, run = self.handover, super(Opaque, self).forward
        layer = _state_layer(told, self.layer_idx, hidden_states, kwargs)
        given = _handed(told, hidden_states, layer, args, kwargs)
        if not told.recurrent:
            mixed = run(hidden_states, **given)
        else:
            state = None if layer is None else layer.state
            mixed, state = _two(told, run(hidden_states, state=state, **given))
            if layer is not None:
                layer.write(state, *hidden_states.shape[:2])
        return (mixed, None) if told.pairs else mixed


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
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """What the component asks for beside its state. Image models tell a shape by position."""
    shape = args[0] if args and isinstance(args[0], tuple) else kwargs.get("spatial_shape")
    found: dict[str, Any] = {
        "position_embeddings": kwargs.get("position_embeddings"),
        "spatial_shape": shape,
    }
    given = {name: value for name, value in found.items() if name in told.needs}
    for name, value in given.items():
        if value is None:
            raise InvalidInputError(f"{told.name} asks for {name}, and the model hands over none")
    if "padding_mask" in told.needs:
        mask = kwargs.get("attention_mask", kwargs.get("attn_mask"))
        if args and not isinstance(args[0], tuple):
            mask = args[0]
        given["padding_mask"] = _padding(told, mask, x, layer, kwargs)
    return given


def _padding(
    told: Handover,
    mask: Any,
    x: Tensor,
    layer: StateLayer | StockState | None,
    kwargs: Mapping[str, Any],
) -> Tensor | None:
    if kwargs.get("cu_seq_lens_q") is not None:
        raise _packed()
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


def host(module: nn.Module, component: Component, role: str, pairs: bool) -> nn.Module:
    """The module itself, as the blocks of a model call what stands at a place.

    Args:
        module: what the component made.
        role: "attention" or "mlp".
        pairs: the blocks take (y, attention weights) from an attention.

    Raises:
        InvalidInputError: the component is of another kind, or asks for what a host has not.

    Example:
        >>> from modwright.nn.component import Component
        >>> told = Component("linear", "token_mixer", nn.Linear)
        >>> y, weights = host(nn.Linear(4, 4), told, "attention", pairs=True)(torch.zeros(1, 3, 4))
        >>> y.shape, weights
        (torch.Size([1, 3, 4]), None)
    """
    name, kind = component.name, component.kind
    if _PLACES.get(kind) != role:
        where = f"at {_PLACES[kind]}" if kind in _PLACES else "inside another part"
        raise InvalidInputError(f"{name} is a {kind}, which stands {where}, not at {role}")
    if component.reads == "map":
        raise InvalidInputError(f"{name} reads feature maps (B, C, H, W), and {role} reads tokens")
    missing = {"state", "padding_mask", "position_embeddings"} & {*component.needs}
    if role == "mlp" and (missing or component.state != "none"):
        told = ", ".join(sorted(missing)) or f"a state ({component.state})"
        raise InvalidInputError(f"{name} asks for {told}, which no host hands over at mlp")
    if component.state == "keys":
        raise InvalidInputError(
            f"{name} keeps keys and values, and only modwright's attention is handed a cache of "
            "them; a component may keep a recurrent state"
        )
    recurrent = component.state == "recurrent"
    handover = Handover(name, component.needs, recurrent, pairs and role == "attention")
    adapted: Any = _with_adapter(module, handover)
    if component.reads == "tokens" and not hasattr(adapted, "layout"):
        adapted.layout = "tokens"  # blocks of feature maps ask for it
    return adapted


def _with_adapter(module: nn.Module, handover: Handover) -> nn.Module:
    adapted: Any = become(module, Adapted)
    adapted.handover, adapted.layer_idx = handover, None
    return module


def component_builder(
    make: Callable[..., nn.Module], shape: type[Any] | None, handover: Handover
) -> Callable[..., nn.Module]:
    """Builds a component where nothing is registered: in the file of a standalone checkpoint."""

    def build(config: Any, **kwargs: Any) -> nn.Module:
        return _with_adapter(make_part(make, shape, config, kwargs, None), handover)

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


def names_in_float32(model: nn.Module) -> set[str]:
    """Parameters that components want in float32 whatever a checkpoint stores, by path."""
    return {
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        for name in getattr(module, "keep_in_fp32", ())
    }


def padding_in(
    mask: Any, sequences: int, length: int, seen: int = 0, *, static: bool = False
) -> Tensor | None:
    """Which of the new tokens are real, read from a mask that was made for attentions.

    A mask (B, S) says it of all tokens. One of scores (B, heads, L, S), boolean or additive, says
    it where a token sees itself: on the diagonal. Its last row would not do, as windows hide tokens
    there, and the columns of a static cache that are still empty.

    Args:
        mask: of any of these forms, a block mask of flex attention, or None.
        sequences: B.
        length: new tokens L.
        seen: tokens of the cache before them.
        static: columns stand for all positions of a static cache, so new ones begin at ``seen``;
            else they are the last ones.

    Returns:
        (B, L), True where a token is real; None without a mask.

    Raises:
        InvalidInputError: a mask of another form, for fewer tokens, or of packed sequences.

    Example:
        >>> visible = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 1, 1]]).bool().view(1, 1, 3, 3)
        >>> padding_in(visible, 1, 3).tolist()  # the first of three tokens is padding
        [[False, True, True]]
    """
    if mask is None:
        return None
    shape = tuple(getattr(mask, "shape", ()))
    if len(shape) not in (2, 4) or shape[-1] < length:
        raise InvalidInputError(
            f"an attention mask of shape {shape} does not tell which of {length} tokens are real; "
            f"({sequences}, tokens) does"
        )
    first = seen if static and shape[-1] >= seen + length else shape[-1] - length
    if not isinstance(mask, Tensor):  # a block mask holds a function of its indices
        near = mask.kv_num_blocks.device
        rows, at = torch.arange(sequences, device=near)[:, None], torch.arange(length, device=near)
        told = mask.mask_mod(rows, torch.zeros_like(rows), at, at + first)
        return torch.as_tensor(told).expand(sequences, length)
    new = mask[..., first : first + length]
    if len(shape) == 2:
        return (new != 0).expand(sequences, length)
    visible = _visible(new[:, 0, -length:])
    if visible.shape[1] == 1:  # one row stands for all
        return visible[:, 0].expand(sequences, length)
    _check_one_sequence(visible)
    return visible.diagonal(dim1=1, dim2=2).expand(sequences, length)


def _visible(mask: Tensor) -> Tensor:
    """Booleans of a mask that is added to scores, or holds truth values."""
    return mask > _HIDDEN if mask.is_floating_point() else mask != 0


def _check_one_sequence(visible: Tensor) -> None:
    """Refuses rows of several sequences: a real token does not see the real one before it there.

    (B, L, L): what each new token sees of them. It is not asked where a graph is traced.
    """
    if torch.compiler.is_compiling() or visible.is_meta:
        return
    real, before = visible.diagonal(dim1=1, dim2=2), visible.diagonal(-1, dim1=1, dim2=2)
    if bool((real[:, 1:] & real[:, :-1] & ~before).any()):
        raise _packed()


def _packed() -> InvalidInputError:
    return InvalidInputError(
        "a row of several packed sequences cannot be told by a padding mask, and a state would run "
        "on from one to the next; pad the sequences instead"
    )
