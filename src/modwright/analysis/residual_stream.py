"""How much of the residual stream is its mean, which a LayerNorm takes away (arXiv 2305.14858)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modwright.anatomy import Anatomy
from modwright.core.capture import on_tensors
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode
from modwright.nn.norms import restore_coordinate

__all__ = ["StreamMean", "stream_mean"]


@dataclass(frozen=True)
class StreamMean:
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
        return {**asdict(self), "by_chance": self.by_chance}

    def __str__(self) -> str:
        names = [f"before block {i}" for i in range(len(self.shares) - 1)] + ["behind the blocks"]
        told = [f"  {name}: {share:.2e}" for name, share in zip(names, self.shares)]
        if len(set(self.widths)) > 1:
            told = [f"{line} (chance {1 / d:.2e})" for line, d in zip(told, self.widths)]
        seen = f"{self.positions} positions, {self.by_chance:.2e} by chance"
        return "\n".join([f"the mean's share of the stream, {seen}", *told])


def stream_mean(
    model: nn.Module | Anatomy, batches: Mapping[str, Tensor] | Iterable[Any]
) -> StreamMean:
    """Measures how much of the residual stream is its mean.

    A stream that is stored without one coordinate (form "crms") gets it back first.

    Args:
        model: it is left as it is.
        batches: the keyword arguments of one forward pass, or several, such as windows of text.

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
    sums, counts, widths = [0.0] * len(hook_points), [0] * len(hook_points), [0] * len(hook_points)
    mask: Tensor | None = None

    def add(layer: int, stream: Tensor) -> None:
        """(b, ..., d) -> the mean's share of the energy (b, ...)."""
        stream = restore_coordinate(stream.double()) if without_one else stream.double()
        energy = stream.square().mean(-1).clamp(min=torch.finfo(stream.dtype).tiny)
        shares = stream.mean(-1).square() / energy
        if mask is not None:
            shares = shares[mask.to(shares.device).bool()]
        sums[layer] += float(shares.sum())
        counts[layer] += shares.numel()
        widths[layer] = stream.shape[-1]

    many: Iterable[Any] = [batches] if isinstance(batches, Mapping) else batches
    device = next(anatomy.model.parameters()).device
    with eval_mode(anatomy.model), torch.no_grad(), on_tensors(hook_points, add):
        for batch in many:
            inputs = batch if isinstance(batch, Mapping) else batch.tensors()
            mask = inputs.get("attention_mask")
            anatomy.model(**{name: tensor.to(device) for name, tensor in inputs.items()})
    if not counts[0]:
        raise InvalidInputError("stream_mean: there is no batch to look at")
    shares = tuple(total / count for total, count in zip(sums, counts))
    return StreamMean(shares, counts[0], tuple(widths))
