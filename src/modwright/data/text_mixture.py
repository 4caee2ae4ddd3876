"""Calibration on several texts: windows of each in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError
from modwright.data.mixture import each_once, in_turn
from modwright.data.text import Batch, TokenWindows, token_windows
from modwright.data.text_sources import TextSource

__all__ = ["mixed_windows"]


def mixed_windows(
    tokenizer: Any, data: Sequence[TextSource], *, windows: int, **options: Any
) -> TokenWindows:
    """Windows of several texts in turn, for calibration; an entry ``weight`` of one is its share.

    Args:
        tokenizer: of the model.
        data: the texts, as :func:`~modwright.data.text.token_windows` takes one.
        windows: over all of them.
        options: of :func:`~modwright.data.text.token_windows`.

    Raises:
        InvalidInputError: a text that is too short for its share, and what that refuses.
    """
    given = [dict(one) if isinstance(one, Mapping) else one for one in data]
    weights = [one.pop("weight", 1.0) if isinstance(one, dict) else 1.0 for one in given]
    order = in_turn(weights, [windows] * len(given))[:windows]
    batch_size = options.pop("batch_size", 1)
    made: list[TokenWindows] = []
    rows: list[list[Tensor]] = []
    for at, text in enumerate(given):
        count = sum(part == at for part, _ in order)
        if not count:
            raise InvalidInputError(f"{windows} windows are too few for {len(given)} texts")
        found = token_windows(tokenizer, text, windows=count, **options)
        made.append(found)
        rows.append([row for batch in found for row in batch.input_ids])
    ids = torch.stack([rows[part][row] for part, row in order])
    recipe = {**made[0].recipe, "windows": windows, "tokens": ids.numel()}
    for key in ("data", "split", "column", "encoding", "documents"):
        told = each_once((str(one.recipe[key] or "") for one in made), " + ")
        recipe[key] = told or None
    recipe["order"] = f"{recipe['order']}, texts in turn"
    recipe["batch_size"] = batch_size
    recipe["parts"] = [one.recipe for one in made]
    recipe["sha256"] = sha256_of(ids.long())
    return TokenWindows(tuple(Batch(part) for part in ids.split(batch_size)), recipe)
