"""Least squares of the coefficients: that of torch on the whole matrix, from sums over batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn.activations import fit as fitting
from modwright.nn.activations import make_activation
from modwright.nn.activations.fit import CoefficientFit, fit_coefficients

KINDS = ["poly_relu", "poly_norm"]


def data(rows: int = 40, width: int = 24) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(rows, width, dtype=torch.float64) * torch.rand(rows, 1).double().mul(2).add(0.1)
    return x, F.silu(x)


def by_lstsq(act: Any, x: Tensor, y: Tensor) -> Tensor:
    """Bias and ascending coefficients, from the matrix as a whole."""
    columns = [torch.ones_like(x), *act.powers(x)]
    design = torch.stack([column.flatten() for column in columns], dim=1)
    return torch.linalg.lstsq(design, y.reshape(-1, 1)).solution[:, 0]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_least_squares_solution_of_the_whole_matrix(kind: str, order: int) -> None:
    act, (x, y) = make_activation(kind, order=order), data()
    fit = fit_coefficients(act, x, y)
    truth = by_lstsq(act, x, y)
    torch.testing.assert_close(torch.cat((fit.bias, fit.coeff)), truth, rtol=1e-9, atol=1e-9)
    left = (fit.bias + sum(c * p for c, p in zip(fit.coeff, act.powers(x)))) - y
    assert fit.residual == pytest.approx(float(left.square().mean().sqrt()), rel=1e-6)
    assert fit.relative == pytest.approx(fit.residual / float(y.square().mean().sqrt()), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_give_what_all_at_once_give(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    act, (x, y) = make_activation(kind), data()
    whole = fit_coefficients(act, x, y)
    monkeypatch.setattr(fitting, "_AT_ONCE", 5 * 24)
    shaped = [(a.view(2, -1, 24), b.view(2, -1, 24)) for a, b in zip(x.split(8), y.split(8))]
    parts = fit_coefficients(act, (a for a, _ in shaped), (b for _, b in shaped))
    torch.testing.assert_close(parts.coeff, whole.coeff, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(parts.bias, whole.bias, rtol=1e-10, atol=1e-10)
    assert parts.residual == pytest.approx(whole.residual, rel=1e-8)


def test_sums_of_two_processes_add_up() -> None:
    act, (x, y) = make_activation("poly_norm"), data()
    halves = [CoefficientFit(act) for _ in range(2)]
    for half, rows in zip(halves, (slice(0, 15), slice(15, None))):
        half.update(x[rows], y[rows])
    for name, total in halves[0].sums.items():
        total += halves[1].sums[name]
    torch.testing.assert_close(halves[0].solve().coeff, fit_coefficients(act, x, y).coeff)


@pytest.mark.parametrize("old", [F.silu, F.gelu, F.relu, torch.tanh])
@pytest.mark.parametrize("kind", KINDS)
def test_the_fit_is_nearer_to_the_old_activation_than_the_start_values(kind: str, old: Any) -> None:
    act: Any = make_activation(kind)
    torch.manual_seed(1)
    x = torch.randn(64, 48)
    before = float((act(x) - old(x)).detach().square().mean().sqrt())
    fit = fit_coefficients(act, x, old(x))
    act.load_state_dict(act.state_of(fit.coeff, fit.bias))
    after = float((act(x) - old(x)).detach().square().mean().sqrt())
    assert after == pytest.approx(fit.residual, rel=1e-3, abs=1e-6)
    assert after < 0.6 * before


def test_what_is_in_reach_is_found_exactly() -> None:
    x, _ = data()
    fit = fit_coefficients(make_activation("poly_relu"), x, F.relu(x) ** 2 - 0.5)
    torch.testing.assert_close(fit.coeff, torch.tensor([0.0, 1.0, 0.0]).double(), atol=1e-9, rtol=0)
    assert float(fit.bias) == pytest.approx(-0.5) and fit.relative < 1e-6


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.zeros(8, 4), "do not determine the coefficients"),
        (torch.ones(8, 4), "do not determine the coefficients"),
        (torch.tensor([1.0, -1.0]).repeat(8, 4), "do not determine the coefficients"),
        (torch.randn(1, 3), "3 numbers do not determine 4 coefficients"),
        (torch.zeros(0, 4), "0 numbers"),
        (torch.full((4, 4), torch.nan), "NaN or infinite"),
        (torch.full((4, 4), 1e200, dtype=torch.float64), "powers overflow"),
        (torch.ones(4, 4, dtype=torch.int64), "floating-point"),
    ],
)
def test_data_that_determine_nothing_are_refused(inputs: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        fit_coefficients(make_activation("poly_norm"), inputs, inputs)
    assert "\n" not in str(refused.value)


def test_negative_inputs_tell_nothing_of_a_polynomial_of_relu() -> None:
    with pytest.raises(ValueError, match="do not determine"):
        fit_coefficients(make_activation("poly_relu"), -torch.rand(8, 8) - 0.1, torch.rand(8, 8))


def test_what_does_not_go_together_is_refused() -> None:
    act: Any = make_activation("poly_norm")
    with pytest.raises(ValueError, match=r"inputs \(3, 4\) and targets \(4, 3\)"):
        fit_coefficients(act, torch.rand(3, 4), torch.rand(4, 3))
    with pytest.raises(ValueError, match=r"shorter|longer"):
        fit_coefficients(act, [torch.rand(3, 4)] * 2, [torch.rand(3, 4)])
    with pytest.raises(ValueError, match="ReLU has no coefficients"):
        CoefficientFit(nn.ReLU())  # type: ignore[arg-type]
