from __future__ import annotations

from modwright.core.formatting import MISSING, bytes_text
from modwright.report import Report
from modwright.report.columns import all_columns, shown_columns
from modwright.report.tables import by_layer, measured, samples

from .small import report, stage

BY_NAME = {metric.name: metric for metric in all_columns()}


def test_columns_without_a_number_are_left_out() -> None:
    names = {metric.name for metric in shown_columns(report(stage(perplexity=None)))}
    assert "parameters" in names
    assert not names & {"perplexity", "decode_tokens_per_second"}


def test_a_broken_model_keeps_the_perplexity_column() -> None:
    broken = stage("1 x", perplexity=float("inf"))
    metric = BY_NAME["perplexity"]
    assert metric in shown_columns(report(stage(perplexity=None), broken))
    assert metric.cell(broken) == "not finite"
    assert metric.change_cell(stage(), broken) == ""


def test_changes_are_written_in_the_form_of_their_metric() -> None:
    slower = {"decode": (0.8, 0.7, 0.9, 9)}
    before = stage(decode=10.0)
    after = stage("1 x", perplexity=45.0, decode=8.0, parameters=9e5, ratios=slower)
    found = {
        name: (metric.change_cell(before, after), metric.summary_sentence(before, after))
        for name, metric in BY_NAME.items()
    }
    assert found["parameters"] == ("−10.0 %", "10.0 % fewer")
    assert found["perplexity"] == ("× 1.50", "× 1.50 higher")
    assert found["decode_tokens_per_second"] == ("−20.0 %", "20.0 % slower")
    assert found["kv_bytes"] == ("0.0 %", "unchanged")
    assert found["prefill_tokens_per_second"] == ("", "")


def test_directions_know_which_way_is_wanted() -> None:
    before = stage(decode=10.0)
    slower = {"decode": (0.8, 0.7, 0.9, 9)}
    after = stage("1 x", perplexity=45.0, decode=8.0, parameters=9e5, ratios=slower)
    found = {name: metric.direction(before, after) for name, metric in BY_NAME.items()}
    assert found["parameters"] == "better"
    assert found["perplexity"] == found["decode_tokens_per_second"] == "worse"
    assert found["kv_bytes"] == "same"


def test_nothing_is_compared_that_was_measured_differently() -> None:
    before, after = stage(), stage("1 x", perplexity=20.0, recipe={"data": "other.txt"})
    assert BY_NAME["perplexity"].change_cell(before, after) == ""
    assert BY_NAME["perplexity"].direction(before, after) == "same"


def test_a_cost_that_was_zero_has_no_change() -> None:
    assert BY_NAME["kv_bytes"].change_cell(stage(kv_bytes=0), stage("1 x", kv_bytes=5)) == ""


def test_a_recipe_that_holds_for_all_stages_stands_once(example: Report) -> None:
    found = [(entry.title, entry.stages) for entry in measured(example)]
    assert found == [
        ("Perplexity", ()),
        ("Divergence from the baseline", ("1 llm_drop", "2 modegpt")),
        ("Harness scores", ()),
        ("Cost (counted, not timed)", ()),
        ("Speed (timed)", ()),
        ("Sample", ()),
    ]


def test_recipes_that_differ_name_their_stages() -> None:
    odd = stage("1 x", recipe={"data": "other.txt", "window": {"stride": None}})
    quality = [entry for entry in measured(report(stage(), odd)) if entry.title == "Perplexity"]
    assert [entry.stages for entry in quality] == [("before",), ("1 x",)]
    assert quality[1].recipe == {"data": "other.txt", "window, stride": "none"}


def test_only_lists_with_an_entry_per_layer_become_columns() -> None:
    reasons = {"sparsity": [0.1, 0.2], "removed": {"mlp": [1]}, "edges": [[0, 1], [1, 2]]}
    columns, rest = by_layer(reasons, 2)
    assert columns == {"sparsity": [0.1, 0.2]}
    assert rest == {"removed, mlp": "1", "edges": "0, 1, 1, 2"}


def test_samples_are_the_first_and_the_last() -> None:
    stages = [stage(repetition=0.0), stage("1 x", repetition=0.1), stage("2 y", repetition=0.2)]
    assert [when for when, _ in samples(report(*stages))] == ["before", "after step 2 y"]
    assert [when for when, _ in samples(report(stages[0]))] == ["before"]
    assert samples(report(stage())) == []


def test_states_have_a_column_where_a_stage_keeps_one() -> None:
    metric = BY_NAME["state_bytes"]
    without, one = stage(), stage("1 x", state_bytes=2_000)
    assert (metric.cell(without), metric.cell(one)) == (MISSING, bytes_text(2_000))
    for stages, shown in (([without], False), ([without, one], True)):
        assert (metric in shown_columns(report(*stages))) == shown
