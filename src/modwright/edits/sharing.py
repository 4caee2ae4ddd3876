"""Which live models share tensors, and how one of them gets tensors of its own.

A result of :func:`~modwright.edits.apply` shares what did not change with its source. That costs no
memory, and is harmless as long as nobody writes; whoever trains a model separates it first.
"""

from __future__ import annotations

import copy
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn

from modwright.core.compat.torch import tensor_tables

__all__ = ["own_tensors", "sharing_with"]

_GROUPS: WeakKeyDictionary[nn.Module, WeakSet[nn.Module]] = WeakKeyDictionary()


def note_sharing(one: nn.Module, other: nn.Module) -> None:
    """Remembers that two models share tensors, for as long as both live."""
    group = _GROUPS.get(one, WeakSet([one])) | _GROUPS.get(other, WeakSet([other]))
    for model in group:
        _GROUPS[model] = group


def sharing_with(model: nn.Module) -> list[nn.Module]:
    """The other live models that were made of this one, or that it was made of."""
    return [other for other in _GROUPS.get(model, ()) if other is not model]


def own_tensors(model: nn.Module, *others: nn.Module) -> int:
    """Copies what a model has in one memory with other models; its own ties stay.

    Args:
        model: gets the copies, in place.
        others: stay as they are, beside those that the model is known to share with.

    Returns:
        How many tensors were copied.

    Example:
        >>> import modwright
        >>> from modwright.edits import Plan, apply, remove
        >>> source = modwright.open("preset:tiny-llama")
        >>> change = remove(source.anatomy.blocks[0])
        >>> result = apply(source.model, Plan.of(source.anatomy, "by hand", change)).model
        >>> own_tensors(result) > 0, own_tensors(result)
        (True, 0)
    """
    taken = {
        _memory(tensor)
        for other in (*others, *sharing_with(model))
        for tensor in (*other.parameters(), *other.buffers())
    }
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old one stays alive, so its id is its own
    for module in model.modules():
        for slots in tensor_tables(module):
            for name, tensor in slots.items():
                if tensor is None or not _memory(tensor) or _memory(tensor) not in taken:
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = tensor, copy.deepcopy(tensor)
                slots[name] = made[id(tensor)][1]
    return len(made)


def _memory(tensor: Tensor) -> int:
    """Where the tensor's memory begins; 0 where it has none."""
    return 0 if tensor.is_meta else tensor.untyped_storage().data_ptr()
