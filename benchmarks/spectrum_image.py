"""Draws the spectra of errors that tests/acceptance/test_craft_upscaling.py wrote down.

MODWRIGHT_FIGURES=out/craft.jsonl python -m pytest -q tests/acceptance/test_craft_upscaling.py
python benchmarks/spectrum_image.py out/craft.jsonl docs/images/craft-spectrum.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

# figure -> how its line is called and drawn
LINES = {
    "craft-windows-alone": ("windows alone", "#d55e00", "--"),
    "craft-convolutions-alone": ("convolutions alone", "#009e73", "-."),
    "craft-both": ("both", "#0072b2", "-"),
}
BASE = "craft-bicubic"


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Power of each error in rings of frequencies, and the same beside bicubic's."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    base = found[BASE]["spectrum"]
    steps = [(i + 0.5) / len(base) for i in range(len(base))]
    left.plot(steps, base, color="#8d98a5", linestyle=":", label="bicubic")
    for name, (label, color, line) in LINES.items():
        power = found[name]["spectrum"]
        left.plot(steps, power, color=color, linestyle=line, label=label)
        beside = [own / other for own, other in zip(power, base)]
        right.plot(steps, beside, color=color, linestyle=line, label=label)
    left.set_yscale("log")
    left.set_ylabel("power of the error, of 255²")
    right.axhline(1, color="#8d98a5", linestyle=":")
    right.set_ylabel("the same, bicubic's being 1")
    right.set_ylim(0, 2)
    for axes in (left, right):
        axes.set_xlabel("frequency, the finest along an axis being 1")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path)
    parser.add_argument("image", type=Path)
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.figures.read_text().splitlines()]
    draw({line["figure"]: line for line in lines}, options.image)


if __name__ == "__main__":
    main()
