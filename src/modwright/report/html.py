"""The report as one self-contained HTML page: no network, readable on a phone, printable."""

from __future__ import annotations

from modwright.report.data import Report
from modwright.report.document import sections, subtitle

__all__ = ["render_html"]


def render_html(report: Report) -> str:
    """The whole page. It depends on the report alone: equal reports give equal pages.

    Example:
        >>> from modwright.report import Stage
        >>> page = render_html(Report("example", stages=[Stage("before")]))
        >>> page.startswith("<!doctype html>"), "<link" in page
        (True, False)
    """
    import jinja2

    from modwright.report.plots import plots

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("modwright.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html.j2").render(
        title=report.title, subtitle=subtitle(report), sections=sections(report, plots(report))
    )
