"""MoDeGPT's decompositions and its allocation, each against its theory."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modwright.core.errors import InvalidInputError
from modwright.surgery.modegpt import (
    allocate_sparsity,
    moment_roots,
    nystrom_mlp,
    select_query_key,
    select_rotary_pairs,
    value_output,
)


def double(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def activations(tokens: int, size: int, rank: int | None = None, seed: int = 0) -> Tensor:
    """Correlated columns of unequal size."""
    rank = size if rank is None else rank
    spread = torch.linspace(0.2, 2.0, size, dtype=torch.float64)
    mixed = double(tokens, rank, seed=seed) @ double(rank, size, seed=seed + 1000)
    return mixed / math.sqrt(rank) * spread


def mlp_error(a: Tensor, down: Tensor, index: Tensor, new_down: Tensor) -> float:
    """Mean squared error of the MLP's output, measured."""
    return float((a @ down.T - a[:, index] @ new_down.T).square().sum() / len(a))


# Type I


@pytest.mark.parametrize("seed", range(20))
def test_nystrom_error_is_the_trace_formula_and_beats_slicing(seed: int) -> None:
    a, down = activations(200, 24, seed=seed), double(10, 24, seed=seed + 50)
    moments = a.T @ a / len(a)
    index, new_down = nystrom_mlp(down, moments, 15)
    assert torch.equal(index, index.sort().values) and len(index.unique()) == 15
    measured = mlp_error(a, down, index, new_down)
    inner = torch.linalg.solve(moments[index][:, index], moments[index])
    formula = float(torch.trace(down @ (moments - moments[:, index] @ inner) @ down.T))
    assert measured == pytest.approx(formula, rel=1e-6)
    assert measured < mlp_error(a, down, index, down[:, index])


def test_nystrom_of_uncorrelated_neurons_is_slicing() -> None:
    moments = torch.linspace(0.5, 2.0, 12, dtype=torch.float64).diag()
    down = double(5, 12)
    index, new_down = nystrom_mlp(down, moments, 7)
    assert index.tolist() == list(range(5, 12)), "the largest moments carry the most"
    assert torch.allclose(new_down, down[:, index], rtol=1e-5)


