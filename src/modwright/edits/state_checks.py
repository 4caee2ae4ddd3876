"""Whether recurrent components compute the same however their tokens come, and which one does not.

The step of a component and its scan are two programs for one function, and both read the padding
mask. A model is run on a whole batch, on chunks of it with a cache, and on a row without its
padding. The first component whose outputs differ although its inputs agree is the one to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modwright.anatomy.coerce import cache_keyword
from modwright.core.capture import HookPoint, capture
from modwright.edits.hf_adapters import states_in

__all__ = ["chunks_are_the_whole", "padding_leaves_states_alone"]

Seen = dict[tuple[str, str], Tensor]
"""(path of a component, "input" or "output") -> what passed there, (B, L, C)."""

Tolerance = Callable[[Tensor], float]
"""How far tensors that should be equal may be apart."""


def chunks_are_the_whole(
    model: nn.Module, batch: dict[str, Tensor], tolerance: Tolerance
) -> tuple[bool, str]:
    """Whether chunks of 1, 3, all other tokens but one, and 1 give what the whole batch does.

    Also says what was seen.

    Args:
        batch: input_ids and attention_mask, perhaps with rows that are left-padded.
    """
    length = batch["input_ids"].shape[1]
    sizes = [1, *(size for size in (min(3, length - 2), length - 5) if size > 0), 1]
    whole, pieces = _run(model, batch, [length]), _run(model, batch, sizes)
    told = f"in chunks of {', '.join(map(str, sizes))} tokens"
    return _compare(
        whole, pieces, batch["attention_mask"].bool(), tolerance, told, "its step and its state"
    )


def padding_leaves_states_alone(
    model: nn.Module, batch: dict[str, Tensor], tolerance: Tolerance
) -> tuple[bool, str]:
    """Whether a left-padded last row gives what it does without its padding; what was seen."""
    row = {name: tensor[-1:] for name, tensor in batch.items()}
    length, real = row["input_ids"].shape[1], int(row["attention_mask"].sum())
    alone = {name: tensor[:, length - real :] for name, tensor in row.items()}
    padded = {key: x[:, length - real :] for key, x in _run(model, row, [length]).items()}
    everything = torch.ones_like(alone["input_ids"], dtype=torch.bool)
    return _compare(
        _run(model, alone, [real]),
        padded,
        everything,
        tolerance,
        f"behind {length - real} tokens of padding",
        "how it reads the padding mask",
    )


def _run(model: Any, batch: dict[str, Tensor], sizes: Sequence[int]) -> Seen:
    """What passes each component while the batch is read in chunks; one alone needs no cache."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    positions, name = (mask.cumsum(-1) - 1).clamp(min=0), cache_keyword(model)
    points = {
        (path, side): HookPoint(module, side)
        for path, module in states_in(model)
        for side in ("input", "output")
    }
    pieces: dict[tuple[str, str], list[Tensor]] = {key: [] for key in points}
    held: dict[str, Any] = {}
    start = 0
    for size in sizes:
        end = start + size
        with capture(points, copy=True) as seen:
            out = model(
                input_ids=ids[:, start:end],
                attention_mask=mask[:, :end],
                position_ids=positions[:, start:end],
                use_cache=len(sizes) > 1,
                **held,
            )
        held, start = {name: out[name]} if len(sizes) > 1 else {}, end
        for key, tensor in seen.items():
            pieces[key].append(tensor.float())
    return {key: torch.cat(found, dim=1) for key, found in pieces.items()}


def _compare(
    wanted: Seen, found: Seen, real: Tensor, tolerance: Tolerance, told: str, look_at: str
) -> tuple[bool, str]:
    worst = 0.0
    for key, tensor in wanted.items():  # inputs come before outputs, first layers before last ones
        path, side = key
        off = float((found[key] - tensor)[real].abs().max())
        if off <= tolerance(tensor):
            worst = max(worst, off)
        elif side == "output":
            return False, f"{path} gives outputs that differ by {off:.1e} {told}; see {look_at}"
        else:
            return False, f"what {path} reads differs by {off:.1e} {told}; see what is before it"
    return True, f"largest difference {worst:.1e} {told}"
