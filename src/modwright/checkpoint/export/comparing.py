"""Compares an exported file with the live model, on batches and lengths it was not made with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from modwright.checkpoint.opening import Checkpoint
from modwright.core.errors import VerificationError
from modwright.core.modes import eval_mode
from modwright.core.subprocess_worker import write_greedily
from modwright.core.subprocesses import open_in_new_process
from modwright.edits.verify import probe_batch

__all__ = ["ParityReport", "compare", "compare_in_new_process", "positions_of", "probe", "rounding"]

_ASKED = ((3, 17), (1, 5), (2, 1))


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


def rounding(model: Any) -> float:
    """What may differ, in units of the outputs' spread: sixteen roundings of the weights' type."""
    return max(1e-4, 16 * torch.finfo(model.dtype).eps)


def probe(model: Any, rows: int, tokens: int, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs for a graph: all that a model's tokenizer or image processor makes.

    Where a model tells segments of a text apart, as BERT does, its tokenizer numbers them, and so
    do these: the second half of each row is another segment.
    """
    batch = probe_batch(model, rows, tokens, seed)
    kinds = getattr(model.config, "type_vocab_size", None) or 0
    if kinds > 1 and "token_type_ids" in inspect.signature(model.forward).parameters:
        ids = batch["input_ids"]
        segments = (torch.arange(ids.shape[1]) >= ids.shape[1] // 2).to(ids)
        batch["token_type_ids"] = segments.expand_as(ids).contiguous()
    return batch


def _probes(model: Any) -> Iterator[dict[str, Tensor]]:
    for seed, (rows, tokens) in enumerate(_ASKED, start=1):
        yield probe(model, rows, tokens, seed)


def positions_of(batch: dict[str, Tensor]) -> Tensor:
    """Positions as generation counts them: padding on the left has none."""
    return (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)


def compare(
    work: Checkpoint,
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
        work: the live model.
        run: gives the exported file's first output for some inputs, with ``opened_with``.
        tolerance: largest difference that is accepted, in units of the live outputs' spread.
        positions: tell both the position of every token, counted without the padding.
        weights: the model's parameters as the file stores them, where it rounds; the file is held
            to the model with these.

    Raises:
        VerificationError: outputs differ more, have another shape, or are not finite.
    """
    inputs: list[tuple[int, int]] = []
    largest, rounded, same = 0.0, 0.0, []
    expected: list[Tensor] = []
    for batch in _probes(work.model):
        if positions:
            batch.pop("token_type_ids", None)  # graphs for generation take none
            batch["position_ids"] = positions_of(batch)
        with torch.no_grad(), eval_mode(work.model):
            live = wanted = work.model(**batch)[0].float()
            if weights is not None:
                call = torch.func.functional_call
                wanted = call(work.model, dict(weights), (), batch)[0].float()
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
        same.append((found.argmax(-1) == live.argmax(-1)).flatten())
        expected.append(live.flatten())
        rows, *rest = next(iter(batch.values())).shape
        inputs.append((rows, rest[0] if len(rest) == 1 else 0))
    spread, agreed = float(torch.cat(expected).std()), torch.cat(same)
    share, allowed = int(agreed.sum()) / agreed.numel(), tolerance * spread
    made = ParityReport(opened_with, tuple(inputs), largest, spread, allowed, share, said, rounded)
    if not made.held:
        raise VerificationError(
            f"{opened_with} computes something else: outputs differ by {largest:.1e}, "
            f"{allowed:.1e} is allowed"
        )
    return made


def compare_in_new_process(
    work: Checkpoint, folder: Path, auto: str, *, trust: bool = False, tolerance: float = 0.0
) -> ParityReport:
    """Compares a process without modwright: outputs, bit by bit unless a tolerance is said, and
    what it writes.

    Raises:
        VerificationError: it does not open there, or computes something else.
    """
    batches = list(_probes(work.model))
    fresh = open_in_new_process(
        folder,
        batches,
        library="forbidden",
        what="the exported checkpoint",
        auto=auto,
        trust=trust,
        write=1,
    )
    outputs = iter(fresh.outputs)
    said = f"opened as {fresh.model_class}"
    if fresh.written is not None:
        with torch.no_grad(), eval_mode(work.model):
            live = write_greedily(work.model, batches[1])
        if not torch.equal(fresh.written, live):
            raise VerificationError("the exported checkpoint writes other tokens than the model")
        said += ", and wrote the same tokens with its cache"
    return compare(
        work,
        lambda batch: next(outputs),
        opened_with=f"transformers {transformers.__version__} in a process without modwright",
        tolerance=tolerance,
        said=said,
    )
