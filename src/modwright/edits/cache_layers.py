"""Key/value cache slots. Survivors are numbered anew when attentions go.

The mask builder and ``cache.get_seq_length()`` read the first slot of each kind. A slot that no
attention fills is read as "nothing seen yet", and decoding goes wrong without an error. So the
survivors take the first slots of their kind, and the cache is told which slots stay empty.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import transformers.cache_utils

from modwright.core.errors import InvalidInputError

__all__ = ["cache_layers_of", "number_cache_layers", "unfilled_cache_layers"]

_KNOWS_EMPTY_LAYERS = hasattr(transformers.cache_utils, "DummyLayer")
"""This transformers can be told of empty slots; then even the first slot may be one."""


def cache_layers_of(layers: Sequence[int], types: Sequence[str] | None) -> list[int]:
    """The slot of each layer that has an attention.

    Layers of one type take the slots of that type in order, so each type's first slot is filled.

    Raises:
        InvalidInputError: no attention of the type of slot 0 is left while others are, and this
            version of transformers would read positions from that slot.

    Example:
        >>> cache_layers_of([2, 4, 5], ["full", "sliding", "full", "sliding", "full", "sliding"])
        [0, 2, 1]
    """
    if types is None:
        return list(range(len(layers)))
    free: dict[str, list[int]] = defaultdict(list)
    for slot, kind in enumerate(types):
        free[kind].append(slot)
    survivors = {types[index] for index in layers}
    if survivors and types[0] not in survivors and not _KNOWS_EMPTY_LAYERS:
        raise InvalidInputError(
            f"all {types[0]} layers would go, but cache slot 0 is of that type and gives the "
            f"position; keep one of layers {free[types[0]]}, or use transformers 5.24 or newer"
        )
    taken: dict[str, int] = defaultdict(int)
    slots = []
    for index in layers:
        kind = types[index]
        slots.append(free[kind][taken[kind]])
        taken[kind] += 1
    return slots


def unfilled_cache_layers(
    layers: Sequence[int], types: Sequence[str] | None, count: int
) -> list[int]:
    """Which of ``count`` slots the cache must not look at.

    Where no layer has an attention, the sliding slots: a cache of none but such slots cannot say
    how long it is, and an empty sliding one cannot be rolled back.
    """
    if layers:
        filled = set(cache_layers_of(layers, types))
    else:
        filled = {slot for slot in range(count) if types is None or "sliding" not in types[slot]}
    return [slot for slot in range(count) if slot not in filled] if filled else []


def number_cache_layers(layers: list[tuple[int, Any]], config: Any) -> None:
    """Gives each attention (its layer index, the module with ``layer_idx``) its slot, in place.

    Raises:
        InvalidInputError: as in :func:`cache_layers_of`.
    """
    slots = cache_layers_of([index for index, _ in layers], getattr(config, "layer_types", None))
    for (_, module), slot in zip(layers, slots):
        module.layer_idx = slot
