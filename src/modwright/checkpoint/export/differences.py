"""What of an edited model the stock architecture does not have, in words."""

from __future__ import annotations

from typing import Any

__all__ = ["differences"]

_WORDS = {
    "attention": "another shape of attention",
    "factors": "factors in place of",
    "linear": "another width of",
    "feed_forward": "a feed-forward part of its own in",
}


def differences(model: Any) -> list[str]:
    """What differs from the stock architecture, and in which blocks; nothing for a plain model.

    Example:
        >>> import modwright
        >>> from modwright.edits import Plan, remove
        >>> anatomy = modwright.open("preset:tiny-llama").anatomy
        >>> change = remove(anatomy.blocks[0].attention) + remove(anatomy.blocks[1].attention)
        >>> differences(modwright.apply(anatomy.model, Plan.of(anatomy, "by hand", change)).model)
        ['no attention in blocks 0-1']
    """
    from modwright.edits.edit import Remove, split_address
    from modwright.edits.remodeled import edits_of

    found: dict[str, list[int]] = {}
    for edit in edits_of(model.config):
        index, role = split_address(edit.path)
        if isinstance(edit, Remove):
            what = f"no {role}"
        elif role == edit.part:
            what = _WORDS.get(role, f"another {role}")
        else:
            what = f"{_WORDS.get(edit.part, f'{edit.part} in place of')} {role}"
        found.setdefault(what, [])
        if index is not None:
            found[what].append(index)
    return [f"{what} in {_blocks(where)}" if where else what for what, where in found.items()]


def _blocks(indices: list[int]) -> str:
    """[0, 1, 2, 5] -> "blocks 0-2, 5"."""
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    note = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"block {note}" if len(runs) == 1 and len(runs[0]) == 1 else f"blocks {note}"
