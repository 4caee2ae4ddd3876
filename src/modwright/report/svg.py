"""From a matplotlib figure to an SVG that can stand inside a page: no date, own ids, page colors.

Colors are named here once. A figure is drawn with the light values; in the SVG each becomes a CSS
variable with that value as its default, so that a page can set others for a dark screen.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from contextlib import AbstractContextManager

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = [
    "BASE",
    "COLORS",
    "GONE",
    "INK",
    "KEPT",
    "LINE",
    "WIDTH",
    "canvas",
    "inline_svg",
    "style",
]

# Blue and vermilion stay apart for every common kind of color blindness, and in gray print.
INK = "#1c2024"
LINE = "#d3d9e0"
BASE = "#8d98a5"
KEPT = "#0072b2"
GONE = "#d55e00"
COLORS = {INK: "ink", LINE: "line", BASE: "base", KEPT: "kept", GONE: "gone"}

# Units of the view box: about the pixels that a 400 px wide screen leaves for a figure, so that a
# font of 12 units is about 12 px there and larger elsewhere.
WIDTH = 360.0

_SVG = "http://www.w3.org/2000/svg"
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
    "axes.edgecolor": BASE,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": BASE,
    "ytick.color": BASE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "hatch.linewidth": 1.2,
    # A name may hold a dollar sign.
    "text.parse_math": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
}


def canvas(height: float) -> Figure:
    """An empty figure of the common width; ``height`` in units of the view box."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def style() -> AbstractContextManager[None]:
    """A context in which figures of a report are drawn and saved, whatever the user's settings."""
    # rc_context does not restore the backend, so it must not be set.
    defaults = {name: v for name, v in matplotlib.rcParamsDefault.items() if name != "backend"}
    return matplotlib.rc_context({**defaults, **_STYLE})


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element that fills its container, with ``description`` as title.

    Args:
        figure: drawn within ``style()``.
        name: distinguishes the ids of several figures on one page.
        description: what a reader who cannot see the figure is told.
    """
    stream = io.StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata=nothing, transparent=True)
    return _cleaned(stream.getvalue(), name, description)


def _cleaned(text: str, name: str, description: str) -> str:
    text = text[text.index("<svg") :]
    for color, variable in COLORS.items():
        text = text.replace(color, f"var(--{variable}, {color})")
    text = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "system-ui, sans-serif", text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    root = ET.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    used = {element.attrib.get(_HREF, "#")[1:] for element in root.iter()}
    used.update(re.findall(rf"url\(#{name}-([^)]+)", text))
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in used:
            element.set("id", f"{name}-{own}")
        if _HREF in element.attrib:
            element.set("href", f"#{name}-{element.attrib.pop(_HREF)[1:]}")
    _set_root(root, name, description)
    ET.register_namespace("", _SVG)
    return ET.tostring(root, encoding="unicode")


def _set_root(root: ET.Element, name: str, description: str) -> None:
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title")
    # What matplotlib says in a style element would hold for the whole page.
    root.set("stroke-linejoin", "round")
    root.set("stroke-linecap", "butt")
    title = ET.Element(f"{{{_SVG}}}title", {"id": f"{name}-title"})
    title.text = description
    root.insert(0, title)
