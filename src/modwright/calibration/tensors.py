"""Calibration data of any kind: batches of the tensors that a model is called with.

Axes: B rows of a batch, T tokens of a row, C channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from modwright.calibration.recording import ModelInput
from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError

__all__ = ["CalibrationData", "TensorBatch", "TensorBatches", "from_tensors"]


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
        batches: for each forward pass the model's keyword arguments. All tensors of a batch have
            the same number of rows B: ``pixel_values`` (B, C, h, w), ``input_ids`` (B, T),
            ``token_type_ids`` (B, T) and so on. An ``attention_mask`` (B, T) leaves padding out of
            the statistics.
        name: what the data is called in plans and reports.

    Raises:
        InvalidInputError: no batches, no tensors, or rows that do not go together; says which.

    Example:
        >>> import modwright
        >>> model = modwright.open("preset:tiny-vit").model
        >>> images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> data = from_tensors([{"pixel_values": part} for part in images.split(4)], "noise")
        >>> from modwright.surgery import make_method
        >>> method = make_method("llm_drop", {"target": "mlp", "n": 1})
        >>> str(modwright.apply(model, method, data).tensor_diff)
        '66 tensors kept, 0 changed, 0 added, 6 removed'
    """
    if not batches:
        raise InvalidInputError(
            f"{name}: no batches; give at least one mapping of names to tensors"
        )
    made = []
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
        made.append(TensorBatch(given))
    tensors = {key: " x ".join(map(str, t.shape[1:])) for key, t in made[0].given.items()}
    recipe = {
        "data": name,
        "batches": len(made),
        "rows": sum(next(iter(batch.given.values())).shape[0] for batch in made),
        "tensors": tensors,
        "sha256": _digest(made),
    }
    return TensorBatches(tuple(made), recipe)


def _digest(batches: Sequence[TensorBatch]) -> str:
    parts: list[str | Tensor] = []
    for batch in batches:
        for name, tensor in sorted(batch.given.items()):
            parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}", tensor]
    return sha256_of(*parts)
