"""A mixture of experts: the routed loop is the naive sum, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from modwright.nn import Mixture, MixtureShape, PolyNorm, route
from modwright.nn.channel_mixers.mixture import naive_mixture


def mixture(num_experts: int = 4, top_k: int = 2, width: int = 7) -> Mixture:
    torch.manual_seed(0)
    return Mixture(MixtureShape(6, width, num_experts, top_k, "silu"), F.silu)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
def test_the_loop_over_experts_is_the_naive_sum(experts: int, top_k: int, tokens: int) -> None:
    top_k = min(experts, top_k)
    routed = mixture(experts, top_k).double()
    naive = copy.deepcopy(routed)
    x = torch.randn(2, tokens, 6, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, truth = routed(ours), naive_mixture(naive, theirs)
    assert torch.allclose(out, truth, atol=1e-6)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (truth * weights).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    for (name, p), (_, q) in zip(routed.named_parameters(), naive.named_parameters()):
        found = torch.zeros_like(p) if p.grad is None else p.grad
        assert torch.allclose(found, q.grad, atol=1e-6), name


def test_experts_share_an_activation_that_normalizes_within_each_of_them() -> None:
    torch.manual_seed(0)
    routed = Mixture(MixtureShape(6, 7, 4, 2, "poly_norm"), PolyNorm()).double()
    assert {"act.weight", "act.bias"} < set(routed.state_dict())
    naive, x = copy.deepcopy(routed), torch.randn(2, 5, 6, dtype=torch.float64)
    for part, run in ((routed, routed), (naive, lambda x: naive_mixture(naive, x))):
        (run(x) * torch.linspace(-1, 2, x.numel()).view_as(x)).sum().backward()
        assert all(p.grad is not None for p in part.act.parameters())
    for (name, p), q in zip(routed.named_parameters(), naive.parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=name, rtol=1e-6, atol=1e-6)


@pytest.mark.contract("H3")
def test_copies_of_one_expert_compute_what_it_does_whatever_the_router_says() -> None:
    part = mixture(5, 3)
    with torch.no_grad():
        for stack in (part.experts.gate_up_proj, part.experts.down_proj):
            stack.copy_(stack[:1].expand_as(stack))
        part.gate.weight.mul_(100)
    x = torch.randn(2, 4, 6)
    gate, up = F.linear(x, part.experts.gate_up_proj[0]).chunk(2, -1)
    dense = F.linear(F.silu(gate) * up, part.experts.down_proj[0])
    assert torch.allclose(part(x), dense, atol=1e-5)


def test_experts_that_nobody_chose_get_no_gradient() -> None:
    part = mixture()
    part(torch.randn(1, 1, 6)).sum().backward()
    grads = part.experts.down_proj.grad.flatten(1).abs().sum(1)
    assert (grads == 0).sum() == 2


def test_weights_are_softmax_over_the_chosen() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    index, weights = route(logits, 2)
    assert index.tolist() == [[1, 2]]
    assert torch.allclose(weights, torch.tensor([[3.0, 2.0]]).softmax(-1))


def test_half_precision_keeps_its_dtype() -> None:
    part = mixture().bfloat16()
    assert part(torch.randn(1, 3, 6, dtype=torch.bfloat16)).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("sizes", "said"), [((6, 0, 4, 2), "intermediate_size"), ((6, 7, 4, 5), "top_k 5 of 4")]
)
def test_shapes_that_cannot_be_are_refused(sizes: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MixtureShape(*sizes, activation="silu")
