"""Massive activations of SmolLM2-135M-Instruct: where they are, and what the model is without.

A third of the tokens of the figures in docs/papers/massive-activations.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import modwright
from modwright.analysis.massive_activations import intervention_table
from modwright.analysis.massive_values import MassiveReport, detect_massive
from modwright.calibration import token_windows

pytestmark = [pytest.mark.slow, pytest.mark.models]

BLOCK, DIMENSION = 11, 507


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def opened() -> Any:
    return modwright.open("smollm2-135m")


@pytest.fixture(scope="module")
def texts(opened: Any) -> list[Any]:
    return list(token_windows(opened.tokenizer, "lee", windows=3, length=256, batch_size=1))


@pytest.fixture(scope="module")
def report(opened: Any, texts: list[Any]) -> MassiveReport:
    return detect_massive(opened.model, texts)


def test_one_dimension_is_massive_at_the_first_token(report: MassiveReport) -> None:
    here = [entry for entry in report.entries if entry.dimension == DIMENSION]
    ratio = float(report.ratios(BLOCK)[DIMENSION])
    assert report.emergence == BLOCK
    assert ratio > 5000
    assert {entry.position for entry in report.entries} == {0}
    assert {(e.sequence, e.layer) for e in here} >= {(s, at) for s in range(3) for at in (11, 27)}
    before = float((report.stats[:, 0] / report.stats[:, 3])[:, BLOCK - 1].mean())
    assert before < 200  # it emerges in one block


def test_zero_breaks_the_model_and_the_mean_does_not(
    opened: Any, texts: list[Any], report: MassiveReport
) -> None:
    # What is in front decides the state of a first token, so windows of means may be short.
    others = token_windows(opened.tokenizer, "lee-background", windows=8, length=16, batch_size=8)
    assert (0, DIMENSION) in report.pairs()
    found = intervention_table(opened.model, texts, others, report)
    beside = {name: value / found["intact"] for name, value in found.items()}
    mean_off, random_off = (abs(beside[name] - 1) for name in ("mean", "random dimensions"))
    elsewhere_off = abs(beside["another position"] - 1)
    largest = beside["next largest dimensions"]
    zero = beside["zero"]
    assert zero > 100
    assert mean_off <= 0.01
    assert random_off <= 0.01
    assert elsewhere_off <= 0.01
    assert largest < 1.25  # of ten dimensions, and yet far from what the one does
