"""Scores of the harness and agreement stand in every form of the report, each as its kind wants."""

from __future__ import annotations

import pytest

from modwright.metrics.lm_eval_words import score_table
from modwright.report import Report, Stage, model_card, render_html, render_markdown
from modwright.report.columns import all_columns, shown_columns
from report.small import near, report, score, stage

GROUP = [
    score(0.6, 0.02, name="all acc", task="all", num_fewshot=None),
    score(0.5, 0.03, asked=False),
    score(0.7, 0.04, name="more acc (strict)", filter="strict", asked=False, documents=50),
]


def test_columns_are_scores_that_were_asked_for_right_after_quality() -> None:
    made = report(stage(scores=GROUP), stage("1 x", scores=GROUP, agreement=near(0.1, 0.9)))
    names = [metric.name for metric in shown_columns(made)]
    at = names.index("perplexity")
    assert names[at : at + 5] == ["perplexity", "kl", "top1", "all acc", "prefill_macs"]
    assert "words acc" not in names
    alone = report(Stage("before", measured={"lm_eval": {"scores": GROUP}}))
    assert [metric.name for metric in shown_columns(alone)] == ["all acc"]


def test_a_change_of_a_score_is_a_difference() -> None:
    before, after = stage(scores=[score(0.8)]), stage("1 x", scores=[score(0.6333)])
    (metric,) = (m for m in shown_columns(report(before, after)) if m.name == "words acc")
    assert (metric.cell(after), metric.change_cell(before, after)) == ("0.6333", "−0.1667")
    assert metric.summary_sentence(before, after) == "0.1667 lower"
    assert metric.direction(before, after) == "worse"
    assert metric.direction(before, stage("1 x", scores=[score(0.8)])) == "same"
    from_zero = stage(scores=[score(0.0)])
    assert metric.change_cell(from_zero, after) == "+0.6333"


@pytest.mark.parametrize(
    ("higher_is_better", "direction"), [(True, "better"), (False, "worse"), (None, "same")]
)
def test_the_task_says_which_way_is_good(higher_is_better: bool | None, direction: str) -> None:
    one, two = (score(value, higher_is_better=higher_is_better) for value in (20.5, 23.25))
    before, after = stage(scores=[one]), stage("1 x", scores=[two])
    (metric,) = (m for m in shown_columns(report(before, after)) if m.name == "words acc")
    assert metric.change_cell(before, after) == "+2.7500"
    assert metric.direction(before, after) == direction


def test_scores_taken_otherwise_are_not_compared_but_in_batches_they_are() -> None:
    before = stage(scores=[score(0.8)], asked={"harness": "lm-eval 0.4.12", "batch_size": 1})
    for asked, change in (
        ({"harness": "lm-eval 0.4.13", "batch_size": 1}, ""),
        ({"harness": "lm-eval 0.4.12", "batch_size": 8}, "−0.1000"),
    ):
        after = stage("1 x", scores=[score(0.7)], asked=asked)
        (metric,) = (m for m in shown_columns(report(before, after)) if m.name == "words acc")
        assert metric.change_cell(before, after) == change


def test_the_table_has_every_score_with_its_error() -> None:
    broken = Stage("1 x", "x", measured={"lm_eval": {"scores": [score(None)], "finite": False}})
    found = score_table([stage(scores=GROUP), broken])
    assert found is not None
    assert found.note.startswith("As lm-eval 0.4.13 gives them")
    assert found.heads == ["Score", "Version", "Shots", "Documents", "before", "1 x"]
    assert found.rows == [
        ["all acc", "1.0", "mixed", "100", "0.6000 ± 0.0200", "–"],
        ["words acc", "1.0", "0", "100", "0.5000 ± 0.0300", "not finite"],
        ["more acc (strict)", "1.0", "0", "50", "0.7000 ± 0.0400", "–"],
    ]
    assert score_table([stage()]) is None


def test_agreement_of_a_broken_result_says_so_and_of_the_first_stage_nothing() -> None:
    by_name = {metric.name: metric for metric in all_columns()}
    before = stage()
    after = stage("1 x", agreement=near(float("inf"), 0.25))
    assert by_name["kl"].cell(before) == "–"
    assert by_name["kl"].cell(after) == "not finite"
    assert by_name["top1"].cell(after) == "25.0 %"
    assert by_name["cosine"].cell(after) == "–"
    assert by_name["kl"].cell(stage("1 x", agreement=near(2.34567e-5, 1.0))) == "2.346e-05"


@pytest.mark.parametrize("render", [render_html, render_markdown, model_card])
def test_every_form_of_the_report_has_the_numbers(render, example: Report) -> None:
    page = render(example).replace("\\_", "_")
    for words in (
        "KL, nats/token",
        "0.2987",
        "Top-1 agreement",
        "73.5 %",
        "capitals acc",
        "0.6500",
        "−0.2000",
        "lm-eval 0.4.13",
    ):
        assert words in page, words


def test_pages_have_the_errors_and_the_headline_the_agreement(example: Report) -> None:
    page = render_html(example)
    assert "As lm-eval 0.4.13 gives them" in page
    assert "0.8500 ± 0.0819" in page and 'id="scores-lm_eval"' in page
    assert '<p class="label">Top-1 agreement' in page
    text = render_markdown(example)
    assert "## Harness scores" in text and "| capitals acc | 1.0 | 0 | 20 |" in text
    bare = report(stage(), stage("1 x"))
    assert 'id="scores-lm_eval"' not in render_html(bare) and "Top-1" not in render_html(bare)
    assert "Harness" not in render_markdown(bare)


def test_the_card_says_what_quality_was_measured_as() -> None:
    scored = report(stage(perplexity=None, scores=[score(0.5)]))
    assert "Quality was measured as scores of lm-eval 0.4.13 (words) only;" in model_card(scored)
    assert "Quality was not measured." in model_card(report(stage(perplexity=None)))
