"""RMS norms with and without a dropped coordinate: against their definitions, and LayerNorm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.nn import CRMSNorm, RestoringCRMSNorm, RMSNorm
from modwright.nn.norms import naive_rms_norm, restore_coordinate
from modwright.nn.zero_mean import recentered

EPS = 1e-3


def norm(dtype: torch.dtype = torch.float64, **options: bool) -> RMSNorm:
    torch.manual_seed(0)
    made = RMSNorm(12, EPS, **options).to(dtype)
    for parameter in made.parameters():
        nn.init.normal_(parameter, mean=1.0)
    return made


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(1)
    return (torch.randn(*shape, dtype=torch.float64) * 3 + 1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cast_first", [False, True], ids=["cast last", "cast first"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("weight", [False, True], ids=["bare", "weight"])
def test_the_fast_path_is_the_definition(
    weight: bool, bias: bool, cast_first: bool, dtype: torch.dtype
) -> None:
    made = norm(dtype, weight=weight, bias=bias, cast_first=cast_first)
    x, other = (draw(5, 12, dtype=dtype).requires_grad_() for _ in range(2))
    out = made(x)
    truth = naive_rms_norm(other, EPS, made.weight, made.bias, cast_first)
    assert out.dtype == dtype
    assert torch.equal(out, truth)
    out.square().sum().backward()
    truth.square().sum().backward()
    assert x.grad is not None and other.grad is not None
    tolerance = 64 * torch.finfo(dtype).eps
    assert (x.grad - other.grad).abs().max() <= tolerance * other.grad.abs().max()
    assert {name for name, _ in made.named_parameters()} == {
        name for name, there in (("weight", weight), ("bias", bias)) if there
    }


def test_double_precision_stays_double() -> None:
    x = draw(5, 12)
    by_hand = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()
    for cast_first in (False, True):
        made = RMSNorm(12, EPS, weight=False, cast_first=cast_first)
        assert (made(x) - by_hand).abs().max() < 1e-15


@pytest.mark.contract("F2")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_on_zero_mean_it_is_layer_norm_with_the_same_epsilon(dtype: torch.dtype) -> None:
    """Bit by bit in half precision, where the place of the cast decides."""
    made = norm(dtype, bias=True, cast_first=False)
    x = torch.randint(-64, 64, (400, 6)).to(dtype) / 16
    x = torch.cat((x, -x), -1)  # the mean is exactly zero
    theirs = F.layer_norm(x, (12,), made.weight, made.bias, EPS)
    off = (made(x) - theirs).abs()
    assert off.max() <= 8 * torch.finfo(dtype).eps * theirs.abs().max()
    if dtype in (torch.bfloat16, torch.float16):
        assert (off > 0).double().mean() < 0.01
        early = norm(dtype, bias=True)
        assert ((early(x) - theirs) != 0).double().mean() > 0.1


def test_layer_norm_does_not_see_the_mean() -> None:
    x = draw(5, 12)
    bare = RMSNorm(12, EPS, weight=False)
    assert (bare(recentered(x)) - F.layer_norm(x, (12,), eps=EPS)).abs().max() < 1e-15


# Without one coordinate


@pytest.mark.parametrize("index", [0, 4, 11, -1, -12])
def test_the_compressed_norm_is_that_of_the_whole_vector(index: int) -> None:
    """Forward and gradient, whichever coordinate was left out."""
    z = draw(5, 11).requires_grad_()
    whole = restore_coordinate(z, index)
    assert whole.sum(-1).abs().max() < 1e-13
    kept = [i for i in range(12) if i != index % 12]
    rms = RMSNorm(12, EPS, weight=False)(whole)[..., kept]
    crms = CRMSNorm(11, EPS)(z)
    assert (rms - crms).abs().max() < 1e-15
    upstream = draw(5, 11) * 2
    expected = torch.autograd.grad(rms, z, upstream)[0]
    found = torch.autograd.grad(crms, z, upstream)[0]
    assert (expected - found).abs().max() < 1e-14


def test_the_restoring_norm_returns_the_whole_vector() -> None:
    whole = recentered(draw(5, 12))
    made = RestoringCRMSNorm(12, EPS, bias=True, cast_first=False, index=3).double()
    nn.init.normal_(made.weight)
    nn.init.normal_(made.bias)
    z = torch.cat((whole[..., :3], whole[..., 4:]), -1)
    truth = naive_rms_norm(whole, EPS, made.weight, made.bias)
    assert made(z).shape == (5, 12)
    assert (made(z) - truth).abs().max() < 1e-14


@pytest.mark.contract("F2")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_taken_in_single_precision(dtype: torch.dtype) -> None:
    z = draw(50, 255, dtype=dtype)
    truth = CRMSNorm(255, EPS)(z.double())
    off = (CRMSNorm(255, EPS)(z).double() - truth).abs().max()
    assert off <= torch.finfo(dtype).eps * truth.abs().max()
    assert torch.equal(restore_coordinate(z)[:, -1], -z.float().sum(-1).to(dtype))


@pytest.mark.parametrize("index", [12, -13])
def test_a_coordinate_that_is_not_there_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match=r"between -12 and 11"):
        restore_coordinate(torch.zeros(1, 11), index)


@pytest.mark.parametrize("kind", [RMSNorm, CRMSNorm])
def test_a_width_of_none_is_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="hidden_size must be at least 1, not 0"):
        kind(0)


def test_they_say_what_they_are() -> None:
    assert repr(RMSNorm(8, bias=True)) == "RMSNorm(8, eps=1e-06, weight, bias)"
    assert repr(CRMSNorm(7)) == "CRMSNorm(7 of 8, eps=1e-06)"
    assert repr(RestoringCRMSNorm(8, index=2)) == "RestoringCRMSNorm(8, eps=1e-06, weight, index=2)"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_fault_C2_the_compressed_norm_is_its_formula_with_gradients(dtype: torch.dtype) -> None:
    z, other = (draw(5, 11, dtype=dtype) for _ in range(2))
    z[0] = other[0] = 0  # the length of nothing has a gradient, too
    z.requires_grad_()
    other.requires_grad_()
    out = CRMSNorm(11, EPS)(z)
    wide = other.to(torch.promote_types(dtype, torch.float32))
    energy = wide.pow(2).sum(-1, keepdim=True) + wide.sum(-1, keepdim=True).pow(2)
    truth = (wide * torch.rsqrt(energy / 12 + EPS)).to(dtype)
    tolerance = 8 * torch.finfo(dtype).eps
    assert out.dtype == dtype and (out - truth).abs().max() <= tolerance * truth.abs().max()
    upstream = draw(5, 11, dtype=dtype)
    out.backward(upstream)
    truth.backward(upstream)
    assert z.grad is not None and other.grad is not None and z.grad.isfinite().all()
    assert (z.grad - other.grad).abs().max() <= 8 * tolerance * other.grad.abs().max()
