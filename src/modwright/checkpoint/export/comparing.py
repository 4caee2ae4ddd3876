"""Compares an exported file with the live model, on batches and lengths it was not made with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modwright.core.errors import VerificationError
from modwright.core.modes import eval_mode
from modwright.edits.verify import probe_batch

if TYPE_CHECKING:
    from torch import Tensor

    from modwright.checkpoint.export.export_job import ExportJob

__all__ = [
    "TRACED",
    "ParityReport",
    "compare",
    "open_axes",
    "positions_of",
    "probe",
    "probes",
    "rounding",
]

TRACED = (2, 12)
"""Rows and tokens of the example that graphs are traced with."""

_ASKED = ((3, 17), (1, 5), (2, 1))

_OPEN = {"pixel_values": (0,)}
"""Axes of an input that may have other sizes than in the example, where not all may."""


@dataclass(frozen=True)
class ParityReport:
    """How an exported file computed beside the live model.

    Attributes:
        opened_with: program that ran it.
        inputs: (rows, tokens) of each batch; tokens is 0 for images.
        largest: largest difference of an output from the model's, with its weights as they are
            stored.
        spread: standard deviation of the live outputs.
        allowed: largest difference that is accepted.
        same_choice: share of positions whose largest output is that of the live model.
        said: one more sentence on what was tried.
        rounded: how far storing the weights in a smaller type moves the live model's outputs;
            0 where they are stored as they are.
    """

    opened_with: str
    inputs: tuple[tuple[int, int], ...]
    largest: float
    spread: float
    allowed: float
    same_choice: float
    said: str = ""
    rounded: float = 0.0

    @property
    def held(self) -> bool:
        return self.largest <= self.allowed

    def __str__(self) -> str:
        tried = ", ".join(f"{b} x {t}" if t else f"{b} images" for b, t in self.inputs)
        words = (
            f"opened with {self.opened_with}: largest difference {self.largest:.1e} of outputs "
            f"with spread {self.spread:.2g}, same choice at {self.same_choice:.1%} of positions "
            f"(batches of {tried})"
        )
        if self.rounded:
            words += f"; rounding the weights moved the outputs by at most {self.rounded:.1e}"
        return f"{words}; {self.said}" if self.said else words


def rounding(model: Any, floor: float = 1e-4) -> float:
    """What may differ, in units of the outputs' spread: sixteen roundings of the weights' type."""
    import torch

    return max(floor, 16 * torch.finfo(model.dtype).eps)


def probe(model: Any, rows: int, tokens: int, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs for a graph: all that a model's tokenizer or image processor makes.

    Where a model tells segments of a text apart, as BERT does, its tokenizer numbers them, and so
    do these: the second half of each row is another segment.
    """
    import torch

    batch = probe_batch(model, rows, tokens, seed)
    kinds = getattr(model.config, "type_vocab_size", None) or 0
    if kinds > 1 and "token_type_ids" in inspect.signature(model.forward).parameters:
        ids = batch["input_ids"]
        segments = (torch.arange(ids.shape[1]) >= ids.shape[1] // 2).to(ids)
        batch["token_type_ids"] = segments.expand_as(ids).contiguous()
    return batch


def open_axes(batch: Mapping[str, Tensor]) -> dict[str, dict[int, Any]]:
    """Which axes of each input a graph leaves open: rows and tokens; images keep their size.

    What a model does with an image depends on its size in too many ways for one graph.

    Example:
        >>> import torch
        >>> [list(axes) for axes in open_axes({"input_ids": torch.ones(2, 3)}).values()]
        [[0, 1]]
    """
    import torch

    return {
        name: dict.fromkeys(_OPEN.get(name, range(tensor.dim())), torch.export.Dim.AUTO)
        for name, tensor in batch.items()
    }


def probes(model: Any) -> Iterator[dict[str, Tensor]]:
    """The batches that outputs are compared on."""
    for seed, (rows, tokens) in enumerate(_ASKED, start=1):
        yield probe(model, rows, tokens, seed)


def positions_of(batch: dict[str, Tensor]) -> Tensor:
    """Positions as generation counts them: padding on the left has none."""
    return (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)


def compare(
    work: ExportJob,
    run: Callable[[dict[str, Tensor]], Tensor],
    *,
    opened_with: str,
    tolerance: float,
    said: str = "",
    positions: bool = False,
    weights: Mapping[str, Tensor] | None = None,
) -> ParityReport:
    """Runs both on the same batches; positions under padding are left out.

    Args:
        work: holds the live model.
        run: gives the exported file's first output for some inputs.
        opened_with: what runs it, for the message.
        tolerance: largest difference that is accepted, in units of the live outputs' spread.
        said: one more sentence.
        positions: tell both the position of every token, counted without the padding.
        weights: the model's parameters as the file stores them, where it rounds; the file is held
            to the model with these.

    Raises:
        VerificationError: outputs differ more, have another shape, or are not finite.
    """
    import torch

    inputs: list[tuple[int, int]] = []
    largest, rounded, same, total = 0.0, 0.0, 0, 0
    expected: list[Tensor] = []
    for batch in probes(work.model):
        if positions:
            batch.pop("token_type_ids", None)  # graphs for generation take none
            batch["position_ids"] = positions_of(batch)
        with torch.no_grad(), eval_mode(work.model):
            live = work.model(**batch)[0].float()
            wanted = live if weights is None else _with_weights(work.model, weights, batch)
            found = run(batch).float()
        if found.shape != live.shape:
            raise VerificationError(
                f"{opened_with} gives an output of shape {tuple(found.shape)}, the model of "
                f"{tuple(live.shape)}"
            )
        mask = batch.get("attention_mask")
        if mask is not None and live.shape[:2] == mask.shape:
            live, wanted, found = (x[mask.bool()] for x in (live, wanted, found))
        if not torch.isfinite(found).all():
            raise VerificationError(f"{opened_with} gives outputs that are NaN or infinite")
        largest = max(largest, float((found - wanted).abs().max()))
        rounded = max(rounded, float((wanted - live).abs().max()))
        chosen = found.argmax(-1) == live.argmax(-1)
        same, total = same + int(chosen.sum()), total + chosen.numel()
        expected.append(live.flatten())
        rows, *rest = next(iter(batch.values())).shape
        inputs.append((rows, rest[0] if len(rest) == 1 else 0))
    spread = float(torch.cat(expected).std())
    made = ParityReport(
        opened_with,
        tuple(inputs),
        largest,
        spread,
        tolerance * spread,
        same / total,
        said,
        rounded,
    )
    if not made.held:
        raise VerificationError(
            f"{opened_with} computes something else: outputs differ by {largest:.1e}, "
            f"{made.allowed:.1e} is allowed"
        )
    return made


def _with_weights(model: Any, weights: Mapping[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """The model's first output with other values in its parameters, which it keeps."""
    import torch

    result: Tensor = torch.func.functional_call(model, dict(weights), (), batch)[0]
    return result.float()
