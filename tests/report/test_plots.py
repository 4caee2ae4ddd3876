from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib
import pytest
from matplotlib.transforms import Bbox

from modwright.report import Report, Stage
from modwright.report.plots import (
    curve,
    label_box,
    place_labels,
    plots,
    scores,
    shapes,
    sparsity,
)

from .small import report, stage

SVG = "{http://www.w3.org/2000/svg}"


def block(*, attention: bool = True, mlp: int | None = 64, v: int = 8) -> dict[str, object]:
    heads = {"heads": 4, "kv_heads": 2, "qk": 8, "v": v}
    return {"attention": heads if attention else None, "mlp": mlp}


def parse(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in parse(svg).iter(f"{SVG}text")]


def title(svg: str) -> str:
    return parse(svg).findtext(f"{SVG}title") or ""


def test_the_example_has_every_figure(example: Report) -> None:
    assert [plot.title for plot in plots(example)] == [
        "Quality against size",
        "Widths of every layer",
        "Scores of step 1 llm_drop",
        "Scores of step 2 modegpt",
        "Share removed per layer, step 2 modegpt",
    ]


def test_figures_can_stand_together_in_one_page(example: Report) -> None:
    found = [plot.svg for plot in plots(example)]
    ids = [e.attrib["id"] for svg in found for e in parse(svg).iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids))
    used = {name for svg in found for name in re.findall(r"(?:url\(|href=\")#([^\")]+)", svg)}
    assert used and used <= set(ids)
    for svg in found:
        root = parse(svg)
        assert root.attrib["role"] == "img" and "viewBox" in root.attrib
        assert not {"width", "height"} & set(root.attrib)
        assert root.attrib["aria-labelledby"] in ids
        assert not list(root.iter(f"{SVG}style"))
        assert "metadata" not in svg and "matplotlib" not in svg.lower()


def test_letters_are_large_enough_at_400_px(example: Report) -> None:
    # 400 px leave 372 for a figure beside the page's margins.
    for plot in plots(example):
        scale = 372 / float(parse(plot.svg).attrib["viewBox"].split()[2])
        sizes = [
            float(size) for size in re.findall(r"font(?:-size)?: (?:\w+ )*([\d.]+)px", plot.svg)
        ]
        assert sizes and min(sizes) * scale >= 11


def test_colors_follow_the_page(example: Report) -> None:
    for plot in plots(example):
        bare = re.sub(r"var\(--\w+, #[0-9a-f]{6}\)", "", plot.svg)
        assert not re.search(r"(fill|stroke): #(?!fff)", bare)


def test_the_curve_labels_every_point_and_tells_it(example: Report) -> None:
    plot = curve(example)
    assert plot is not None
    for words in ("before: 30.92", "1 llm_drop: 36.56", "2 modegpt: 44.87"):
        assert words in texts(plot.svg)
        assert words in title(plot.svg)
    assert "log scale" not in " ".join(texts(plot.svg))


def test_the_curve_is_logarithmic_over_more_than_a_decade() -> None:
    plot = curve(report(stage(), stage("1 x", perplexity=3000.0, parameters=9e5)))
    assert plot is not None
    assert "log scale" in " ".join(texts(plot.svg))


def test_a_stage_without_a_number_is_not_drawn_and_named() -> None:
    stages = [stage(), stage("1 x", perplexity=33.0), stage("2 y", perplexity=float("inf"))]
    plot = curve(report(*stages))
    assert plot is not None
    assert "Not drawn" in plot.caption and "2 y" in plot.caption
    assert not any("2 y" in text for text in texts(plot.svg))
    assert curve(report(stages[0], stages[2])) is None


def test_names_are_drawn_as_they_are() -> None:
    name = "1 <b>&$x^2$_{"
    svg = curve(report(stage(), stage(name, parameters=9e5)))
    assert svg is not None
    assert f"{name}: 30.00" in texts(svg.svg)


def test_shapes_tell_widths_and_what_is_gone() -> None:
    before = Stage("before", shape=[block()] * 3, source_blocks=[0, 1, 2])
    after = Stage(
        "1 x", "x", shape=[block(attention=False), block(mlp=32, v=4)], source_blocks=[0, 2]
    )
    plot = shapes(before, after)
    assert plot is not None
    # Per block 4 x 8 queries, 2 x 8 keys, 2 x 8 (then 2 x 4) values.
    assert "192 before, 56 after; removed in layers 0, 1" in title(plot.svg)
    assert "192 before, 96 after; removed in layers 1" in title(plot.svg)
    assert "keep the numbers" in plot.caption


