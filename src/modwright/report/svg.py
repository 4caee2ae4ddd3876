"""From a matplotlib figure to an SVG that can stand inside a page: no date, own ids, page colors.

Colors are named here once. A figure is drawn with the light values; in the SVG each becomes a CSS
variable with that value as its default, so that a page can set others for a dark screen.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["BASE", "GONE", "INK", "KEPT", "LINE", "WIDTH", "canvas", "inline_svg", "style"]

# Blue and vermilion stay apart for every common kind of color blindness, and in gray print.
INK = "#1c2024"
LINE = "#d3d9e0"
BASE = "#8d98a5"
KEPT = "#0072b2"
GONE = "#d55e00"
_VARIABLES = {INK: "ink", LINE: "line", BASE: "base", KEPT: "kept", GONE: "gone"}

# Units of the view box: about the pixels that a 400 px wide screen leaves for a figure, so that a
# font of 12 units is about 12 px there and larger elsewhere.
WIDTH = 360.0

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_STYLE = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 12,
    "axes.labelsize": 12,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), BASE),
    **dict.fromkeys(("axes.labelcolor", "axes.titlecolor", "text.color"), INK),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), INK),
    "grid.color": LINE,
    "hatch.linewidth": 1.2,
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
}


def canvas(height: float) -> Figure:
    """An empty figure of the common width; ``height`` in units of the view box."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def style() -> Any:
    """A context, or a decorator: figures are drawn and saved so, whatever the user's settings."""
    # rc_context does not restore the backend, so it must not be set.
    defaults = {name: v for name, v in matplotlib.rcParamsDefault.items() if name != "backend"}
    return matplotlib.rc_context({**defaults, **_STYLE})


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """A figure drawn within ``style()`` as an ``<svg>`` element that fills its container.

    Args:
        name: distinguishes the ids of several figures on one page.
        description: what a reader who cannot see the figure is told, in its title.
    """
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True)
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace("url(#", f"url(#{name}-")
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var(--{variable}, {color})")
    root = ET.fromstring(re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "system-ui, sans-serif", text))
    used = set(re.findall(r"url\(#([^)]+)", text))
    for element in list(root.iter()):
        for child in list(element):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                element.remove(child)
        if _HREF in element.attrib:
            target = f"{name}-{element.attrib.pop(_HREF)[1:]}"
            element.set("href", f"#{target}")
            used.add(target)
    for element in root.iter():
        own = f"{name}-{element.attrib.pop('id', '')}"
        if own in used:
            element.set("id", own)
    for attribute in ("width", "height", "version"):
        del root.attrib[attribute]
    # What matplotlib says in a style element would hold for the whole page.
    root.attrib.update({"stroke-linejoin": "round", "stroke-linecap": "butt", "role": "img"})
    root.set("aria-labelledby", f"{name}-title")
    title = ET.Element(f"{_SVG}title", {"id": f"{name}-title"})
    title.text = description
    root.insert(0, title)
    ET.register_namespace("", _SVG[1:-1])
    return ET.tostring(root, encoding="unicode")
