"""Groups of exactly equal size: k-means whose clusters all hold the same number of rows.

The assignment step is a transportation problem, n rows to N clusters with n / N places each, solved
exactly: rows start at their cheapest cluster and move along shortest paths between clusters until
all hold their share. Only the N x N table of cheapest moves is searched. Where many columns meet
few rows, k-means stops early, as a mean lies close to its members; exchanges of pairs go on.

Axes: n rows, d columns, N clusters.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from modwright.core.errors import InvalidInputError
from modwright.nn.routing import nearest_divisors

__all__ = ["assign_evenly", "balanced_kmeans", "inertia", "split_evenly"]

Costs = NDArray[np.float64]
Labels = NDArray[np.int64]


def inertia(x: Tensor, labels: Tensor) -> float:
    """Sum of the squared distances of the rows (n, d) to the mean of their group.

    Example:
        >>> inertia(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1]))
        2.0
    """
    means = _means(x.double(), labels, int(labels.max()) + 1)
    return float((x.double() - means[labels]).square().sum())


def balanced_kmeans(
    x: Tensor, n_clusters: int, iters: int = 100, seed: int = 0, normalize: bool = True
) -> tuple[Tensor, Tensor]:
    """Clusters rows (n, d) into N groups of exactly n / N rows, by squared Euclidean distance.

    Lloyd's two steps from a greedy k-means++ start, with the exact balanced assignment in place of
    the nearest center, until no row moves; then two rows of different groups change places as long
    as that makes the sum of squares smaller. No step makes it larger. Takes 4 n^2 bytes.

    ``iters`` is the most assignment steps, and the most rounds of exchanges. ``normalize`` scales
    rows to length one first. Returns labels (n,) and centers (N, d), the means of the rows.

    Example:
        >>> rows = torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 0.2], [0.2, 1.0]])
        >>> balanced_kmeans(rows, 2)[0].unique(return_counts=True)[1].tolist()
        [2, 2]
    """
    _check(len(x), n_clusters)
    if not bool(torch.isfinite(x).all()):
        raise InvalidInputError("rows to cluster must be finite")
    if iters < 1:
        raise InvalidInputError(f"iters must be at least 1, not {iters}")
    rows = x.detach().float()
    rows = F.normalize(rows, dim=1) if normalize else rows
    centers = _spread_start(rows, n_clusters, seed)
    labels, prices = torch.full((len(rows),), -1), np.zeros(n_clusters)
    for _ in range(iters):
        # squared distances, up to the length of each row, which changes no assignment
        apart = centers.square().sum(1) - 2 * rows @ centers.T
        found, prices = assign_evenly(apart.cpu().double().numpy(), prices)
        fresh = torch.from_numpy(found)
        if torch.equal(fresh, labels):
            break
        labels = fresh
        centers = _means(rows, labels.to(rows.device), n_clusters)
    labels = torch.from_numpy(_exchanged((rows @ rows.T).cpu().numpy(), labels.numpy(), iters))
    return labels, _means(rows, labels.to(rows.device), n_clusters)


def assign_evenly(costs: Costs, prices: Costs | None = None) -> tuple[Labels, Costs]:
    """The cheapest assignment of n rows to N columns that gives every column n / N rows.

    ``costs`` is (n, N). With the ``prices`` (N,) of a similar problem few rows must move. Returns
    labels (n,), and the prices under which every row is at its cheapest column.

    Example:
        >>> assign_evenly(np.array([[0.0, 9.0], [1.0, 9.0], [2.0, 9.0], [3.0, 5.0]]))[0].tolist()
        [0, 0, 1, 1]
    """
    size, columns = costs.shape
    _check(size, columns)
    start = costs if prices is None else costs + prices
    moves = _Moves(costs, start.argmin(1).astype(np.int64))
    room = size // columns - np.bincount(moves.labels, minlength=columns)
    while (room < 0).any():
        path = moves.cheapest_path(np.flatnonzero(room < 0), np.flatnonzero(room > 0))
        moves.shift(path)
        room[path[0]] += 1
        room[path[-1]] -= 1
    return moves.labels, moves.prices()


class _Moves:
    """An assignment, and for each pair of columns the row whose move from a to b costs least."""

    def __init__(self, costs: Costs, labels: Labels) -> None:
        self.costs, self.labels = costs, labels
        columns = costs.shape[1]
        self.price = np.full((columns, columns), np.inf)  # of the move from row's column to another
        self.row = np.zeros((columns, columns), dtype=np.int64)
        for column in range(columns):
            self._refresh(column)

    def _refresh(self, column: int) -> None:
        members = np.flatnonzero(self.labels == column)
        if not len(members):
            self.price[column] = np.inf
            return
        extra = self.costs[members] - self.costs[members, column, None]
        best = extra.argmin(0)
        self.row[column] = members[best]
        self.price[column] = extra[best, np.arange(len(best))]

    def _distances(self, reached: Costs) -> tuple[Costs, Labels]:
        """Bellman-Ford: cheapest chain of moves to every column, and the column before it."""
        before = np.full(len(reached), -1, dtype=np.int64)
        for _ in range(len(reached)):
            through = reached[:, None] + self.price
            best = through.argmin(0)
            cheaper = through[best, np.arange(len(best))]
            # A hair's breadth is rounding; following it could go in circles.
            better = cheaper < reached - 1e-12
            if not better.any():
                break
            reached, before = np.where(better, cheaper, reached), np.where(better, best, before)
        return reached, before

    def cheapest_path(self, full: Labels, free: Labels) -> list[int]:
        """Columns from a full one to one with room, along which moving rows costs least."""
        start = np.full(len(self.price), np.inf)
        start[full] = 0.0
        reached, before = self._distances(start)
        path = [int(free[reached[free].argmin()])]
        while before[path[0]] >= 0:
            path.insert(0, int(before[path[0]]))
        return path

    def shift(self, path: list[int]) -> None:
        """Moves one row along every step of a path."""
        for source, target in itertools.pairwise(path):
            self.labels[self.row[source, target]] = target
        for column in path:
            self._refresh(column)

    def prices(self) -> Costs:
        """(N,): added to the costs, they make every row's own column its cheapest."""
        return -self._distances(np.zeros(len(self.price)))[0]


