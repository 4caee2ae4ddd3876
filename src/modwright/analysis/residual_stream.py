"""How much of the residual stream is its mean, which a pre-norm model never uses.

What a LayerNorm takes away is energy that every part before it could have left out; see
Pre-RMSNorm (arXiv 2305.14858).

Axes: b rows, t positions, d hidden_size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modwright.anatomy import Anatomy, Tap
from modwright.core.errors import Refused
from modwright.core.modes import eval_mode
from modwright.nn.norms import restore_coordinate

__all__ = ["StreamMean", "stream_mean"]


@dataclass(frozen=True)
class StreamMean:
    """The share of the stream's energy that lies in its mean, layer by layer.

    Attributes:
        shares: mean^2 / (mean^2 + variance) over the channels, averaged over positions: before each
            block, and last behind all of them.
        positions: how many were seen, padding left out.
        by_chance: the share of any one direction in a stream without preferred ones, 1 / d.
    """

    shares: tuple[float, ...]
    positions: int
    by_chance: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "shares": list(self.shares),
            "positions": self.positions,
            "by_chance": self.by_chance,
        }

    def __str__(self) -> str:
        told = [f"  before block {i}: {share:.2e}" for i, share in enumerate(self.shares[:-1])]
        told.append(f"  behind the blocks: {self.shares[-1]:.2e}")
        seen = f"{self.positions} positions, {self.by_chance:.2e} by chance"
        return "\n".join([f"the mean's share of the stream, {seen}", *told])


def stream_mean(
    model: nn.Module | Anatomy, batches: Mapping[str, Tensor] | Iterable[Any]
) -> StreamMean:
    """Measures how much of the residual stream is its mean.

    A stream that is stored without one coordinate (form "crms") gets it back first.

    Args:
        model: a model or its anatomy; it is left as it is.
        batches: the keyword arguments of one forward pass, or what gives some, such as windows of
            text.

    Raises:
        Refused: there is no batch.

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
    anatomy = model if isinstance(model, Anatomy) else Anatomy.of(model)
    taps = [block.stream_in for block in anatomy.blocks]
    taps.append(anatomy.blocks[-1].stream_out)
    sums = torch.zeros(len(taps), dtype=torch.float64)
    positions = 0
    with eval_mode(anatomy.model), torch.no_grad():
        for inputs in _inputs(batches):
            device = next(anatomy.model.parameters()).device
            with _reading(taps) as seen:
                anatomy.model(**{name: tensor.to(device) for name, tensor in inputs.items()})
            kept = inputs.get("attention_mask")
            shares = torch.stack([_share(seen[i], anatomy) for i in range(len(taps))]).cpu()
            if kept is not None:
                shares = shares[:, kept.cpu().bool()]
            flat = shares.reshape(len(taps), -1)  # (layers, positions)
            sums += flat.sum(1)
            positions += flat.shape[1]
    if not positions:
        raise Refused("stream_mean: there is no batch to look at")
    width = anatomy.hidden_size + _is_stored_without_one(anatomy)
    return StreamMean(tuple((sums / positions).tolist()), positions, 1 / width)


def _inputs(batches: Mapping[str, Tensor] | Iterable[Any]) -> Iterator[dict[str, Tensor]]:
    many: Iterable[Any] = [batches] if isinstance(batches, Mapping) else batches
    for batch in many:
        yield dict(batch if isinstance(batch, Mapping) else batch.tensors())


def _is_stored_without_one(anatomy: Anatomy) -> bool:
    return any(norm.kind == "crms" for norm in anatomy.stream.norms)


def _share(stream: Tensor, anatomy: Anatomy) -> Tensor:
    """(b, t, d) -> (b, t), in float64."""
    x = stream.double()
    if _is_stored_without_one(anatomy):
        x = restore_coordinate(x)
    energy = x.square().mean(-1)
    return x.mean(-1).square() / energy.clamp(min=torch.finfo(energy.dtype).tiny)


@contextmanager
def _reading(taps: list[Tap]) -> Iterator[dict[int, Tensor]]:
    """What passes at the taps during a forward pass, by their place in the list."""
    seen: dict[int, Tensor] = {}

    def hook(index: int, tap: Tap) -> Any:
        def on_input(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen[index] = args[0] if args else kwargs["hidden_states"]

        def on_output(module: nn.Module, args: Any, out: Any) -> None:
            seen[index] = out[0] if isinstance(out, tuple) else out

        if tap.side == "input":
            return tap.module.register_forward_pre_hook(on_input, with_kwargs=True)
        return tap.module.register_forward_hook(on_output)

    hooks = [hook(index, tap) for index, tap in enumerate(taps)]
    try:
        yield seen
    finally:
        for handle in hooks:
            handle.remove()
