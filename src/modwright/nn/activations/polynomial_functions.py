"""Polynomials of what a layer computes, with their gradients in closed form (arXiv 2411.03884).

Axes: f, the axis that a norm runs over; r, the order; coefficients ascend: ``coeff[i - 1]`` belongs
to the power i. Half precision is computed in float32 and rounded at the end: x^3 overflows float16
beyond |x| = 40.3, the mean of x^6 beyond 6.3. What is kept for the backward pass is x, and for a
norm r numbers for each row.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["naive_poly_norm", "naive_poly_relu", "normalized_power", "poly_norm", "poly_relu"]

Eps = float | Sequence[float]
"""One for all powers, or one for each, ascending."""


def normalized_power(x: Tensor, power: int, eps: float, dim: int = -1) -> Tensor:
    """x^i over the root of its mean square: the truth, in the precision of x."""
    u = x**power
    return u / (u.square().mean(dim, keepdim=True) + eps).sqrt()


def naive_poly_relu(x: Tensor, coeff: Tensor, bias: Tensor) -> Tensor:
    """The truth: bias + sum over i of coeff_i ReLU(x)^i, in the precision of x."""
    terms = (c * F.relu(x) ** i for i, c in enumerate(coeff, start=1))
    return sum(terms, bias.reshape(()))


def naive_poly_norm(
    x: Tensor, coeff: Tensor, bias: Tensor, eps: Eps = 1e-6, dim: int = -1
) -> Tensor:
    """The truth: bias + sum over i of coeff_i x^i / rms(x^i), in the precision of x."""
    each = _each(eps, len(coeff))
    terms = (c * normalized_power(x, i, each[i - 1], dim) for i, c in enumerate(coeff, start=1))
    return sum(terms, bias.reshape(()))


def poly_relu(x: Tensor, coeff: Tensor, bias: Tensor) -> Tensor:
    """bias + sum over i of coeff_i ReLU(x)^i, of any shape; the derivative at 0 is 0.

    Args:
        coeff: (r,), ascending.
        bias: one number.

    Raises:
        ValueError: x holds no real floating-point numbers, or there is no coefficient.

    Example:
        >>> x = torch.tensor([-1.0, 2.0])
        >>> poly_relu(x, torch.tensor([0.0, 1.0]), torch.zeros(1))
        tensor([0., 4.])
    """
    _check(x, coeff, bias)
    if _plain_operations():
        return naive_poly_relu(_wide(x), _wide(coeff), _wide(bias)).to(x.dtype)
    result: Tensor = _PolyReLU.apply(x, coeff, bias)
    return result


def poly_norm(x: Tensor, coeff: Tensor, bias: Tensor, eps: Eps = 1e-6, dim: int = -1) -> Tensor:
    """bias + sum over i of coeff_i n(x^i), with n(u) = u / sqrt(mean(u^2) + eps) over ``dim``.

    Args:
        coeff: (r,), ascending.
        bias: one number.
        eps: one for all powers, or one for each. With 0, the result does not depend on the scale of
            x, and a row of zeros gives NaN.
        dim: the axis that the means run over: the neurons of one layer, or of one expert.

    Raises:
        ValueError: x holds no real floating-point numbers or is one number, there is no
            coefficient, or eps is negative.

    Example:
        >>> x = torch.tensor([[3.0, -4.0]])
        >>> poly_norm(x, torch.tensor([1.0]), torch.zeros(1), eps=0.0)
        tensor([[ 0.8485, -1.1314]])
    """
    _check(x, coeff, bias)
    each = _each(eps, len(coeff))
    if not all(one >= 0 for one in each):
        raise ValueError(f"eps must not be negative, not {min(each)}")
    if not x.dim():
        raise ValueError("a norm needs an axis to run over, and x is one number")
    if x.shape[dim] == 1 and not torch.compiler.is_compiling():
        warnings.warn("a norm over one number leaves only its sign", stacklevel=2)
    if _plain_operations():
        return naive_poly_norm(_wide(x), _wide(coeff), _wide(bias), each, dim).to(x.dtype)
    result: Tensor = _PolyNorm.apply(x, coeff, bias, each, dim)
    return result


class _PolyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, coeff: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, coeff, bias)
        base = _wide(x).relu()
        terms = [*_wide(coeff).unbind(), _wide(bias).reshape(())]
        return _horner(base, [terms[-1], *terms[:-1]]).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, coeff, bias = ctx.saved_tensors
        if _wants_graph():
            return _differentiable(naive_poly_relu, (x, coeff, bias), grad)
        base, outer, wide = _wide(x).relu(), _wide(grad), _wide(coeff)
        found: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            slopes = [i * c for i, c in enumerate(wide.unbind(), start=1)]
            slope = _horner(base, slopes).mul_(outer)
            found[0] = slope.masked_fill_(x <= 0, 0.0).to(x.dtype)
        if ctx.needs_input_grad[1]:
            found[1] = torch.stack(_moments(outer, base, len(coeff))).to(coeff.dtype)
        if ctx.needs_input_grad[2]:
            found[2] = outer.sum().reshape(bias.shape).to(bias.dtype)
        return tuple(found)


class _PolyNorm(torch.autograd.Function):
    """s_i = (mean(x^2i) + eps)^-1/2 and S_i = sum over a row of g x^i, for a gradient g:

    d/dx = sum of a_i (i x^(i-1) s_i g - (i/f) x^(2i-1) s_i^3 S_i), d/da_i = sum of s_i S_i.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, coeff: Tensor, bias: Tensor, eps: tuple[float, ...], dim: int
    ) -> Tensor:
        wide, power, scales = _wide(x), _wide(x), []
        for i, one in enumerate(eps):
            if i:
                power = power.mul_(wide) if i > 1 else wide * wide
            length = torch.linalg.vector_norm(power, dim=dim, keepdim=True)
            scales.append((length.square() / max(x.shape[dim], 1) + one).rsqrt())
        ctx.save_for_backward(x, coeff, bias, *scales)
        ctx.eps, ctx.dim = eps, dim
        terms = [c * s for c, s in zip(_wide(coeff).unbind(), scales)]
        return _horner(wide, [_wide(bias).reshape(()), *terms]).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, coeff, bias, *scales = ctx.saved_tensors
        if _wants_graph():
            formula = partial(naive_poly_norm, eps=ctx.eps, dim=ctx.dim)
            return (*_differentiable(formula, (x, coeff, bias), grad), None, None)
        wide, outer, factors = _wide(x), _wide(grad), _wide(coeff).unbind()
        found: list[Tensor | None] = [None, None, None, None, None]
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            sums = _moments(outer, wide, len(factors), ctx.dim)
            inner = [s * total for s, total in zip(scales, sums)]  # s_i S_i
            if ctx.needs_input_grad[1]:
                found[1] = torch.stack([one.sum() for one in inner]).to(coeff.dtype)
        if ctx.needs_input_grad[0]:
            size = max(x.shape[ctx.dim], 1)
            slopes, shifts = [], []
            for i, (a, s, t) in enumerate(zip(factors, scales, inner), start=1):
                slopes.append(i * a * s)
                # s^3 alone would underflow where x is large
                shifts.append(-(i / size) * a * (t * s) * s)
            direct = _horner(wide, slopes).mul_(outer)
            found[0] = direct.addcmul_(_horner(wide * wide, shifts), wide).to(x.dtype)
        if ctx.needs_input_grad[2]:
            found[2] = outer.sum().reshape(bias.shape).to(bias.dtype)
        return tuple(found)


