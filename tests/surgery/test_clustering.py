"""Balanced k-means: exact sizes, exact assignments, tight groups."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from modwright.core.errors import InvalidInputError
from modwright.surgery.clustering import (
    assign_evenly,
    balanced_kmeans,
    inertia,
    split_evenly,
)


def by_matching(costs: np.ndarray) -> float:
    """The least cost, by matching rows with columns that stand n / N times."""
    size, columns = costs.shape
    rows, places = linear_sum_assignment(np.repeat(costs, size // columns, axis=1))
    return float(costs[rows, places // (size // columns)].sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 10**6), st.booleans())
def test_an_assignment_is_even_and_costs_least(
    columns: int, each: int, seed: int, coarse: bool
) -> None:
    random = np.random.default_rng(seed)
    costs = random.normal(size=(columns * each, columns)) + random.normal(size=columns) * 2
    if coarse:  # many ties
        costs = costs.round()
    labels, prices = assign_evenly(costs)
    assert np.bincount(labels, minlength=columns).tolist() == [each] * columns
    assert costs[np.arange(len(costs)), labels].sum() == pytest.approx(by_matching(costs))
    # Under the prices everyone is content: that is a proof that nothing is cheaper.
    priced = costs + prices
    assert (priced[np.arange(len(costs)), labels] <= priced.min(1) + 1e-9).all()


def test_prices_of_a_similar_problem_lead_to_the_same_cost() -> None:
    random = np.random.default_rng(0)
    costs = random.normal(size=(60, 5)) + np.arange(5)
    _, prices = assign_evenly(costs)
    moved = costs + random.normal(size=costs.shape) * 0.01
    for start in (None, prices, random.normal(size=5) * 10):
        labels, _ = assign_evenly(moved, start)
        assert moved[np.arange(60), labels].sum() == pytest.approx(by_matching(moved))


def planted(groups: int, each: int, width: int = 16) -> tuple[Tensor, Tensor]:
    """Well separated groups, shuffled, and which row belongs where."""
    generator = torch.Generator().manual_seed(groups)
    centers = torch.randn(groups, width, generator=generator) * 5
    truth = torch.arange(groups).repeat(each)[torch.randperm(groups * each, generator=generator)]
    noise = torch.randn(len(truth), width, generator=generator) * 0.1
    return centers[truth] + noise, truth


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(4, 8), (8, 6), (16, 12), (32, 3)])
def test_planted_groups_are_found_whole(shape: tuple[int, int], seed: int) -> None:
    x, truth = planted(*shape)
    for normalize in (True, False):
        labels, centers = balanced_kmeans(x, shape[0], seed=seed, normalize=normalize)
        pairs = {(int(a), int(b)) for a, b in zip(labels, truth)}
        assert len(pairs) == shape[0]
        rows = F.normalize(x, dim=1) if normalize else x
        torch.testing.assert_close(centers[labels[0]], rows[labels == labels[0]].mean(0))


@pytest.mark.parametrize(("size", "width", "groups"), [(96, 48, 8), (240, 32, 12), (120, 5, 10)])
def test_groups_are_even_and_tighter_than_any_other_split(
    size: int, width: int, groups: int
) -> None:
    x = torch.randn(size, width, generator=torch.Generator().manual_seed(1))
    rows = F.normalize(x, dim=1)
    labels, _ = balanced_kmeans(x, groups)
    assert torch.bincount(labels).tolist() == [size // groups] * groups
    found = inertia(rows, labels)
    assert found <= inertia(rows, split_evenly(rows, groups, "contiguous"))
    for seed in range(10):
        assert found <= inertia(rows, split_evenly(rows, groups, "random", seed))
    assert found <= 1.02 * inertia(rows, lloyd_by_matching(rows, groups))


def lloyd_by_matching(rows: Tensor, groups: int) -> Tensor:
    """Balanced k-means in the plain way, from the best of ten starts at random rows."""
    each, best = len(rows) // groups, (float("inf"), torch.empty(0))
    for seed in range(10):
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        centers, labels = rows[drawn[:groups]], None
        while True:
            costs = torch.cdist(rows, centers).square().repeat_interleave(each, 1).double()
            fresh = torch.from_numpy(linear_sum_assignment(costs.numpy())[1] // each)
            if labels is not None and torch.equal(fresh, labels):
                break
            labels = fresh
            centers = torch.stack([rows[labels == g].mean(0) for g in range(groups)])
        best = min(best, (inertia(rows, labels), labels), key=lambda pair: pair[0])
    return best[1]


def test_the_best_of_all_splits_is_found_where_all_can_be_tried() -> None:
    hits = 0
    for seed in range(8):
        x = torch.randn(6, 2, generator=torch.Generator().manual_seed(seed))
        least = min(inertia(x, torch.tensor(p)) for p in set(permutations([0, 0, 1, 1, 2, 2])))
        found = inertia(x, balanced_kmeans(x, 3, normalize=False)[0])
        assert found >= least - 1e-9
        hits += found <= least + 1e-6
    assert hits >= 7


def test_the_same_seed_gives_the_same_groups() -> None:
    x = torch.randn(96, 20)
    one, other = (balanced_kmeans(x, 8, seed=3)[0] for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, balanced_kmeans(x, 8, seed=4)[0])
    assert torch.equal(split_evenly(x, 8, "random", 1), split_evenly(x, 8, "random", 1))


@pytest.mark.parametrize("how", ["kmeans", "contiguous", "random"])
@pytest.mark.parametrize("groups", [1, 6, 12])
def test_every_way_of_splitting_is_even(how: str, groups: int) -> None:
    labels = split_evenly(torch.randn(12, 4), groups, how)
    assert torch.bincount(labels, minlength=groups).tolist() == [12 // groups] * groups


def test_equal_rows_and_zero_rows_are_split_too() -> None:
    for x in (torch.ones(12, 3), torch.zeros(12, 3), torch.eye(3).repeat(4, 1)):
        labels, centers = balanced_kmeans(x, 4)
        assert torch.bincount(labels).tolist() == [3] * 4
        assert torch.isfinite(centers).all()


def test_half_precision_rows_are_clustered() -> None:
    x, truth = planted(4, 6)
    labels, _ = balanced_kmeans(x.bfloat16(), 4)
    assert len({(int(a), int(b)) for a, b in zip(labels, truth)}) == 4


@pytest.mark.parametrize(
    ("groups", "said"),
    [(5, "12 rows do not split into 5 groups of equal size; nearest: 4 or 6"), (24, "nearest: 12")],
)
def test_uneven_groups_are_refused(groups: int, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        balanced_kmeans(torch.randn(12, 4), groups)
    with pytest.raises(InvalidInputError, match=said):
        split_evenly(torch.randn(12, 4), groups, "contiguous")


def test_rows_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="must be finite"):
        balanced_kmeans(torch.full((4, 2), torch.nan), 2)
    with pytest.raises(InvalidInputError, match="iters must be at least 1"):
        balanced_kmeans(torch.ones(4, 2), 2, iters=0)
