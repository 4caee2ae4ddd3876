"""Means, spreads and noise of a comparison, its figure, and what its pages say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from modwright.core.errors import InvalidInputError
from modwright.report import Stage
from modwright.report.comparison import Comparison, Measured, Row
from modwright.report.comparison_pages import comparison_sentences, write_comparison
from modwright.report.pareto import pareto, pareto_front


def row(name: str, *numbers: float, parameters: int = 1000, windows: int = 3) -> Row:
    """A row with a model of each perplexity."""
    return Row(
        name,
        tuple(
            Measured(
                f"seed {at}",
                Stage(
                    "1 drop",
                    "drop",
                    cost={"parameters": parameters, "stored_bytes": 8, "activation_bytes": 4},
                    measured={"perplexity": {"value": number, "recipe": {"windows": windows}}},
                ),
                seconds=2.0 + at,
            )
            for at, number in enumerate(numbers)
        ),
    )


def column(found: Comparison, name: str = "perplexity") -> Any:
    return next(one for one in found.columns if one.name == name)


def test_a_cell_has_mean_and_standard_deviation() -> None:
    found = Comparison("c", (row("a", 30.0, 32.0, 34.0), row("b", 20.0)), "arm")
    number, cost = column(found), column(found, "parameters")
    assert found.rows[0].mean(number) == 32 and found.rows[0].spread(number) == 2
    assert found.rows[0].cell(number) == "32.00 ± 2.00" and found.rows[1].cell(number) == "20.00"
    assert found.rows[0].cell(cost) == "1,000"
    assert found.rows[0].cell(column(found, "seconds")) == "3.0 s ± 1.0 s"
    assert found.rows[0].mean(column(found, "memory_bytes")) == 12


def test_noise_is_of_the_differences_seed_by_seed() -> None:
    base = row("a", 30.0, 40.0, 50.0)
    found = Comparison("c", (base, row("b", 29.0, 39.1, 48.9), row("c", 20.0, 45.0, 52.0)), "arm")
    number = column(found)
    assert found.rows[1].change(base, number) == "× 0.97"  # 1.0, 0.9, 1.1 below
    assert found.rows[2].change(base, number) == "× 0.97, within noise"  # 10 below, 5 and 2 above
    assert base.change(base, number) == ""


def test_models_that_broke_are_counted_and_go_last() -> None:
    rows = (row("a", 30.0, 31.0), row("b", 10.0, math.inf), row("c", math.nan, math.inf))
    found = Comparison("c", rows, "arm")
    number = column(found)
    assert found.rows[1].cell(number) == "10.00, 1 of 2 not finite"
    assert found.rows[2].cell(number) == "not finite"
    assert [one.name for one in found.ranked(number)] == ["a", "b"]
    plot, _ = pareto(found) or pytest.fail()
    assert "Not drawn, for want of a finite number: c." in plot.caption


def test_rows_that_were_measured_differently_are_named_and_not_compared() -> None:
    found = Comparison("c", (row("a", 30.0), row("b", 20.0, windows=4)))
    assert found.rows[1].change(found.baseline, column(found)) == ""
    assert "perplexity was measured differently (windows)" in comparison_sentences(found)[1]


def test_the_front_has_what_nothing_smaller_beats() -> None:
    points = [("a", 3.0, 7.0), ("b", 1.0, 9.0), ("c", 2.0, 9.0), ("d", 2.0, 8.0), ("e", 4.0, 7.5)]
    assert [name for name, _, _ in pareto_front(points, lower_is_better=True)] == ["b", "d", "a"]
    assert [name for name, _, _ in pareto_front(points, lower_is_better=False)] == ["b"]


def test_the_figure_is_of_size_or_row_by_row() -> None:
    wide = Comparison("c", (row("a", 30.0), row("b", 20.0, parameters=2000)))
    plot, image = pareto(wide) or pytest.fail()
    assert plot.title == "Quality against size" and image.startswith(b"\x89PNG")
    assert "a: 30.00 at 1.00 k parameters" in plot.svg
    flat, _ = pareto(Comparison("c", (row("a", 30.0), row("b", 20.0)))) or pytest.fail()
    assert flat.title == "Perplexity of each model" and "All have 1,000 parameters" in flat.caption
    bare = Row("a", (Measured("", Stage("a", cost={"parameters": 4})),))
    assert pareto(Comparison("c", (bare,))) is None


def test_names_are_unique_and_there_is_a_row() -> None:
    with pytest.raises(InvalidInputError, match="two arms are called 'a'"):
        Comparison("c", (row("a", 1.0), row("a", 2.0)), "arm")
    with pytest.raises(InvalidInputError, match="no model to compare"):
        Comparison("c", ())


def test_pages_show_every_name_as_it_is(tmp_path: Path) -> None:
    odd = "<b>x|y</b>"
    rows = (row("a", 30.0, 31.0), row(odd, 20.0, 20.5, parameters=2000))
    found = Comparison(odd, rows, "arm", kept=(odd, "seed 0"), notes=("One <i>note</i>.",))
    files = write_comparison(found, tmp_path)
    assert set(files) == {f"report.{k}" for k in ("json", "md", "html")} | {
        "figure.svg",
        "figure.png",
    }
    page, text = files["report.html"].read_text(), files["report.md"].read_text()
    assert "<b>x" not in page and "<i>" not in page and "&lt;b&gt;x|y&lt;/b&gt;" in page
    assert "x\\|y" in text and "Kept as the result: " in text
    again = {name: file.read_bytes() for name, file in write_comparison(found, tmp_path).items()}
    assert again == {name: file.read_bytes() for name, file in files.items()}


@pytest.mark.slow
def test_the_page_fits_a_phone(tmp_path: Path) -> None:
    from browsing import open_browser

    long = "a model with a rather long name " * 3
    rows = (row("a", 30.0, 31.0), row(long, 20.0, 20.5, parameters=2000))
    page = write_comparison(Comparison("c", rows, "arm"), tmp_path)["report.html"]
    with open_browser(tmp_path / "profile") as browser:
        for width in (400, 1280):
            browser.resize(width)
            browser.open(page.as_uri())
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("document.querySelectorAll('figure svg').length") == 1
        assert browser.errors == [] and browser.asked == [page.as_uri()] * 2
