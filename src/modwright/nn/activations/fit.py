"""Coefficients of a polynomial activation that imitate another one, by least squares.

The result is linear in them, so the sums of r + 1 unknowns over all data are all that is kept:
x may come in any number of batches. Axes: r, the order; unknown 0 is the bias, unknown i the
coefficient of the power i.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["CoefficientFit", "Fit", "LinearInPowers", "fit_coefficients"]

_AT_ONCE = 2**18
"""Numbers of x whose powers are held in float64 at one time."""

_DISTINCT = 1e-12
"""Below this share of the largest, an eigenvalue of the scaled sums is rounding."""


@runtime_checkable
class LinearInPowers(Protocol):
    """An activation bias + sum over i of coeff_i powers_i(x)."""

    order: int

    def powers(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the coefficients multiply, ascending: r tensors like x."""


@dataclass(frozen=True)
class Fit:
    """The best coefficients, in float64.

    Attributes:
        coeff: (r,), ascending.
        bias: (1,).
        residual: root mean square of what is left.
        relative: ``residual`` over the root mean square of the targets.
    """

    coeff: Tensor
    bias: Tensor
    residual: float
    relative: float


class CoefficientFit:
    """Collects batches of what an activation reads and of what it should give.

    ``sums`` are float64 sums over all batches, which several processes may add up.

    Raises:
        ValueError: the activation is no polynomial of this kind.

    Example:
        >>> from modwright.nn.activations.polynomial import PolyReLU
        >>> found = CoefficientFit(PolyReLU(order=2))
        >>> for _ in range(3):
        ...     x = torch.randn(8, 5)
        ...     found.update(x, 2 * x.relu() + 1)
        >>> fit = found.solve()
        >>> [round(c, 6) + 0.0 for c in fit.coeff.tolist()], round(float(fit.bias), 6)
        ([2.0, 0.0], 1.0)
    """

    def __init__(
        self, activation: LinearInPowers, device: torch.device | str | None = None
    ) -> None:
        if not isinstance(activation, LinearInPowers):
            raise ValueError(f"{type(activation).__name__} has no coefficients that can be fitted")
        size = activation.order + 1
        shapes: dict[str, tuple[int, ...]] = {"gram": (size, size), "moment": (size,)}
        shapes |= {"square": (), "count": ()}
        self.activation = activation
        self.sums = {
            name: torch.zeros(shape, dtype=torch.float64, device=device)
            for name, shape in shapes.items()
        }

    @torch.no_grad()
    def update(self, inputs: Tensor, targets: Tensor) -> None:
        """Takes a batch: x (..., f) and what should come of it, of the same shape.

        Raises:
            ValueError: shapes differ, or something is no finite floating-point number.
        """
        if inputs.shape != targets.shape or not inputs.dim():
            raise ValueError(
                f"inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)} must have one "
                "shape (..., f)"
            )
        if not (inputs.is_floating_point() and targets.is_floating_point()):
            raise ValueError("inputs and targets must be floating-point numbers")
        width = inputs.shape[-1]
        rows = max(1, _AT_ONCE // max(1, width))
        pairs = zip(inputs.reshape(-1, width).split(rows), targets.reshape(-1, width).split(rows))
        for x, y in pairs:
            self._add(x.double(), y.double().flatten())

    def _add(self, x: Tensor, y: Tensor) -> None:
        terms = [torch.ones_like(y), *(power.flatten() for power in self.activation.powers(x))]
        design = torch.stack(terms)  # (r + 1, n)
        added = {
            "gram": design @ design.T,
            "moment": design @ y,
            "square": y @ y,
            "count": torch.tensor(float(len(y)), dtype=torch.float64),
        }
        if not all(bool(value.isfinite().all()) for value in added.values()):
            raise ValueError("inputs or targets hold NaN or infinite values, or powers overflow")
        for name, value in added.items():
            self.sums[name] += value.to(self.sums[name].device)

    def solve(self) -> Fit:
        """The best coefficients for all batches.

        Raises:
            ValueError: there is too little data, or the powers of it depend on each other, so that
                many coefficients are equally good.
        """
        gram, moment, square, count = (
            self.sums[name].cpu() for name in ("gram", "moment", "square", "count")
        )
        if int(count) < len(moment):
            raise ValueError(f"{int(count)} numbers do not determine {len(moment)} coefficients")
        scale = gram.diagonal().sqrt()
        unit = gram / scale.outer(scale)
        if not bool((scale > 0).all()) or _is_singular(unit):
            raise ValueError(
                "the inputs do not determine the coefficients: their powers depend on each other, "
                "as those of constant inputs do"
            )
        found = torch.linalg.solve(unit, moment / scale) / scale
        left = square - 2 * found @ moment + found @ gram @ found
        residual = float((left / count).clamp(min=0).sqrt())
        size = float((square / count).sqrt())
        return Fit(found[1:], found[:1], residual, residual / size if size else 0.0)


def fit_coefficients(
    activation: LinearInPowers,
    inputs: Tensor | Iterable[Tensor],
    targets: Tensor | Iterable[Tensor],
) -> Fit:
    """The coefficients with which an activation comes nearest to targets, by least squares.

    Args:
        activation: PolyReLU, PolyNorm, or another that is linear in its coefficients; its own do
            not matter and do not change.
        inputs: what it reads, (..., f), or batches of it.
        targets: what another activation makes of that, alike.

    Raises:
        ValueError: the activation has no coefficients, shapes differ, values are not finite, or
            the data do not determine the coefficients.

    Example:
        >>> from torch.nn import functional as F
        >>> from modwright.nn.activations.polynomial import PolyNorm
        >>> x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
        >>> act = PolyNorm()
        >>> fit = fit_coefficients(act, x, F.silu(x))
        >>> act.load_state_dict(act.state_of(fit.coeff, fit.bias))
        <All keys matched successfully>
        >>> round(fit.relative, 2)
        0.2
    """
    fit = CoefficientFit(activation)
    for x, y in zip(_batches(inputs), _batches(targets), strict=True):
        fit.update(x, y)
    return fit.solve()


def _batches(given: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
    return [given] if isinstance(given, Tensor) else given


def _is_singular(unit: Tensor) -> bool:
    values: Sequence[float] = torch.linalg.eigvalsh(unit).tolist()
    return values[0] <= _DISTINCT * values[-1]
