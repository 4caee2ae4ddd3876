"""What a report says of speed: only what the paired runs show, with the interval."""

from __future__ import annotations

import re

import pytest

from modwright.metrics.speed_words import MACS_FALL, paired_ratio, speed_cells
from modwright.report import Report, Stage, render_html, render_markdown, summary_sentences
from modwright.report.card import model_card
from modwright.report.columns import all_columns
from report.small import report, stage

SENTENCE = r"is faster|is slower|no difference|did not pay|× 1"


def said(*stages: Stage) -> list[str]:
    return [
        line
        for line in summary_sentences(report(*stages))
        if re.search("decoding|prefill|speed|timed", line, re.I)
    ]


CASES: dict[str, tuple[Stage, str, str]] = {
    "faster": (
        stage("1 x", decode=25.0, decode_macs=700_000, ratios={"decode": (1.25, 1.2, 1.3, 9)}),
        r"Decoding is faster: 25\.00 tokens/s instead of 20\.00 \(1\.20–1\.30 times as fast, "
        r"9 pairs of runs, on this machine\)\.",
        "slower|no difference|although",
    ),
    "no difference": (
        stage("1 x", decode=24.8, ratios={"decode": (1.24, 0.93, 1.4, 9)}),
        r"Decoding: no difference seen \(0\.93–1\.40 times as fast, 9 pairs of runs\)\.",
        r"faster|slower|tokens/s|1\.24",
    ),
    "no difference with fewer MACs": (
        stage("1 x", decode=20.2, decode_macs=880_000, ratios={"decode": (1.01, 0.98, 1.03, 9)}),
        r"no difference seen \(0\.98–1\.03 .*\) although decode MACs fell 12\.0 %\.",
        "did not pay|faster|slower",
    ),
    "slower with fewer MACs": (
        stage("1 x", decode=18.0, decode_macs=880_000, ratios={"decode": (0.9, 0.85, 0.95, 9)}),
        r"Decoding is slower although decode MACs fell 12\.0 %: 18\.00 tokens/s instead of 20\.00",
        "faster|no difference",
    ),
    "MACs hardly fell": (
        stage(
            "1 x",
            decode=18.0,
            decode_macs=1_000_000 * (1 - MACS_FALL),
            ratios={"decode": (0.9, 0.85, 0.95, 9)},
        ),
        r"Decoding is slower: 18\.00",
        "although",
    ),
    "beyond what is possible": (
        stage("1 x", decode=40.0, decode_macs=900_000, ratios={"decode": (2.0, 1.9, 2.1, 9)}),
        r"was timed at 40\.00 tokens/s instead of 20\.00 \(1\.90–2\.10 times as fast, 9 pairs of "
        r"runs\); fewer MACs and bytes explain a factor of 1\.11 at most",
        "is faster",
    ),
    "too few pairs": (
        stage("1 x", decode=40.0, ratios={"decode": (2.0, 1.9, 2.1, 3)}),
        r"was timed at .* \(1\.90–2\.10 times as fast, 3 pairs of runs\): too few pairs",
        SENTENCE,
    ),
    "without an interval": (
        stage("1 x", decode=40.0, decode_macs=500_000),
        r"Decoding was timed at 40\.00 tokens/s instead of 20\.00; how far such times spread was "
        r"not recorded, so nothing follows from them\.",
        SENTENCE,
    ),
    "nothing changed": (
        stage("1 x", decode=20.0, unchanged=True),
        r"Speed: structure and weights are those of the baseline, so nothing was timed "
        r"again\.",
        SENTENCE + "|tokens/s",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_fault_A18_each_sentence_about_speed(name: str) -> None:
    after, told, untold = CASES[name]
    lines = said(stage(decode=20.0), after)
    assert any(re.search(told, line) for line in lines), lines
    assert not any(re.search(untold, line) for line in lines), lines


@pytest.mark.parametrize("name", CASES)
def test_fault_A18_only_a_difference_that_was_seen_stands_in_tables_and_headlines(
    name: str,
) -> None:
    before, after = stage(decode=20.0), CASES[name][0]
    metric = next(m for m in all_columns() if m.name == "decode_tokens_per_second")
    seen = name in ("faster", "slower with fewer MACs", "MACs hardly fell")
    assert bool(metric.change_cell(before, after)) is seen
    assert bool(metric.summary_sentence(before, after)) is seen
    assert metric.has_headline(before, after) is seen
    whole = report(before, after)
    pages = [render_html(whole), render_markdown(whole), model_card(whole)]
    card = re.search(r'class="label">Decode tokens/s', pages[0])
    assert (card is not None) is seen
    for page in pages[1:]:
        row = next(line for line in page.splitlines() if line.startswith("| 1 x"))
        assert row.rstrip(" |").endswith("%)") is seen


def test_a_measurement_that_is_missing_or_alone_has_its_card() -> None:
    for stages in ([stage()], [stage(), stage("1 x")], [stage(decode=20.0)]):
        assert 'class="label">Decode tokens/s' in render_html(report(*stages))


@pytest.mark.contract("E5")
def test_the_step_that_is_not_faster_is_named_and_the_other_is_not() -> None:
    lines = summary_sentences(
        report(
            stage(decode=20.0),
            stage(
                "1 good",
                perplexity=31.0,
                decode=25.0,
                decode_macs=700_000,
                stored_bytes=3e6,
                ratios={"decode": (1.25, 1.24, 1.26, 12)},
            ),
            stage(
                "2 bad",
                perplexity=33.0,
                decode=25.0,
                decode_macs=600_000,
                stored_bytes=2e6,
                ratios={"decode": (1.25, 1.24, 1.26, 8)},
            ),
        )
    )
    missed = [line for line in lines if "although" in line]
    assert missed == [
        "Step 2 bad: decoding: no difference seen (0.98–1.02 times as fast, 8 pairs of runs) "
        "although decode MACs fell 14.3 %."
    ]
    assert "Step 1 good: perplexity rose from 30.00 to 31.00" in "\n".join(lines)
    assert "Step 2 bad: perplexity rose from 31.00 to 33.00" in "\n".join(lines)


def test_steps_are_compared_by_dividing_their_intervals() -> None:
    first = stage(decode=20.0)
    one = stage("1 x", decode=30.0, ratios={"decode": (1.5, 1.4, 1.6, 12)})
    two = stage("2 y", decode=24.0, ratios={"decode": (1.2, 1.1, 1.3, 7)})
    found = paired_ratio(one, two, "decode")
    assert found is not None and found.pairs == 7
    assert (found.low, found.high) == pytest.approx((1.1 / 1.6, 1.3 / 1.4))
    assert paired_ratio(first, two, "prefill") is None
    assert paired_ratio(first, stage("1 x", decode=2.0, timing={"threads": 8}), "decode") is None


def test_a_narrow_table_shows_intervals_and_old_reports_their_numbers() -> None:
    first = stage(decode=20.0, prefill=1234.0)
    new = stage("1 x", decode=24.0, prefill=1500.0, ratios={"decode": (1.2, 0.93, 1.3, 7)})
    assert speed_cells(first, first) == ("1,234", "20.00")
    assert speed_cells(first, new) == ("1,500", "× 0.93–1.30")
    assert speed_cells(first, stage("1 x", decode=20.0, unchanged=True)) == ("–", "unchanged")
    assert speed_cells(first, stage("1 x")) == ("–", "–")


def test_intervals_survive_the_way_to_json() -> None:
    whole = report(stage(decode=20.0), CASES["faster"][0])
    assert summary_sentences(Report.from_dict(whole.to_dict())) == summary_sentences(whole)
