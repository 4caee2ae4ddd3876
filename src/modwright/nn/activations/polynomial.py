"""Activations that learn a polynomial: PolyReLU and PolyNorm (arXiv 2411.03884)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modwright.nn.activations.polynomial_functions import (
    normalized_power,
    poly_norm,
    poly_relu,
)
from modwright.nn.component import component

__all__ = ["PolyNorm", "PolyReLU"]

_FLOAT32 = torch.finfo(torch.float32)


class _Polynomial(nn.Module):
    """r coefficients and a bias, which all neurons of a layer share.

    Parameters are stored as in the authors' checkpoints: ``weight`` (r,) descends, so its first
    entry belongs to the highest power, and ``bias`` is (1,).
    """

    def __init__(self, order: int, weight_decay: bool) -> None:
        super().__init__()
        if isinstance(order, bool) or not isinstance(order, int) or order < 1:
            raise ValueError(f"the order of a polynomial is a whole number from 1, not {order}")
        self.order, self.weight_decay = order, weight_decay
        self.weight = nn.Parameter(torch.empty(order))
        self.bias = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every power counts 1 / r."""
        nn.init.constant_(self.weight, 1 / self.order)
        nn.init.zeros_(self.bias)

    @property
    def no_weight_decay(self) -> tuple[str, ...]:
        """Its numbers are few and have a scale of their own, so that they do not decay."""
        return () if self.weight_decay else ("weight", "bias")

    @property
    def force_weight_decay(self) -> tuple[str, ...]:
        """The others of one axis never decay, so that decay must be asked for."""
        return ("weight", "bias") if self.weight_decay else ()

    def coefficients(self) -> Tensor:
        """(r,), ascending: entry i - 1 belongs to the power i."""
        return self.weight.flip(0)

    @staticmethod
    def state_of(coeff: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """What is stored for ascending coefficients (r,) and a bias.

        Example:
            >>> PolyReLU.state_of(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(1))["weight"]
            tensor([3., 2., 1.])
        """
        return {"weight": coeff.flip(0), "bias": bias.reshape(1)}

    def powers(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the coefficients multiply, ascending: r tensors like x."""
        raise NotImplementedError

    def macs(self, batch: int, length: int, cached: int = 0) -> int:
        """None, as of every activation: there is no matrix product."""
        return 0


@component("poly_relu", kind="activation", reads="either")
class PolyReLU(_Polynomial):
    """bias + sum over i = 1 to r of a_i ReLU(x)^i, with learned a: any shape, the same back.

    In float16 the result overflows for large x: at the start, with r = 3, beyond 57.8.

    Args:
        order: r, the highest power.
        weight_decay: the coefficients decay as the weights do, as in the authors' recipe.

    Raises:
        ValueError: the order is no whole number from 1.

    Example:
        >>> PolyReLU(order=2)(torch.tensor([-1.0, 2.0]))
        tensor([0., 3.], grad_fn=<_PolyReLUBackward>)
    """

    separable = True

    def __init__(self, order: int = 3, weight_decay: bool = False) -> None:
        super().__init__(order, weight_decay)

    def forward(self, x: Tensor) -> Tensor:
        return poly_relu(x, self.coefficients(), self.bias)

    def powers(self, x: Tensor) -> tuple[Tensor, ...]:
        base = x.relu()
        return tuple(base**i for i in range(1, self.order + 1))

    def describe(self) -> str:
        return f"polynomial of order {self.order} of ReLU"

    def extra_repr(self) -> str:
        return f"order={self.order}"


@component("poly_norm", kind="activation", reads="either")
class PolyNorm(_Polynomial):
    """bias + sum over i = 1 to r of a_i n(x^i), with n(u) = u / sqrt(mean(u^2) + eps), learned a.

    x (..., f) -> the same; the means run over the f neurons of a layer, in experts over those of
    one expert. So neurons depend on each other, and none may go. Where the axis is split over
    processes, each would norm its own share, which is another function: do not shard it.

    Where x is small, eps rules: the mean of x^6 of a normal x is below 1e-6 when its root mean
    square is below 0.064, and the cubic term fades (at 0.05 to 0.43 of its size, at 0.01 to 0.004).
    ``eps_per_order`` takes eps^i for the power i, so that all powers fade alike.

    Args:
        order: r, the highest power.
        eps: added to every mean; 0 makes the result independent of the scale of x.
        dim: the axis of the neurons.
        eps_per_order: eps^i for the power i.
        weight_decay: the coefficients decay as the weights do, as in the authors' recipe.

    Raises:
        ValueError: the order is no whole number from 1, or eps is negative, or too small to be
            told from 0 in float32.

    Example:
        >>> PolyNorm()(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    separable = False

    def __init__(
        self,
        order: int = 3,
        eps: float = 1e-6,
        dim: int = -1,
        eps_per_order: bool = False,
        weight_decay: bool = False,
    ) -> None:
        super().__init__(order, weight_decay)
        if not 0 <= eps < float("inf"):
            raise ValueError(f"eps must not be negative, not {eps}")
        self.eps, self.dim, self.eps_per_order = eps, dim, eps_per_order
        if eps and min(self.each_eps()) < _FLOAT32.tiny:
            raise ValueError(
                f"eps {eps} is lost in float32 at order {order}; use 0 or a larger one"
            )

    def each_eps(self) -> tuple[float, ...]:
        """Of each power, ascending."""
        powers = range(1, self.order + 1)
        return tuple(self.eps**i if self.eps_per_order else self.eps for i in powers)

    def forward(self, x: Tensor) -> Tensor:
        return poly_norm(x, self.coefficients(), self.bias, self.each_eps(), self.dim)

    def powers(self, x: Tensor) -> tuple[Tensor, ...]:
        each = enumerate(self.each_eps(), start=1)
        return tuple(normalized_power(x, i, eps, self.dim) for i, eps in each)

    def describe(self) -> str:
        return f"polynomial of order {self.order} of normalized powers"

    def extra_repr(self) -> str:
        per_order = f"^1 to ^{self.order}" if self.eps_per_order else ""
        return f"order={self.order}, eps={self.eps}{per_order}, dim={self.dim}"
