"""The algebra of a stream without mean, on matrices, by its definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modwright.surgery.stream_blockers import mean_share
from modwright.surgery.stream_conversion import folded, recentered, relative_to, rounded, without


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("index", [0, 3, -1])
def test_a_reader_of_the_short_stream_reads_what_it_did(index: int) -> None:
    x, weight = recentered(draw(5, 8)), draw(3, 8)
    short = without(x, -1, index)
    assert short.shape == (5, 7)
    assert (
        F.linear(short, relative_to(weight, 1, index)) - F.linear(x, weight)
    ).abs().max() < 1e-14


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_recentered_along_any_axis(axis: int) -> None:
    x = draw(4, 6, 6)[0] + 1
    assert recentered(x, axis).mean(axis).abs().max() < 1e-15
    assert (recentered(recentered(x, axis), axis) - recentered(x, axis)).abs().max() < 1e-15


@pytest.mark.parametrize("pair", [False, True], ids=["matrix", "factor pair"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_folding_is_the_affine_step(pair: bool, bias: bool) -> None:
    n, scale, shift = draw(5, 8), draw(8) + 1, draw(8) * 2
    stored = {"weight": draw(3, 2 if pair else 8)} | ({"reduce": draw(2, 8)} if pair else {})
    stored |= {"bias": draw(3)} if bias else {}

    def dense(named: dict[str, Tensor]) -> Tensor:
        return named["weight"] @ named["reduce"] if pair else named["weight"]

    truth = F.linear(n * scale + shift, dense(stored), stored.get("bias"))
    new = folded(stored, "reduce" if pair else "weight", scale, shift)
    assert new.keys() == {*stored, "bias"}
    assert (F.linear(n, dense(new), new["bias"]) - truth).abs().max() < 1e-13
    alone = folded(stored, "reduce" if pair else "weight", None, torch.zeros(8).double())
    assert all(torch.equal(alone[name], tensor) for name, tensor in stored.items())
    assert alone.keys() == stored.keys(), "a shift of zero needs no bias"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("axis", [0, 1])
def test_rounding_keeps_sums(axis: int, dtype: torch.dtype) -> None:
    """Of weights that were rounded before, whose neighbors would err to the same side."""
    size = 0.02 if axis else 0.05
    x = recentered((draw(700, 700) * size).to(dtype).double(), axis)
    plain, fed_on = x.to(dtype).double(), rounded(x, axis, dtype).double()
    eps = torch.finfo(dtype).eps
    assert ((fed_on - x).abs() <= 2 * eps * x.abs().clamp(min=size)).all()
    lost, kept = ((x - y).sum(axis).abs().max() for y in (plain, fed_on))
    assert kept <= eps * float(x.abs().max())
    assert lost > 5 * kept


def test_rounding_to_wide_numbers_is_rounding() -> None:
    x = draw(20, 20)
    assert torch.equal(rounded(x, 0, torch.float32), x.float())
    assert torch.equal(rounded(x, 0, torch.float64), x)


def test_the_share_of_a_mean_tells_noise_from_rounding() -> None:
    x = draw(300, 200)
    assert mean_share(x, 0) == pytest.approx(1, rel=0.2)
    assert mean_share(x + 1, 0) > 5
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert mean_share(recentered(x, 0).to(dtype), 0) < 4 * torch.finfo(dtype).eps
    assert mean_share(torch.zeros(3, 4), 0) == 0