def _horner(x: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """terms[0] + terms[1] x + terms[2] x^2 and so on, each broadcast to x; a tensor of its own."""
    value = terms[-1].expand_as(x).clone() if len(terms) == 1 else terms[-1] * x
    for at in range(len(terms) - 2, -1, -1):
        value = value.add_(terms[at])
        value = value.mul_(x) if at else value
    return value


def _moments(outer: Tensor, x: Tensor, order: int, dim: int | None = None) -> list[Tensor]:
    """Sums of outer x^i for i = 1 to the order: over all, or over an axis that is kept."""
    product, found = outer * x, []
    for i in range(order):
        product = product.mul_(x) if i else product
        found.append(product.sum() if dim is None else product.sum(dim, keepdim=True))
    return found


def _wants_graph() -> bool:
    """Gradients of these gradients may be asked for."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _differentiable(
    formula: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients that have gradients, of those inputs that learn."""
    learn = [one for one in inputs if one.requires_grad]
    out = formula(*map(_wide, inputs)).to(grad.dtype)
    found = iter(torch.autograd.grad(out, learn, grad, create_graph=True))
    return tuple(next(found) if one.requires_grad else None for one in inputs)


def _wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _plain_operations() -> bool:
    """The graph is written to a file, where no function of ours can be named."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def _each(eps: Eps, order: int) -> tuple[float, ...]:
    each = (float(eps),) * order if isinstance(eps, int | float) else tuple(map(float, eps))
    if len(each) != order:
        raise ValueError(f"{len(each)} values of eps for {order} powers")
    return each


def _check(x: Tensor, coeff: Tensor, bias: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"a polynomial activation reads floating-point numbers, not {x.dtype}")
    if coeff.dim() != 1 or not len(coeff) or bias.numel() != 1:
        raise ValueError(
            f"coefficients (r,) of at least one power and one bias are needed, not "
            f"{tuple(coeff.shape)} and {tuple(bias.shape)}"
        )
