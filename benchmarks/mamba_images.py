"""Draws the images of docs/papers/mamba.md from lines that benchmarks and acceptance tests wrote.

python benchmarks/scan_speed.py --repeats 7 --threads 1 --out out/mamba.jsonl
python benchmarks/scan_speed.py --memory --out out/mamba.jsonl
python benchmarks/state_decode.py --repeats 50 --threads 1 --out out/mamba.jsonl
MODWRIGHT_FIGURES=out/mamba.jsonl python -m pytest -q tests/acceptance/test_mamba.py
python benchmarks/mamba_images.py out/mamba.jsonl docs/images

An image whose lines are not there is left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

Lines = list[dict[str, Any]]
Points = dict[float, float]

# Who -> color and line.
STYLES = {
    "modwright": ("#0072b2", "-"),
    "transformers": ("#d55e00", "--"),
    "mambapy": ("#009e73", "-."),
    "Mamba": ("#0072b2", "-"),
    "Mamba-2": ("#56b4e9", "-."),
    "attention": ("#d55e00", "--"),
    "mamba1": ("#0072b2", "-"),
    "mamba2": ("#56b4e9", "-."),
    "mamba1, frozen": ("#8d98a5", ":"),
}


def chosen(lines: Lines, key: str, x: str, y: str, **wanted: Any) -> dict[str, Points]:
    """Who -> points (x, y), of the lines with the values that are wanted; later lines count."""
    found: dict[str, Points] = {}
    for line in lines:
        if all(line.get(name) == value for name, value in wanted.items()):
            found.setdefault(line[key], {})[line[x]] = line[y]
    return found


class Panel(NamedTuple):
    """Lines of one pair of axes."""

    found: dict[str, Points]
    title: str
    x: str
    y: str
    logarithmic: bool = True


def plot(axes: Any, panel: Panel) -> None:
    """A line for each of those who were measured, over powers of two."""
    for who, points in panel.found.items():
        color, line = STYLES[who]
        ends = zip(*sorted(points.items()))
        axes.plot(*ends, color=color, linestyle=line, marker="o", markersize=3, label=who)
    axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
    axes.set_xscale("log", base=2)
    if panel.logarithmic:
        axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def scan(lines: Lines) -> list[Panel]:
    """Milliseconds of the scans, and memory, against the length."""
    of_scan = {"figure": "scan", "scan": "Mamba"}
    times = [
        Panel(chosen(lines, "by", "length", "ms", **of_scan, way=way), title, "tokens", "ms")
        for way, title in (("forward", "forward"), ("and backward", "forward and backward"))
    ]
    held = chosen(lines, "by", "length", "mib", figure="memory")
    return [*times, Panel(held, "held by forward and backward", "tokens", "MiB")]


def decode(lines: Lines) -> list[Panel]:
    """Milliseconds of a token, and bytes of the cache, against the context."""
    times, sizes = (
        chosen(lines, "model", "context", value, figure="decode") for value in ("ms", "bytes")
    )
    sizes = {who: {n: size / 1e6 for n, size in of.items()} for who, of in sizes.items()}
    before = "tokens before it"
    return [Panel(times, "one more token", before, "ms"), Panel(sizes, "cache", before, "MB")]


def induction(lines: Lines) -> list[Panel]:
    """Accuracy of induction heads against the length."""
    start = "mamba-induction-"
    found = {
        line["figure"].removeprefix(start): {int(n): y for n, y in line["mean"].items()}
        for line in lines
        if line["figure"].startswith(start)
    }
    return [Panel(found, "induction heads, trained at 64", "tokens", "% right", False)]


IMAGES = {"mamba-scan": scan, "mamba-decode": decode, "mamba-induction": induction}


def draw(lines: Lines, folder: Path) -> None:
    """Writes the images for which there are lines."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    for name, parts in IMAGES.items():
        panels = [panel for panel in parts(lines) if panel.found]
        if not panels:
            continue
        size = (4.4 * len(panels), 3.6)
        figure, axes = pyplot.subplots(
            1, len(panels), figsize=size, layout="constrained", squeeze=False
        )
        for panel, place in zip(panels, axes[0]):
            plot(place, panel)
        figure.savefig(folder / f"{name}.png", dpi=110)
        print(folder / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    draw([json.loads(line) for line in options.figures.read_text().splitlines()], options.folder)


if __name__ == "__main__":
    main()
