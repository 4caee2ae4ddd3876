"""Calibration data of any kind: batches of the tensors that a model is called with.

Axes: B rows of a batch, T tokens of a row, C channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from modwright.calibration.recording import ModelInput
from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError
from modwright.data.text import from_sequences

__all__ = ["CalibrationData", "TensorBatch", "TensorBatches", "calibration_of", "from_tensors"]


class CalibrationData(Protocol):
    """Batches for a model, and what is told of them: token windows, images, anything."""

    @property
    def recipe(self) -> dict[str, Any]:
        """Where the data comes from, as JSON values; with "sha256" of what is in it."""

    def __iter__(self) -> Iterator[ModelInput]: ...


@dataclass(frozen=True, eq=False)
class TensorBatch:
    """What one forward pass of a model is called with, by keyword."""

    given: Mapping[str, Tensor]

    @property
    def attention_mask(self) -> Tensor | None:
        """(B, T): ones at real tokens; None where all are real."""
        return self.given.get("attention_mask")

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.given)


@dataclass(frozen=True, eq=False)
class TensorBatches:
    """Batches of keyword tensors and their recipe; iterates over the batches."""

    batches: tuple[TensorBatch, ...]
    recipe: dict[str, Any]

    def __iter__(self) -> Iterator[TensorBatch]:
        return iter(self.batches)

    def describe(self) -> str:
        """One line for reports and logs.

        Example:
            >>> from_tensors([{"pixel_values": torch.zeros(4, 3, 8, 8)}], name="zeros").describe()
            'zeros: 4 rows in 1 batches of pixel_values 3 x 8 x 8'
        """
        said = self.recipe
        held = ", ".join(f"{name} {shape}".strip() for name, shape in said["tensors"].items())
        return f"{said['data']}: {said['rows']} rows in {said['batches']} batches of {held}"


def from_tensors(batches: Sequence[Mapping[str, Tensor]], name: str = "tensors") -> TensorBatches:
    """Calibration data from one's own tensors, such as the images of an image processor.

    Args:
        batches: for each forward pass the model's keyword arguments, all with the same number of
            rows B: ``pixel_values`` (B, C, h, w), ``input_ids`` (B, T) and so on. An
            ``attention_mask`` (B, T) leaves padding out of the statistics.
        name: what the data is called in plans and reports.

    Raises:
        InvalidInputError: no batches, no tensors, or rows that do not go together; says which.

    Example:
        >>> images = torch.randn(8, 3, 16, 16)
        >>> data = from_tensors([{"pixel_values": part} for part in images.split(4)], "noise")
        >>> data.recipe["rows"], len(data.batches)
        (8, 2)
    """
    if not batches:
        raise InvalidInputError(
            f"{name}: no batches; give at least one mapping of names to tensors"
        )
    made, total = [], 0
    parts: list[str | Tensor] = []
    for index, batch in enumerate(batches):
        given = dict(batch)
        wrong = [key for key, value in given.items() if not isinstance(value, Tensor)]
        if wrong or not given:
            what = f"{wrong[0]} is {type(given[wrong[0]]).__name__}" if wrong else "it is empty"
            raise InvalidInputError(f"{name}: batch {index} must hold tensors by name; {what}")
        rows = {key: value.shape[0] if value.dim() else 0 for key, value in given.items()}
        if len(set(rows.values())) != 1 or 0 in rows.values():
            raise InvalidInputError(
                f"{name}: the tensors of batch {index} have {rows} rows; give all as many"
            )
        for key, tensor in sorted(given.items()):
            parts += [f"{key} {tensor.dtype} {tuple(tensor.shape)}", tensor]
        total += max(rows.values())
        made.append(TensorBatch(given))
    tensors = {key: " x ".join(map(str, t.shape[1:])) for key, t in made[0].given.items()}
    recipe = {"data": name, "batches": len(made), "rows": total, "tensors": tensors}
    return TensorBatches(tuple(made), {**recipe, "sha256": sha256_of(*parts)})


def calibration_of(given: Any) -> CalibrationData:
    """Calibration data of what someone gives in Python.

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
    if isinstance(given, str | Mapping):  # text is refused below, as a list of texts is
        given = [given]
    if isinstance(given, Tensor):
        given = list(given) if given.dim() == 2 else [given]
    rows = list(given) if isinstance(given, Iterable) else []
    if rows and all(isinstance(row, Mapping) for row in rows):
        return from_tensors(rows)
    ids = [_ids(row) for row in rows]
    if ids and all(row is not None for row in ids):
        return from_sequences(cast(list[Tensor], ids), pad_id=0)
    what = f"a list of {type(rows[0]).__name__}" if rows else type(given).__name__
    raise InvalidInputError(
        f"calibration data cannot be {what}; valid: token ids, a list of dicts of tensors, or for "
        "text modwright.calibration.token_windows(tokenizer, text, windows=..., length=...)"
    )


def _ids(row: Any) -> Tensor | None:
    """A row of token ids, or None where it is none."""
    if isinstance(row, Sequence) and not isinstance(row, str):
        whole = row and all(isinstance(one, int) and not isinstance(one, bool) for one in row)
        return torch.tensor(row) if whole else None
    is_ids = isinstance(row, Tensor) and row.dim() == 1 and not row.is_floating_point()
    return row if is_ids and row.dtype != torch.bool else None
