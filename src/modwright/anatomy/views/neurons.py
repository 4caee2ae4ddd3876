"""The neurons of a channel mixer: what its last linear layers read, each number by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from modwright.core.capture import HookPoint

__all__ = ["Neurons"]


@dataclass(frozen=True)
class Neurons:
    """The neurons of a channel mixer, and where to read them while the model runs.

    Every position uses all of them; or they are those of experts, which a router chooses from.

    Attributes:
        size: I, of each expert where there are experts.
        point: where the neurons are read (n, I); where there are experts, what the experts read
            (n, d).
        num_experts: N, each with neurons of its own; None where there are no experts.
        choose: what is read (n, d) -> the experts that work on each position (n, k).
        inner_of: an expert's number and what is read (n, d) -> its neurons (n, I).
    """

    size: int
    point: HookPoint
    num_experts: int | None = None
    choose: Callable[[Tensor], Tensor] | None = None
    inner_of: Callable[[int, Tensor], Tensor] | None = None

    @property
    def moments_shape(self) -> tuple[int, ...]:
        """(I, I), or (N, I, I): of their second moments."""
        squares = (self.size, self.size)
        return squares if self.num_experts is None else (self.num_experts, *squares)

    def of_experts(self, x: Tensor, all_tokens: bool = False) -> Iterator[tuple[int, Tensor]]:
        """Each expert's number and its neurons (m, I), for the positions that it works on.

        Args:
            x: what was read at :attr:`point`, (n, d).
            all_tokens: every expert sees every position, whatever the router says.

        Example:
            >>> import modwright, torch
            >>> neurons = modwright.open("preset:tiny-mixtral").anatomy.blocks[0].mlp.neurons
            >>> found = dict(neurons.of_experts(torch.randn(5, 48)))
            >>> sum(len(inner) for inner in found.values())  # two of four experts on each
            10
        """
        assert self.choose is not None and self.inner_of is not None, "there are no experts"
        chosen = self.choose(x)
        for expert in range(self.num_experts or 0):
            here = x if all_tokens else x[(chosen == expert).any(-1)]
            if len(here):
                yield expert, self.inner_of(expert, here)
