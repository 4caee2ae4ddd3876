"""What is meant by calibration data that someone gives in Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from modwright.calibration.tensors import CalibrationData, from_tensors
from modwright.calibration.text import from_sequences
from modwright.core.errors import InvalidInputError

__all__ = ["calibration_of"]


def calibration_of(given: Any) -> CalibrationData:
    """Calibration data of what is given.

    Args:
        given: calibration data as it is; token ids, as a tensor (B, T) or as a list of 1-D tensors
            or lists of numbers; or batches of tensors by keyword, such as a list of dicts or a
            ``DataLoader`` of them.

    Raises:
        InvalidInputError: it is something else.

    Example:
        >>> calibration_of([[5, 6, 7], [8, 9]]).recipe["tokens"]
        5
    """
    if hasattr(given, "recipe") and isinstance(given, Iterable):
        return cast(CalibrationData, given)
    if isinstance(given, str):
        given = [given]  # refused below, as a list of texts is
    if isinstance(given, Mapping):
        given = [given]
    if isinstance(given, Tensor):
        given = list(given) if given.dim() == 2 else [given]
    rows = list(given) if isinstance(given, Iterable) else None
    if rows and all(isinstance(row, Mapping) for row in rows):
        return from_tensors(rows)
    ids = [_ids(row) for row in rows or ()]
    if ids and all(row is not None for row in ids):
        return from_sequences([row for row in ids if row is not None], pad_id=0)
    what = f"a list of {type(rows[0]).__name__}" if rows else type(given).__name__
    raise InvalidInputError(
        f"calibration data cannot be {what}; valid: token ids, a list of dicts of tensors, or for "
        "text modwright.calibration.token_windows(tokenizer, text, windows=..., length=...)"
    )


def _ids(row: Any) -> Tensor | None:
    """A row of token ids, or None where it is none."""
    if isinstance(row, Sequence) and not isinstance(row, str):
        if not row or not all(isinstance(one, int) and not isinstance(one, bool) for one in row):
            return None
        return torch.tensor(row)
    is_ids = isinstance(row, Tensor) and row.dim() == 1 and not row.is_floating_point()
    return row if is_ids and row.dtype != torch.bool else None
