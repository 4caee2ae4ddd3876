"""The matrices that scans apply: equal to scans of ones, with gradients, and to the mixers'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modwright.nn.selective_scan import naive_selective_scan
from modwright.nn.ssd import naive_ssd_scan
from modwright.nn.token_mixers.mamba1 import Mamba1
from modwright.nn.token_mixers.mamba2 import Mamba2
from modwright.nn.token_mixers.scan_matrices import (
    naive_scan_matrix,
    naive_ssd_matrix,
    scan_matrix,
    ssd_matrix,
)
from nn.scans import relative, scan_inputs, ssd_inputs

NAMES = ("dt", "A", "B", "C", "D")
PAIRS = [
    pytest.param(scan_matrix, naive_scan_matrix, scan_inputs, id="mamba"),
    pytest.param(ssd_matrix, naive_ssd_matrix, ssd_inputs, id="mamba2"),
]


def gradients(matrix: Callable[..., Tensor], given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    leaves = {name: given[name].clone().requires_grad_() for name in NAMES}
    weighed = torch.arange(1.0, matrix(**leaves).numel() + 1, dtype=torch.float64).sin()
    return torch.autograd.grad((matrix(**leaves).flatten() * weighed).sum(), tuple(leaves.values()))


@pytest.mark.parametrize(("matrix", "naive", "inputs"), PAIRS)
@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_matrix_has_the_scans_of_ones_as_columns(
    matrix: Any, naive: Any, inputs: Any, length: int
) -> None:
    given = {name: tensor for name, tensor in inputs(length=length).items() if name in NAMES}
    assert relative(matrix(**given), naive(**given)) < 1e-12
    for found, wanted in zip(gradients(matrix, given), gradients(naive, given)):
        assert relative(found, wanted) < 1e-10
    given.pop("D")
    assert relative(matrix(**given), naive(**given)) < 1e-12


def test_large_steps_leave_the_matrix_finite() -> None:
    given = scan_inputs(length=40)
    told = {name: given[name] for name in ("dt", "A", "B", "C")}
    told["dt"], told["A"] = told["dt"] * 30, told["A"] * 16
    assert torch.isfinite(scan_matrix(**told)).all()
    assert relative(scan_matrix(**told), naive_scan_matrix(**told)) < 1e-12


@pytest.mark.parametrize("kind", [Mamba1, Mamba2])
@pytest.mark.parametrize("selective", [True, False])
def test_the_matrix_of_a_mixer_times_its_values_is_what_it_scans(
    kind: Any, selective: bool
) -> None:
    torch.manual_seed(0)
    sizes = {"d_state": 3, **({"head_dim": 4, "n_groups": 2} if kind is Mamba2 else {})}
    mixer = kind(8, **sizes, selective=selective).double()
    with torch.no_grad():
        mixer.D.normal_()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    (values, dt, B, C), gate, _ = mixer._read(x)
    M = mixer.mixing_matrix(x)
    if kind is Mamba1:
        truth, _ = naive_selective_scan(values, dt, mixer.decay(), B, C, mixer.D)
        found = torch.einsum("bets,bse->bte", M, values)
        y = found * nn.functional.silu(gate)
    else:
        truth, _ = naive_ssd_scan(values, dt, mixer.decay(), B, C, D=mixer.D)
        found = torch.einsum("bhts,bshp->bthp", M, values)
        y = mixer.norm(found.flatten(2), gate)
    assert relative(found, truth) < 1e-10
    assert relative(mixer.out_proj(y), mixer(x)[0]) < 1e-6
    assert not M.triu(1).any()


def test_an_input_that_is_none_is_refused() -> None:
    for mixer in (Mamba1(8, d_state=2), Mamba2(8, d_state=2, head_dim=4)):
        with pytest.raises(ValueError, match="the input must be"):
            mixer.mixing_matrix(torch.zeros(2, 3, 9))
