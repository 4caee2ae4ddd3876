"""Which names of a model are one tensor in a checkpoint, and which share memory by chance."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["state_apart", "stored_names"]


def stored_names(model: nn.Module) -> dict[str, str]:
    """Each name of the state -> the name that it is tied to, or itself.

    Ties go by name, as a class and its config declare them, and hold as long as both names are one
    tensor: a checkpoint can say these and no others.

    Example:
        >>> import modwright
        >>> stored_names(modwright.open("preset:tiny-llama").model)["lm_head.weight"]
        'model.embed_tokens.weight'
    """
    state = model.state_dict(keep_vars=True)
    declared: Any = getattr(model, "all_tied_weights_keys", None)
    if declared is None:  # a transformers that tells no pairs
        first: dict[int, str] = {}
        return {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}
    found = {}
    for name, tensor in state.items():
        source = name
        while source in declared and state.get(declared[source]) is tensor:
            source = declared[source]
        found[name] = source
    return found


def state_apart(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model, with copies of what overlaps in memory with what it is not tied to.

    Nothing is copied of nearly every model.
    """
    state: dict[str, Tensor] = model.state_dict()
    names = stored_names(model)
    spans = sorted((*_span(tensor), name) for name, tensor in state.items() if _is_here(tensor))
    copies: dict[str, Tensor] = {}
    end, owner = (-1, -1), ""
    for storage, start, stop, name in spans:
        overlaps = (storage, start) < end
        if overlaps and names[name] != owner:
            state[name] = copies.setdefault(names[name], state[name].clone())
        if not overlaps:
            owner = names[name]
        end = max(end, (storage, stop))
    return state


def _is_here(tensor: Tensor) -> bool:
    return not tensor.is_meta and tensor.numel() > 0


def _span(tensor: Tensor) -> tuple[int, int, int]:
    """The storage, and where in it the tensor begins and ends, in bytes."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    start = tensor.data_ptr()
    return tensor.untyped_storage().data_ptr(), start, start + (last + 1) * tensor.element_size()