def test_nystrom_keeps_the_largest_leverage() -> None:
    a = activations(100, 16)
    moments, ridge = a.T @ a / len(a), 0.05
    leverage = torch.linalg.solve(moments + ridge * torch.eye(16, dtype=a.dtype), moments)
    index, _ = nystrom_mlp(double(4, 16), moments, 6, ridge)
    assert set(index.tolist()) == set(leverage.diagonal().topk(6).indices.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_nystrom_loses_nothing_where_activations_have_low_rank(seed: int) -> None:
    a, down = activations(200, 24, rank=9, seed=seed), double(10, 24, seed=seed + 50)
    index, new_down = nystrom_mlp(down, a.T @ a / len(a), 15)
    assert mlp_error(a, down, index, new_down) < 1e-8


def test_nystrom_survives_dead_neurons() -> None:
    a = activations(100, 12)
    a[:, 3:7] = 0
    down = double(5, 12)
    index, new_down = nystrom_mlp(down, a.T @ a / len(a), 10)
    assert torch.isfinite(new_down).all()
    assert mlp_error(a, down, index, new_down) < 1e-8
    assert {0, 1, 2, 7, 8, 9, 10, 11} <= set(index.tolist())


def test_nystrom_refuses_moments_that_cannot_be() -> None:
    with pytest.raises(InvalidInputError, match="not positive"):
        nystrom_mlp(double(3, 4), torch.full((4, 4), torch.nan, dtype=torch.float64), 2)


# Type III


def pair_error(root: Tensor, value: Tensor, output: Tensor, new: tuple[Tensor, Tensor]) -> float:
    """Over all outputs of the group, of what the pair of maps does to the input."""
    whole = output.transpose(1, 2) @ value  # (G, d, d)
    narrow = new[1].transpose(1, 2) @ new[0]
    return float(((whole - narrow) @ root).square().sum())


def head(groups: int, seed: int, width: int = 6, size: int = 14) -> tuple[Tensor, ...]:
    x = activations(80, size, seed=seed)
    root, inverse = moment_roots(x.T @ x / len(x), 1e-4)
    return (
        double(width, size, seed=seed + 1),
        double(groups, width, size, seed=seed + 2),
        root,
        inverse,
    )


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("keep", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_value_output_error_is_the_discarded_singular_values(
    groups: int, keep: int, seed: int
) -> None:
    value, output, root, inverse = head(groups, seed)
    new_value, new_output, error = value_output(value, output, root, inverse, keep)
    assert new_value.shape == (keep, 14) and new_output.shape == (groups, keep, 14)
    whole = root @ value.T @ output.transpose(0, 1).reshape(6, -1)
    discarded = float(torch.linalg.svdvals(whole)[keep:].square().sum())
    assert pair_error(root, value, output, (new_value, new_output)) == pytest.approx(
        discarded, rel=1e-8
    )
    assert error == pytest.approx(discarded, rel=1e-8)


def test_no_other_pair_of_the_rank_is_better() -> None:
    value, output, root, inverse = head(2, seed=9)
    error = value_output(value, output, root, inverse, 3)[2]
    for seed in range(50):
        # The best outputs for a value map at random: least squares.
        other = double(3, 14, seed=seed)
        target = root @ value.T @ output.transpose(0, 1).reshape(6, -1)
        best = torch.linalg.lstsq(root @ other.T, target).solution
        rival = (other, best.view(3, 2, 14).transpose(0, 1))
        assert error <= pair_error(root, value, output, rival)


@pytest.mark.parametrize("seed", range(5))
def test_two_steps_are_never_better_than_jointly(seed: int) -> None:
    value, output, root, inverse = head(3, seed)
    joint = value_output(value, output, root, inverse, 3)
    steps = value_output(value, output, root, inverse, 3, joint=False)
    assert steps[2] > joint[2]
    measured = pair_error(root, value, output, steps[:2])
    assert steps[2] == pytest.approx(measured, rel=1e-8)


def test_at_full_rank_nothing_is_lost() -> None:
    for joint in (True, False):
        value, output, root, inverse = head(3, seed=4)
        new_value, new_output, error = value_output(value, output, root, inverse, 6, joint)
        assert error == 0
        whole = output.transpose(1, 2) @ value
        assert torch.allclose(new_output.transpose(1, 2) @ new_value, whole, atol=1e-9)


def test_roots_are_those_of_the_moments_with_the_ridge() -> None:
    x = activations(40, 9)
    moments = x.T @ x / len(x)
    root, inverse = moment_roots(moments, 1e-3)
    eye = torch.eye(9, dtype=torch.float64)
    assert torch.allclose(root @ root, moments + 1e-3 * eye, atol=1e-12)
    assert torch.allclose(root @ inverse, eye, atol=1e-10)


# Type II


def test_channels_with_the_largest_scores_are_kept() -> None:
    q, k = double(2, 8).square(), double(8, seed=1).square()
    kept = select_query_key(q, k, 3)
    scores = (q * k).sum(0)
    assert kept.tolist() == scores.argsort(descending=True)[:3].tolist()


def test_the_score_is_the_norm_product_of_the_moments_columns() -> None:
    """For one head: ||C_Q^(1/2)[:, i]|| ||C_K^(1/2)[:, i]||."""
    queries, keys = activations(50, 7), activations(50, 7, seed=5)
    roots = [moment_roots(x.T @ x / len(x), 0.0)[0] for x in (queries, keys)]
    scores = roots[0].norm(dim=0) * roots[1].norm(dim=0)
    q, k = (x.square().mean(0) for x in (queries, keys))
    assert select_query_key(q[None], k, 4).tolist() == scores.argsort(descending=True)[:4].tolist()


def test_rotary_channels_are_kept_in_pairs() -> None:
    q, k = double(3, 8).square(), double(8, seed=1).square()
    pairs = torch.arange(8).view(2, 4).T
    kept = select_rotary_pairs(q, k, 4, pairs)
    by_pair = (q * k).sum(0).view(2, 4).sum(0)
    best = by_pair.argsort(descending=True)[:2]
    assert kept.tolist() == [*best.tolist(), *(best + 4).tolist()]


def test_one_large_channel_takes_its_partner_along() -> None:
    q = torch.tensor([[1.0, 2.0, 2.0, 9.0, 1.0, 2.0, 2.0, 0.0]])
    kept = select_rotary_pairs(q, torch.ones(8), 2, torch.arange(8).view(2, 4).T)
    assert kept.tolist() == [3, 7]


# Allocation

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@given(SCORES, st.floats(0, 0.79), st.floats(0.01, 10))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_allocation_keeps_its_promises(scores: list[float], target: float, epsilon: float) -> None:
    sparsity = allocate_sparsity(scores, target, epsilon, 0.8)
    assert len(sparsity) == len(scores)
    assert abs(sum(sparsity) / len(sparsity) - target) <= 1e-9
    assert all(0 <= s <= 0.8 + 1e-12 for s in sparsity)
    ranked = [s for _, s in sorted(zip(scores, sparsity), key=lambda pair: pair[0])]
    assert all(more >= less - 1e-9 for more, less in pairwise(ranked))


def test_allocation_falls_strictly_where_nothing_is_capped() -> None:
    sparsity = allocate_sparsity([0.1, 0.2, 0.3, 0.9], 0.2)
    assert sparsity == sorted(sparsity, reverse=True) and len(set(sparsity)) == 4
    softmax = (-torch.tensor([0.1, 0.2, 0.3, 0.9], dtype=torch.float64) / 0.1).softmax(0)
    assert torch.allclose(torch.tensor(sparsity, dtype=torch.float64), 0.8 * softmax)


def test_allocation_is_even_for_a_large_epsilon() -> None:
    sparsity = allocate_sparsity([0.0, 0.3, 0.9], 0.35, epsilon=1e6)
    assert all(abs(s - 0.35) <= 1e-4 for s in sparsity)


def test_allocation_gives_the_excess_of_capped_layers_to_the_others() -> None:
    sparsity = allocate_sparsity([0.0, 0.5, 0.6], 0.4, epsilon=0.1, max_sparsity=0.7)
    assert sparsity[0] == 0.7
    left = (-torch.tensor([0.5, 0.6], dtype=torch.float64) / 0.1).softmax(0) * 0.5
    assert sparsity[1:] == pytest.approx(left.tolist())


@pytest.mark.parametrize("scores", [[0.0, 0.1, 0.9], [0.5] * 12, [1.0] + [0.0] * 29, [0.3]])
@pytest.mark.parametrize("target", [0.8 - 1e-6, 0.8])
def test_allocation_ends_at_the_cap(scores: list[float], target: float) -> None:
    sparsity = allocate_sparsity(scores, target, epsilon=0.01, max_sparsity=0.8)
    assert sum(sparsity) / len(sparsity) == pytest.approx(target, abs=1e-9)
    assert max(sparsity) <= 0.8 + 1e-12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": 0.81}, "0.81 cannot be reached with at most 0.8 a layer"),
        ({"target": 1.0}, r"must lie in \[0, 1\)"),
        ({"target": -0.1}, r"must lie in \[0, 1\)"),
        ({"target": float("nan")}, r"must lie in \[0, 1\)"),
        ({"target": 0.2, "max_sparsity": 1.0}, "must lie between 0 and 1"),
        ({"target": 0.2, "epsilon": 0.0}, "must be positive"),
    ],
)
def test_impossible_allocations_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        allocate_sparsity([0.1, 0.2], **options)
