"""Which experts the tokens of a model use.

Axes: N experts, T tokens, d hidden_size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.anatomy import Anatomy
from modwright.core.capture import HookPoint, capture
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode
from modwright.data.text import Batch

__all__ = ["NONE_SPLIT", "ExpertUsage", "expert_usage", "routers"]

NONE_SPLIT = "no MLP of this model is split into experts; split some with emoe first"


class Router(NamedTuple):
    """How the experts of one MLP are chosen: what is read at a point (..., d), as T tokens -> which
    experts work on each, (T, N) of 0 and 1."""

    point: HookPoint
    num_experts: int
    used: Callable[[Tensor], Tensor]


def routers(model: nn.Module | Anatomy) -> dict[str, Router]:
    """The routers of a model by the address of their MLP; none where no MLP has experts."""
    found = {}
    for block in Anatomy.of(model).blocks:
        for _, part in block.sublayers():
            if (routed := part.routed) is not None:
                count = routed.shape.num_experts
                point = HookPoint(routed, "input")
                found[part.address] = Router(point, count, _flat(routed.route))
            elif (neurons := part.neurons) is not None and neurons.choose is not None:
                count = neurons.num_experts or 0
                used = _one_hot(neurons.choose, count)
                found[part.address] = Router(neurons.point, count, used)
    return found


def _flat(route: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: route(x).flatten(0, -2)


def _one_hot(choose: Callable[[Tensor], Tensor], count: int) -> Callable[[Tensor], Tensor]:
    return lambda x: F.one_hot(choose(x.flatten(0, -2)), count).sum(-2)


@dataclass(frozen=True)
class ExpertUsage:
    """How many of ``tokens``, padding left out, used each expert: address of an MLP -> (N,)."""

    counts: Mapping[str, Tensor]
    tokens: int

    def shares(self, address: str) -> Tensor:
        """(N,): the share of tokens that used each expert of an MLP."""
        return self.counts[address] / self.tokens

    def below(self, minimum: int) -> dict[str, list[int]]:
        """The experts that fewer than ``minimum`` tokens used, of MLPs that have any."""
        found = {name: (n < minimum).nonzero().flatten() for name, n in self.counts.items()}
        return {name: index.tolist() for name, index in found.items() if len(index)}

    def __repr__(self) -> str:
        told = (f"{name} {int(n.min())} to {int(n.max())}" for name, n in self.counts.items())
        return f"ExpertUsage({self.tokens} tokens; tokens per expert: {', '.join(told)})"


@torch.no_grad()
def expert_usage(model: nn.Module, batches: Iterable[Mapping[str, Tensor] | Batch]) -> ExpertUsage:
    """Counts which experts the tokens of some batches use, in every MLP that has experts.

    ``batches`` are keyword arguments of a forward pass each, or batches of token windows. Where an
    attention mask says 0, a token is not counted.

    Example:
        >>> import modwright
        >>> from modwright.surgery import make_method
        >>> method = make_method("emoe", {"num_experts": 4, "top_k": 1, "layers": [0]})
        >>> model = modwright.apply(modwright.open("preset:tiny-llama"), method).model
        >>> usage = expert_usage(model, [{"input_ids": torch.arange(12).view(2, 6)}])
        >>> usage.tokens, int(usage.counts["blocks.0.mlp"].sum())
        (12, 12)
    """
    there = routers(model)
    if not there:
        raise InvalidInputError(NONE_SPLIT)
    counts = {name: torch.zeros(one.num_experts, dtype=torch.long) for name, one in there.items()}
    points = {name: one.point for name, one in there.items()}
    device = next(model.parameters()).device
    tokens = 0
    with eval_mode(model):
        for batch in batches:
            given = batch if isinstance(batch, Mapping) else batch.tensors()
            mask = given.get("attention_mask")
            with capture(points) as seen:
                model(**{name: value.to(device) for name, value in given.items()})
            for name, one in there.items():
                used = one.used(seen[name]).cpu()
                if mask is not None:
                    used = used[mask.flatten().bool()]
                counts[name] += used.sum(0)
            tokens += len(used)
    if not tokens:
        raise InvalidInputError("there is no token to count: give at least one batch")
    return ExpertUsage(counts, tokens)
