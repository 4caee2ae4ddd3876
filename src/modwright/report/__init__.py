"""The before/after report: plain data in; JSON, Markdown, one HTML page and a model card out."""

from __future__ import annotations

from modwright.report.card import model_card
from modwright.report.data import Report, Stage
from modwright.report.pages import render_html, render_markdown
from modwright.report.summary import summary_sentences
from modwright.report.writing import read_report, write_report

__all__ = [
    "Report",
    "Stage",
    "model_card",
    "read_report",
    "render_html",
    "render_markdown",
    "summary_sentences",
    "write_report",
]
