"""The scan without a loop over the length."""

from __future__ import annotations

import pytest
import torch

from modwright.nn.associative_scan import CHUNK, associative_scan, segment_sums
from modwright.nn.selective_scan import naive_selective_scan
from nn.scans import gradients_of, relative, scan_inputs


def test_segment_sums_are_sums_between_two_tokens() -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    found = segment_sums(x, 1)
    for k in range(5):
        for j in range(5):
            assert torch.allclose(found[:, k, j], x[:, j + 1 : k + 1].sum(1))


@pytest.mark.parametrize("length", [1, CHUNK, CHUNK**2, CHUNK**2 + 1, 2 * CHUNK**2 + 77])
def test_each_level_gives_the_recurrence(length: int) -> None:
    given = scan_inputs(batch=1, length=length, width=2)
    given = {n: t for n, t in given.items() if n not in ("D", "z")}
    truth = gradients_of(naive_selective_scan, given)
    found = gradients_of(associative_scan, given)
    assert all(relative(found[name], value) < 1e-12 for name, value in truth.items())


def test_steps_of_nothing_after_huge_ones_lose_no_precision() -> None:
    """What is summed up before a token must not blur the decays after it."""
    given = scan_inputs(batch=1, length=300, width=2, dtype=torch.float32)
    given = {n: t for n, t in given.items() if n not in ("D", "z")}
    given["dt"][:, :150] = 1e6
    given["dt"][:, 150:] = 1e-3
    found = associative_scan(**given)
    truth = naive_selective_scan(**{n: t.double() for n, t in given.items()})
    assert all(relative(mine.double(), exact) < 1e-5 for mine, exact in zip(found, truth))
