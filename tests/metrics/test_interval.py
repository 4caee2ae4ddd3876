"""Intervals of means over windows: what they cover, what is paired, and when there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from modwright.metrics.interval import FEWEST, mean_interval, paired_change
from report.small import report, stage


def naive(sums: list[float], counts: list[float], tail: float) -> tuple[float, float]:
    """The percentiles of the same draws, one draw at a time."""
    draws = np.random.default_rng(0).integers(len(sums), size=(10_000, len(sums)))
    means = [sum(sums[i] for i in row) / sum(counts[i] for i in row) for row in draws[:10_000]]
    return float(np.quantile(means, tail)), float(np.quantile(means, 1 - tail))


def test_it_is_the_percentiles_of_means_of_windows_drawn_again() -> None:
    from scipy.stats import norm, t

    sums, counts = [3.0, 5.0, 4.0, 6.5, 2.0, 4.0, 9.0], [2.0, 2.0, 1.0, 2.0, 2.0, 1.0, 3.0]
    tail = norm.cdf(-math.sqrt(7 / 6) * t.ppf(0.975, 6))
    found = mean_interval(sums, counts)
    assert found is not None and found.windows == 7
    assert (found.low, found.high) == pytest.approx(naive(sums, counts, tail))


def test_the_same_windows_give_the_same_interval_and_it_holds_the_mean() -> None:
    values = list(np.random.default_rng(3).normal(2.0, 0.5, 12))
    one, two = (mean_interval(values, [1.0] * 12) for _ in range(2))
    assert one == two and one is not None
    assert one.low < sum(values) / 12 < one.high


@pytest.mark.parametrize("windows", [6, 20])
def test_so_many_of_a_hundred_intervals_hold_the_true_mean(windows: int) -> None:
    """Nominally 95; with six windows the percentiles alone would hold it 83 times."""
    draws = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        found = mean_interval(list(draws.normal(0.0, 1.0, windows)), [1.0] * windows)
        assert found is not None
        held += found.covers(0.0)
    assert held >= 90


def test_a_paired_change_is_as_narrow_as_the_differences() -> None:
    hard = np.random.default_rng(2).normal(3.0, 1.0, 10)
    other = hard + np.random.default_rng(4).normal(0.1, 0.01, 10)
    counts = [1.0] * 10
    found, alone = paired_change(list(hard), list(other), counts), mean_interval(list(hard), counts)
    assert found is not None and alone is not None
    assert 0.08 < found.low < 0.1 < found.high < 0.12
    assert alone.high - alone.low > 10 * (found.high - found.low)


def test_too_few_windows_other_windows_and_numbers_that_are_none_have_no_interval() -> None:
    few = [1.0] * (FEWEST - 1)
    assert mean_interval(few, few) is None
    assert paired_change([1.0] * 6, [1.0] * 7, [1.0] * 6) is None
    assert mean_interval([1.0, math.nan, 1.0, 1.0, 1.0], [1.0] * 5) is None
    assert mean_interval([1.0] * 5, [1.0, 0.0, 1.0, 1.0, 1.0]) is None


# In words

COUNTS = [100.0] * 6
NLL = [330.0, 350.0, 340.0, 345.0, 335.0, 341.0]


def words(*changes: float) -> tuple[str, str, str]:
    """The sentence, the cell and the direction of a perplexity whose windows changed by these."""
    after = [one + change for one, change in zip(NLL, changes)]
    values = [math.exp(sum(nll) / 600) for nll in (NLL, after)]
    stages = [
        stage(name, perplexity=value, by_window={"nll": nll, "counts": COUNTS})
        for name, value, nll in zip(("before", "1 x"), values, (NLL, after))
    ]
    from modwright.metrics.perplexity import PerplexityMetric
    from modwright.report import summary_sentences

    column = PerplexityMetric.columns[0]
    (line,) = [s for s in summary_sentences(report(*stages)) if s.startswith("Perplexity")]
    return line, column.change_cell(*stages), column.direction(*stages)


def test_a_change_that_windows_do_not_agree_on_is_within_noise() -> None:
    line, cell, direction = words(6.0, -5.0, 4.0, -3.0, 5.0, -2.0)
    assert "over 6 windows)" in line and line.endswith(": within noise, no difference is seen.")
    assert cell.endswith(", within noise") and direction == "same"
    assert "nearly free" not in line


def test_a_change_that_all_windows_show_is_not() -> None:
    line, cell, direction = words(9.0, 8.0, 10.0, 9.5, 8.5, 9.0)
    assert "by a factor of 1.09 (1.09–1.10 over 6 windows)" in line
    assert "within noise" not in line + cell and direction == "worse"


def test_the_same_model_is_unchanged_and_not_noise() -> None:
    line, cell, direction = words(0, 0, 0, 0, 0, 0)
    assert "stayed at" in line and cell == "× 1.00" and direction == "same"
