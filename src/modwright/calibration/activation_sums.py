"""What the fit of an activation to the one that stands in a block needs of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from modwright.anatomy import Block, HookPoint
from modwright.calibration.collectors import Accumulator
from modwright.core.errors import refusing
from modwright.nn.activations.fit import CoefficientFit, LinearInPowers

__all__ = ["ActivationSums"]


@dataclass(frozen=True)
class ActivationSums:
    """Sums over the data from which the coefficients of a new activation follow.

    Results: the ``sums`` of :class:`modwright.nn.activations.fit.CoefficientFit`, over everything
    that the activation of the MLP reads; in experts, over the positions that each works on. Nothing
    of other blocks.

    Attributes:
        make: makes the new activation, which is linear in its coefficients.
        named: what says which one that is, as JSON values.
        blocks: by number; None for all that have an MLP.
    """

    make: Callable[[], LinearInPowers] = field(repr=False)
    named: Mapping[str, Any]
    blocks: tuple[int, ...] | None = None
    history: int = 1

    def start(self, block: Block) -> Accumulator:
        part = self._part(block)
        return _Nothing() if part is None else _ActivationAccumulator(block, part, self.make())

    def describe(self) -> dict[str, Any]:
        chosen = None if self.blocks is None else list(self.blocks)
        return {"collector": "activation sums", **self.named, "blocks": chosen}

    def bytes(self, block: Block) -> int:
        size = self.make().order + 1
        return 0 if self._part(block) is None else 8 * (size * size + size + 2)

    def _part(self, block: Block) -> Any:
        return block.mlp if self.blocks is None or block.index in self.blocks else None


class _Nothing:
    hook_points: Mapping[str, HookPoint] = {}
    sums: Mapping[str, Tensor] = {}

    def update(self, activations: Mapping[str, Tensor], previous: Sequence[Tensor]) -> None:
        """Sees nothing."""

    def result(self) -> dict[str, Tensor]:
        return {}


class _ActivationAccumulator:
    def __init__(self, block: Block, part: Any, activation: LinearInPowers) -> None:
        place = next((parameter.device for parameter in block.module.parameters()), None)
        self.part, self.fit = part, CoefficientFit(activation, place)
        self.hook_points = {"activation": part.activation_point}
        self.sums: Mapping[str, Tensor] = self.fit.sums

    def update(self, activations: Mapping[str, Tensor], previous: Sequence[Tensor]) -> None:
        with refusing(self.part.address):
            for x in self.part.activation_inputs(activations["activation"]):
                self.fit.update(x, self.part.act_function(x))

    def result(self) -> dict[str, Tensor]:
        return dict(self.sums)
