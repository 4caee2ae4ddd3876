"""Puts another activation into MLPs, such as a polynomial that learns (arXiv 2411.03884).

The maps stay. Where the new activation is linear in its coefficients, these can be set by least
squares, so that it comes nearest to the old one on the data; then the model is to be trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from modwright.anatomy import Anatomy, pick_layers
from modwright.calibration import Collector
from modwright.calibration.activation_sums import ActivationSums
from modwright.core.errors import InvalidInputError, refusing
from modwright.core.progress import Progress
from modwright.edits import Change
from modwright.edits.canonical import target_of
from modwright.edits.change import place_map
from modwright.edits.edit import Replace
from modwright.edits.registry import activation
from modwright.nn.activations.fit import CoefficientFit, Fit
from modwright.surgery.method import Data, Decision, Folder, Method, Requirements, register_method

__all__ = ["ReplaceActivation"]


@register_method(
    "replace_activation",
    paper="polycom",
    requires=Requirements(calibration=True, parts=("mlp",)),
    examples=({"blocks": "1"}, {"activation": "poly_relu", "fit": True, "blocks": "0, -1"}),
)
@dataclass(frozen=True)
class ReplaceActivation(Method):
    """Replaces the activation of MLPs; in gated ones, that of the gate (arXiv 2411.03884).

    Attributes:
        activation: a registered activation, such as "poly_norm" or "poly_relu", or one of
            transformers.
        blocks: which, as in "3, 7", "8:", "*".
        fit: sets the coefficients of a polynomial by least squares on the data, so that it imitates
            the old activation; otherwise they have start values.
        order: the highest power of a polynomial; its own default unless it is said.
        eps: of poly_norm; its own default unless it is said.
        eps_per_order: of poly_norm: eps^i for the power i.
        weight_decay: the coefficients decay when the model is trained, as in the authors' recipe.

    In a mixture, all experts of a layer share one activation, which reads each expert's neurons by
    themselves. After poly_norm, no neuron can go without the others: it normalizes over them.

    Example:
        >>> import modwright
        >>> edited = modwright.apply(modwright.open("preset:tiny-llama"), ReplaceActivation())
        >>> modwright.Anatomy.of(edited).blocks[0].mlp
        Mlp(blocks.0.mlp: gated, 96 wide, poly_norm)
    """

    activation: str = "poly_norm"
    blocks: str = "*"
    fit: bool = False
    order: int | None = None
    eps: float | None = None
    eps_per_order: bool = False
    weight_decay: bool = False

    def __post_init__(self) -> None:
        if self.fit and not hasattr(self._new(), "powers"):
            raise InvalidInputError(
                f"replace_activation: {self.activation} has no coefficients to fit; leave fit out"
            )

    def title(self) -> str:
        return f"{self.activation}{', fitted,' if self.fit else ''} in blocks {self.blocks}"

    def wants_data(self) -> bool:
        return self.fit

    def collectors(self) -> Sequence[Collector]:
        return [self._collector(None)] if self.fit else []

    def _collector(self, blocks: tuple[int, ...] | None) -> Collector:
        return ActivationSums(self._new, {"activation": self.activation, **self._options()}, blocks)

    def parameter_bounds(self, anatomy: Anatomy) -> tuple[int, int]:
        """Exactly the new coefficients: less than nothing goes."""
        edits = self._change(anatomy, {}).edits
        models = anatomy.model, target_of(anatomy, edits).skeleton()
        before, after = (sum(p.numel() for p in model.parameters()) for model in models)
        return before - after, before - after

    def _found(self, anatomy: Anatomy, data: Data, folder: Folder, progress: Progress) -> Decision:
        parts = self._parts(anatomy)
        fits: dict[str, Fit] = {}
        if self.fit:
            fits = self._fitted(anatomy, data, folder, progress)
        told: dict[str, Any] = {"replaced": [part.address for part in parts]}
        if fits:
            told["fit"] = {
                address: {"residual": fit.residual, "relative": round(fit.relative, 4)}
                for address, fit in fits.items()
            }
            told["meaning"] = (
                "residual is the root mean square of new minus old activation on the data, "
                "relative its share of the old one's"
            )
        note = "The new activations have start values: train the model."
        if fits:
            note = "The new activations imitate the old ones as well as they can: train the model."
        return self._change(anatomy, fits), told, (note,)

    def _fitted(
        self, anatomy: Anatomy, data: Data, folder: Folder, progress: Progress
    ) -> dict[str, Fit]:
        blocks = tuple(self._blocks(anatomy))
        collector = self._collector(blocks)
        statistics = self._measured(anatomy, data, folder, progress, "fit", [collector])
        found = {}
        for part, index in zip(self._parts(anatomy), blocks):
            fit, sums = CoefficientFit(self._new()), statistics[index]
            fit.sums = {name: sums[f"activation sums/{name}"] for name in fit.sums}
            with refusing(f"replace_activation: {part.address}"):
                found[part.address] = fit.solve()
        return found

    def _change(self, anatomy: Anatomy, fits: dict[str, Fit]) -> Change:
        change = Change()
        for part in self._parts(anatomy):
            new, fit = self._new(), fits.get(part.address)
            values = {} if not hasattr(new, "state_dict") else new.state_dict()
            if fit is not None:
                values = new.state_of(fit.coeff, fit.bias)
            change += self._replaced(part, values)
        return change

    def _replaced(self, part: Any, values: dict[str, Tensor]) -> Change:
        """The part with its maps as they are, around the new activation."""
        options = self._options() or None
        with refusing(f"replace_activation: {part.address}"):
            shape = replace(part.shape, activation=self.activation, activation_kwargs=options)
        inner = Change()
        for projection in part.projections().values():
            if projection.is_zero_mean:
                raise InvalidInputError(
                    f"replace_activation: {projection.address} recenters what it returns, which "
                    "only the MLP that it stands in does; replace the activation first"
                )
            if projection.is_factored:
                inner += place_map(projection.address, projection.parameters())
        named = {f"{part.address}.act.{name}": value for name, value in values.items()}
        return Change((Replace(part.address, part.placed_as, shape.to_dict()),), named) + inner

    def _blocks(self, anatomy: Anatomy) -> list[int]:
        return sorted(set(pick_layers(self.blocks, len(anatomy.blocks))))

    def _parts(self, anatomy: Anatomy) -> list[Any]:
        """The MLPs and mixtures of the chosen blocks."""
        found = []
        for index in self._blocks(anatomy):
            block = anatomy.block(index)
            if block.mlp is None:
                why = "the MLP was removed before"
                if "mlp" not in anatomy.family.block:
                    why = f"blocks of {anatomy.family.name} have no MLP"
                if block.at("mlp") is not None:
                    why = "what stands in place of the MLP shows no activation"
                raise InvalidInputError(f"replace_activation: block {index}: {why}")
            found.append(block.mlp)
        return found

    def _options(self) -> dict[str, Any]:
        given: dict[str, Any] = {"order": self.order, "eps": self.eps}
        told = {name: value for name, value in given.items() if value is not None}
        switches = {name: getattr(self, name) for name in ("eps_per_order", "weight_decay")}
        return told | {name: on for name, on in switches.items() if on}

    def _new(self) -> Any:
        with refusing("replace_activation", (TypeError, ValueError)):
            return activation(self.activation, self._options())
