"""Factor pairs, absent parts, norms and rotary helpers."""

from __future__ import annotations

import pytest
import torch

from modwright.nn import FactorPair, Identity, SkippedAttention, ZeroModule
from modwright.nn.norms import RMSNorm
from modwright.nn.token_mixers.attention import gather_rotary, rotate, rotate_half


def test_a_factor_pair_is_the_linear_map_of_its_product() -> None:
    torch.manual_seed(0)
    pair = FactorPair(8, 6, rank=3)
    torch.nn.init.normal_(pair.bias)
    x = torch.randn(2, 5, 8)
    dense = torch.nn.functional.linear(x, pair.weight @ pair.reduce, pair.bias)
    torch.testing.assert_close(pair(x), dense)
    assert sum(p.numel() for p in pair.parameters()) == 3 * (8 + 6) + 6
    assert set(pair.state_dict()) == {"weight", "reduce", "bias"}


def test_a_factor_pair_is_trained_through_both_factors() -> None:
    pair = FactorPair(8, 6, rank=2, bias=False)
    pair(torch.randn(3, 8)).square().sum().backward()
    assert pair.bias is None
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in pair.parameters())


@pytest.mark.parametrize("rank", [0, -1, 8, 9])
def test_a_rank_that_is_none_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 7"):
        FactorPair(8, 6, rank=rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_absent_parts_add_nothing(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, dtype=dtype)
    assert torch.equal(x + ZeroModule()(x), x)
    assert ZeroModule()(x).dtype == dtype
    mixed, weights = SkippedAttention()(hidden_states=x, attention_mask=None, cache=object())
    assert torch.equal(x + mixed, x)
    assert mixed.dtype == dtype
    assert weights is None


def test_absent_parts_own_no_parameters_and_no_cache_slot() -> None:
    for part in (ZeroModule(), SkippedAttention(), Identity()):
        assert not part.state_dict()
        assert not hasattr(part, "layer_idx")


def test_pass_through_returns_its_first_argument() -> None:
    x = torch.randn(2, 3)
    assert Identity()(x, None, mask=1) is x
    assert Identity(as_tuple=True)(x, attention_mask=None) == (x, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_is_that_of_llama(dtype: torch.dtype) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    torch.manual_seed(0)
    ours, theirs = RMSNorm(16, eps=1e-5).to(dtype), LlamaRMSNorm(16, eps=1e-5).to(dtype)
    torch.nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 16, dtype=dtype) * 3
    assert torch.equal(ours(x), theirs(x))


def test_rotate_half_twice_is_a_half_turn() -> None:
    x = torch.randn(2, 3, 4, 8)
    assert torch.equal(rotate_half(rotate_half(x)), -x)


def test_rotation_keeps_lengths_and_leaves_the_rest_alone() -> None:
    x = torch.randn(1, 2, 3, 8)
    angle = torch.randn(1, 1, 3, 2).repeat(1, 1, 1, 2)
    turned = rotate(x, angle.cos(), angle.sin())
    assert torch.equal(turned[..., 4:], x[..., 4:])
    torch.testing.assert_close(turned[..., :4].norm(dim=-1), x[..., :4].norm(dim=-1))
    assert not torch.allclose(turned[..., :4], x[..., :4])


def test_scores_of_rotated_vectors_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4)

    def score(at_q: float, at_k: float) -> float:
        speeds = torch.tensor([1.0, 0.3]).repeat(2)
        a, b = at_q * speeds, at_k * speeds
        return float((rotate(q, a.cos(), a.sin()) * rotate(k, b.cos(), b.sin())).sum())

    assert score(5.0, 2.0) == pytest.approx(score(9.0, 6.0), abs=1e-5)
    assert score(5.0, 2.0) != pytest.approx(score(5.0, 4.0), abs=1e-3)


def test_gathered_angles_are_those_of_the_kept_channels() -> None:
    cos, sin = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    index = torch.tensor([[0, 3, 6, 6], [2, 5, 1, 4]])
    picked_cos, picked_sin = gather_rotary(cos, sin, index)
    assert picked_cos.shape == picked_sin.shape == (2, 5, 2, 4)
    assert torch.equal(picked_cos[:, :, 1], cos[..., index[1]])
    assert torch.equal(picked_sin[:, :, 0, :2], sin[..., [0, 3]])
    assert torch.equal(picked_cos[:, :, 0, 2:], torch.ones(2, 5, 2))
    assert torch.equal(picked_sin[:, :, 0, 2:], torch.zeros(2, 5, 2))