@pytest.mark.parametrize("sources", [[0, 0, 1], [1, 0], [0, None, 1]])
def test_grown_or_moved_blocks_are_drawn_by_their_own_position(sources: list[int | None]) -> None:
    before = Stage("before", shape=[block(), block()])
    after = Stage("1 x", "x", shape=[block()] * len(sources), source_blocks=sources)
    plot = shapes(before, after)
    assert plot is not None and "own position" in plot.caption


def test_shapes_without_attention_or_mlp_can_be_drawn() -> None:
    before = Stage("before", shape=[block(attention=False), block(attention=False, mlp=None)])
    assert shapes(before, Stage("1 x", "x", shape=[block(attention=False, mlp=None)] * 2))
    assert shapes(before, before) is None
    assert shapes(Stage("before"), Stage("1 x", "x")) is None


def test_scores_tell_values_and_removed_layers() -> None:
    reasons = {
        "meaning": "High means redundant.",
        "scores": {"attention": [0.9, None, 0.95], "mlp": [-0.5, 0.2, 0.4]},
        "removed": {"attention": [2]},
    }
    plot = scores(Stage("1 x", "x", reasons=reasons), "scores-1")
    assert plot is not None
    assert "attention: 0.9, none, 0.95; removed: 2" in title(plot.svg)
    assert "mlp: -0.5, 0.2, 0.4; removed: none" in title(plot.svg)
    assert plot.caption.startswith("High means redundant. ")
    assert "does not start at 0" in plot.caption
    assert "url(#scores-1-" in plot.svg, "the removed layer is hatched"


@pytest.mark.parametrize(
    "given",
    [{}, {"scores": None}, {"scores": [1.0]}, {"scores": {"mlp": []}}, {"scores": {"mlp": [None]}}],
)
def test_no_scores_no_figure(given: dict[str, object]) -> None:
    assert scores(Stage("1 x", "x", reasons=given), "s") is None


def test_equal_and_single_scores_can_be_drawn() -> None:
    assert scores(Stage("1 x", "x", reasons={"scores": {"block": [0.5, 0.5]}}), "s")
    assert scores(Stage("1 x", "x", reasons={"scores": {"block": [0.0]}}), "s")


def test_sparsity_is_told_in_percent() -> None:
    plot = sparsity(Stage("1 x", "x", reasons={"sparsity": [0.1, 0.25, None]}), "s")
    assert plot is not None and "10.0 %, 25.0 %, none" in title(plot.svg)
    assert sparsity(Stage("1 x", "x", reasons={"sparsity": 0.2}), "s") is None


def test_drawing_twice_gives_the_same_and_leaves_settings_alone(example: Report) -> None:
    before = dict(matplotlib.rcParams)
    first = [plot.svg for plot in plots(example)]
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "figure.dpi": 300}):
        assert [plot.svg for plot in plots(example)] == first


def test_labels_of_equal_points_do_not_overlap() -> None:
    points, labels = [(100.0, 100.0)] * 4, ["one", "two", "three", "four"]
    spots = place_labels(points, labels, Bbox.from_extents(0, 0, 200, 200))
    boxes = [label_box((100.0, 100.0), spot, label) for spot, label in zip(spots, labels)]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_labels_stay_inside() -> None:
    frame = Bbox.from_extents(0, 0, 200, 200)
    for x, y in [(2.0, 2.0), (198.0, 198.0), (2.0, 198.0), (198.0, 2.0)]:
        (spot,) = place_labels([(x, y)], ["a longer label"], frame)
        box = label_box((x, y), spot, "a longer label")
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1


def test_many_stages_and_layers_can_be_drawn() -> None:
    shape = [block() for _ in range(96)]
    stages = [replace(stage(), shape=shape)]
    for i in range(1, 12):
        stages.append(
            replace(stage(f"{i} x", perplexity=30.0 + i, parameters=1e6 - i), shape=shape)
        )
    assert len(plots(report(*stages))) == 2
