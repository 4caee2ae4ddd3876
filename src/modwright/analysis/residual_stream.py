"""How much of the residual stream is its mean, which a LayerNorm takes away (arXiv 2305.14858)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modwright.analysis.finding import Chart, Finding
from modwright.analysis.registry import Analysis, Subject, analysis
from modwright.anatomy import Anatomy
from modwright.core.capture import on_tensors
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress
from modwright.nn.norms import restore_coordinate

__all__ = ["StreamMean", "stream_mean"]


DIRECTIONS = 199


@dataclass(frozen=True, kw_only=True)
class StreamMean(Finding):
    """The share of the stream's energy that lies in its mean, layer by layer.

    Attributes:
        shares: mean^2 / (mean^2 + variance) over the channels, averaged over positions: before each
            block, and last behind all of them.
        positions: how many were seen, padding left out; where stages make maps coarser, before the
            first block.
        widths: channels d of the stream, layer by layer.
    """

    shares: tuple[float, ...]
    positions: int
    widths: tuple[int, ...]

    @property
    def by_chance(self) -> float:
        """The share of any one direction in a stream without preferred ones, 1 / d, at first."""
        return 1 / self.widths[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**super().to_dict(), "by_chance": self.by_chance}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> StreamMean:
        return super().from_dict({k: v for k, v in stored.items() if k != "by_chance"})

    def charts(self) -> list[Chart]:
        """The share before each block and behind the last."""
        return [
            Chart(
                "The mean's share of the residual stream",
                "Before each block, and behind the last; dashed: 1 / d, that of any direction.",
                "block",
                "share of the energy",
                {"mean": self.shares},
                [1 / width for width in self.widths],
            )
        ]

    def lines(self) -> list[str]:
        """The share of every layer."""
        return str(self).splitlines()

    def __str__(self) -> str:
        names = [f"before block {i}" for i in range(len(self.shares) - 1)] + ["behind the blocks"]
        told = [f"  {name}: {share:.2e}" for name, share in zip(names, self.shares)]
        if len(set(self.widths)) > 1:
            told = [f"{line} (chance {1 / d:.2e})" for line, d in zip(told, self.widths)]
        seen = f"{self.positions} positions, {self.by_chance:.2e} by chance"
        return "\n".join([f"the mean's share of the stream, {seen}", *told])


@analysis(
    "stream_mean",
    finding=StreamMean,
    value="the mean's share of the residual stream's energy, in multiples of 1 / d, where it is "
    "largest",
    null=f"the largest that {DIRECTIONS} random directions in place of the mean's reach",
    paper="pre-rmsnorm",
)
@dataclass(frozen=True)
class StreamMeanAnalysis(Analysis):
    """How much of the residual stream is its mean, which a LayerNorm takes away."""

    def run(
        self, subject: Subject, *, directory: Path | None = None, progress: Progress = SILENT
    ) -> StreamMean:
        return stream_mean(subject.anatomy, subject.data or (), progress)


def stream_mean(
    model: nn.Module | Anatomy,
    batches: Mapping[str, Tensor] | Iterable[Any],
    progress: Progress = SILENT,
) -> StreamMean:
    """Measures how much of the residual stream is its mean.

    Random directions, the same for all positions, say what the share of any one direction is. A
    stream that is stored without one coordinate (form "crms") gets it back first.

    Args:
        model: it is left as it is.
        batches: the keyword arguments of one forward pass, or several, such as windows of text.
        progress: told of the batches.

    Raises:
        InvalidInputError: there is no batch.

    Example:
        >>> import modwright
        >>> from modwright.surgery import make_method
        >>> model = modwright.open("preset:tiny-gpt2").model
        >>> ids = {"input_ids": torch.arange(1, 21).view(1, 20)}
        >>> found = stream_mean(model, ids)
        >>> len(found.shares), found.positions, min(found.shares) > 0.001
        (5, 20, True)
        >>> converted = modwright.apply(model, make_method("pre_rmsnorm")).model
        >>> max(stream_mean(converted, ids).shares) < 1e-12
        True
    """
    anatomy = Anatomy.of(model)
    without_one = any(norm.restores_coordinate for norm in anatomy.stream.norms)
    hook_points = dict(enumerate([block.resid_pre for block in anatomy.blocks]))
    hook_points[len(hook_points)] = anatomy.blocks[-1].resid_post
    sums = [torch.zeros(1 + DIRECTIONS, dtype=torch.float64) for _ in hook_points]
    counts, widths = [0] * len(hook_points), [0] * len(hook_points)
    mask: Tensor | None = None

    def add(layer: int, stream: Tensor) -> None:
        """(b, ..., d) -> shares of the energy (b, ..., 1 + DIRECTIONS): the mean's, and others'."""
        stream = restore_coordinate(stream.double()) if without_one else stream.double()
        stream = stream.flatten(0, -2) if mask is None else stream[mask.to(stream.device).bool()]
        energy = stream.square().sum(-1).clamp(min=torch.finfo(stream.dtype).tiny)
        along = stream @ _directions(stream.shape[-1]).to(stream.device)
        sums[layer] += (along.square() / energy[:, None]).sum(0).cpu()
        counts[layer] += len(stream)
        widths[layer] = stream.shape[-1]

    many: Any = [batches] if isinstance(batches, Mapping) else batches
    total = len(many) if isinstance(many, Sized) else 0
    device = next(anatomy.model.parameters()).device
    with (
        eval_mode(anatomy.model),
        torch.no_grad(),
        on_tensors(hook_points, add),
        progress.phase("stream mean", total) as task,
    ):
        for batch in many:
            inputs = batch if isinstance(batch, Mapping) else batch.tensors()
            mask = inputs.get("attention_mask")
            anatomy.model(**{name: tensor.to(device) for name, tensor in inputs.items()})
            task.advance()
    if not counts[0]:
        raise InvalidInputError("stream_mean: there is no batch to look at")
    shares = torch.stack([total / count for total, count in zip(sums, counts)])
    value, *others = (shares * torch.tensor(widths)[:, None]).amax(0).tolist()
    found = tuple(shares[:, 0].tolist())
    return StreamMean(
        value=value, null=max(others), shares=found, positions=counts[0], widths=tuple(widths)
    )


@cache
def _directions(width: int) -> Tensor:
    """(d, 1 + DIRECTIONS): unit vectors, the mean's and random ones."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(width, DIRECTIONS, generator=generator, dtype=torch.float64)
    found = torch.cat([torch.ones(width, 1, dtype=torch.float64), drawn], 1)
    return found / found.norm(dim=0)