def _exchanged(products: NDArray[np.float32], labels: Labels, rounds: int) -> Labels:
    """Lets pairs of rows change places while the sum of squares falls.

    With sums S of the groups, each of m rows, what falls is minus the sum of |S|^2 / m. If i of
    group a and j of group b change places, it falls by 2 / m times
    (S_a - S_b) . (x_j - x_i) + |x_j - x_i|^2. Every row looks for its best partner in each of at
    most ``rounds``, by the products (n, n) of all pairs.
    """
    labels, everyone = labels.copy(), np.arange(len(labels))
    lengths = products.diagonal()
    least = 1e-5 * float(lengths.mean())  # below that it is rounding
    for _ in range(rounds):
        towards = products @ np.eye(labels.max() + 1, dtype=np.float32)[labels]  # (n, N): x . S
        own = towards[everyone, labels]
        moved = False
        for i in range(len(labels)):
            a = labels[i]
            scale = towards[:, a] - own - 2 * products[i] + lengths
            scale += towards[i, labels] - towards[i, a] + lengths[i]
            scale[labels == a] = 0.0
            j = int(scale.argmax())
            if scale[j] <= least:
                continue
            b, difference, moved = labels[j], products[j] - products[i], True
            towards[:, a] += difference
            towards[:, b] -= difference
            labels[i], labels[j] = b, a
            own = towards[everyone, labels]
        if not moved:
            break
    return labels


def _check(size: int, n_clusters: int) -> None:
    if n_clusters < 1 or size % n_clusters:
        near = " or ".join(map(str, nearest_divisors(size, max(n_clusters, 1))))
        raise InvalidInputError(
            f"{size} rows do not split into {n_clusters} groups of equal size; nearest: {near}"
        )


def _means(rows: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
    sums = rows.new_zeros(n_clusters, rows.shape[1]).index_add_(0, labels, rows)
    return sums / torch.bincount(labels, minlength=n_clusters).clamp(min=1)[:, None]


def _spread_start(rows: Tensor, n_clusters: int, seed: int) -> Tensor:
    """Greedy k-means++: each center is the best of a few rows drawn by squared distance."""
    generator = torch.Generator().manual_seed(seed)
    trials = 2 + int(math.log(n_clusters))
    chosen = [int(torch.randint(len(rows), (1,), generator=generator))]
    nearest = (rows - rows[chosen[0]]).square().sum(1)
    for _ in range(n_clusters - 1):
        weights = nearest.double().cpu().clamp(min=0)
        if not float(weights.sum()):  # fewer different rows than clusters
            weights = torch.ones_like(weights)
        drawn = torch.multinomial(weights, min(trials, len(rows)), True, generator=generator)
        candidates = rows[drawn.to(rows.device)]
        apart = rows.square().sum(1)[:, None] + candidates.square().sum(1) - 2 * rows @ candidates.T
        apart = torch.minimum(apart.clamp(min=0), nearest[:, None])
        best = int(apart.sum(0).argmin())
        chosen.append(int(drawn[best]))
        nearest = apart[:, best]
    return rows[chosen]


def split_evenly(keys: Tensor, n_clusters: int, how: str = "kmeans", seed: int = 0) -> Tensor:
    """Labels (n,) of groups of equal size: "kmeans", "contiguous" slices, or "random".

    Example:
        >>> split_evenly(torch.eye(4), 2, "contiguous").tolist()
        [0, 0, 1, 1]
    """
    _check(len(keys), n_clusters)
    if how == "kmeans":
        return balanced_kmeans(keys, n_clusters, iters=1000, seed=seed)[0]
    in_order = torch.arange(len(keys)) // (len(keys) // n_clusters)
    drawn = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed))
    return {"contiguous": in_order, "random": in_order[drawn]}[how]
