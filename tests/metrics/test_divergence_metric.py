"""What reports and commands say of a divergence: of tokens or images, and when it is noise."""

from __future__ import annotations

from typing import Any

from modwright.metrics.divergence_metric import DivergenceMetric
from modwright.report import model_card, render_markdown, summary_sentences
from report.small import near, report, stage

WINDOWS = {"counts": [100.0] * 6}


def measured(*sums: float, **changed: Any) -> dict[str, Any]:
    by_window = {"kl": list(sums), **WINDOWS}
    return near(sum(sums) / 600, 0.8, by_window=by_window, **changed)


def step_lines(*sums: float) -> list[str]:
    """What is said of a second step whose windows have these sums of KL."""
    stages = [
        stage(),
        stage("1 x", agreement=measured(30, 32, 28, 31, 29, 30)),
        stage("2 y", agreement=measured(*sums)),
    ]
    return [line for line in summary_sentences(report(*stages)) if "KL from the baseline" in line]


def test_a_step_whose_windows_do_not_agree_is_within_noise() -> None:
    assert step_lines(33, 29, 31, 28, 32, 29) == [
        "Step 2 y: KL from the baseline went from 0.3 to 0.3033 nats, over 6 windows: within "
        "noise, no difference is seen."
    ]


def test_a_step_that_moves_every_window_is_a_difference() -> None:
    (line,) = step_lines(40, 42, 39, 41, 39, 41)
    assert line.endswith("to 0.4033 nats, over 6 windows.")


def test_without_windows_nothing_is_said_of_a_step() -> None:
    stages = [stage(), stage("1 x", agreement=near(0.3, 0.8)), stage("2 y", agreement=near(0.4, 1))]
    assert not [line for line in summary_sentences(report(*stages)) if "KL from" in line]


def test_the_interval_stands_beside_the_number() -> None:
    near_one = measured(30, 32, 28, 31, 29, 30)
    near_one["interval"] = {"low": 0.29, "high": 0.31, "windows": 6}
    lines = summary_sentences(report(stage(), stage("1 x", agreement=near_one)))
    assert any("(mean KL at 3,066 tokens of text; 0.29–0.31 over 6 windows)" in x for x in lines)
    (line,) = DivergenceMetric.lines(near_one)
    assert line.startswith("divergence over 3,066 tokens: KL 0.3 nats per token (0.29–0.31 with 95")


def test_of_images_every_form_says_images() -> None:
    recipe = {"data": "photos", "unit": "nats per image"}
    made = report(stage(), stage("1 x", agreement=near(0.3, 0.8, recipe=recipe)))
    assert "KL, nats/image" in render_markdown(made)
    assert "agreement with the base model on images (photos)" in model_card(made)
    values = made.after.measured["divergence"]
    assert next(DivergenceMetric.lines(values)).startswith("divergence over 3,066 images: KL 0.3")
    assert "mean KL of 3,066 images" in " ".join(summary_sentences(made))


def test_what_is_not_finite_is_said() -> None:
    broken = stage("1 x", agreement=near(float("nan"), 0.5)).measured["divergence"]
    assert next(DivergenceMetric.lines(broken)).endswith(": not finite")
