"""Key/value cache slots. Survivors are numbered anew when attentions go.

The mask builder and ``cache.get_seq_length()`` read the first slot of each kind. A slot that no
attention fills is read as "nothing seen yet", and decoding goes wrong without an error.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from modwright.errors import Refused

__all__ = ["number_slots"]


def number_slots(layers: list[tuple[int, Any]], config: Any) -> None:
    """Gives each attention (its layer index, the module with ``layer_idx``) its slot, in place.

    Layers of one type take the slots of that type in order, so each type's first slot is filled.

    Raises:
        Refused: no attention of the type of slot 0 is left while others are.
    """
    types = getattr(config, "layer_types", None)
    if types is None:
        for slot, (_, module) in enumerate(layers):
            module.layer_idx = slot
        return
    free: dict[str, list[int]] = defaultdict(list)
    for slot, kind in enumerate(types):
        free[kind].append(slot)
    survivors = {types[index] for index, _ in layers}
    if survivors and types[0] not in survivors:
        raise Refused(
            f"all {types[0]} layers would go, but cache slot 0 is of that type and gives the "
            f"position; keep one of layers {free[types[0]]}"
        )
    taken: dict[str, int] = defaultdict(int)
    for index, module in layers:
        kind = types[index]
        module.layer_idx = free[kind][taken[kind]]
        taken[kind] += 1
