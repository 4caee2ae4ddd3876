"""The report as one self-contained HTML page: no network, readable on a phone, printable."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from modwright.core.formatting import bytes_text, seconds_text, share_text
from modwright.report.columns import METRICS, shown_metrics
from modwright.report.data import Report, Stage
from modwright.report.metrics import Metric
from modwright.report.scores import score_table
from modwright.report.serving import HEADS, serving_rows
from modwright.report.summary import RULES, summary_sentences
from modwright.report.tables import (
    flat,
    format_value,
    layer_cell,
    measured,
    other_reasons,
    per_layer,
    recipe_yaml,
    samples,
    subtitle,
)

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["render_html"]

# Metrics that stand at the top of the page, with "not measured" where they are missing.
_HEADLINE = ("parameters", "stored_bytes", "perplexity", "decode_tokens_per_second")
# These stand there where they were measured. The model as it came is what they compare with.
_AGAINST = ("top1", "cosine")


def render_html(report: Report) -> str:
    """The whole page. It depends on the report alone: equal reports give equal pages.

    Example:
        >>> page = render_html(Report("example", stages=[Stage("before")]))
        >>> page.startswith("<!doctype html>"), "<link" in page
        (True, False)
    """
    import jinja2

    from modwright.report.plots import plots

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bytes=bytes_text, seconds=seconds_text, share=share_text, layer=layer_cell, code=_code
    )
    template = environment.get_template("template.html.j2")
    return template.render(
        report=report,
        subtitle=subtitle(report),
        metrics=shown_metrics(report),
        cards=_cards(report),
        summary_sentences=summary_sentences(report),
        rules=RULES,
        plots=plots(report),
        steps=[_step(one, two) for one, two in zip(report.stages, report.stages[1:])],
        samples=samples(report),
        scores=score_table(report),
        serving=serving_rows(report.after),
        serving_heads=HEADS,
        measured=measured(report),
        environment=flat(report.environment),
        model=flat(report.model),
        recipe=recipe_yaml(report),
    )


def _read(name: str) -> str:
    return (resources.files("modwright.report") / name).read_text(encoding="utf-8")


def _code(text: str) -> Markup:
    """Any text, escaped, with what stands between backticks set as code."""
    from markupsafe import Markup, escape

    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    marked = (f"<code>{escape(p)}</code>" if i % 2 else escape(p) for i, p in enumerate(parts))
    return Markup("").join(Markup(part) for part in marked)


def _cards(report: Report) -> list[dict[str, str]]:
    by_name = {metric.name: metric for metric in METRICS}
    headline = (by_name[name] for name in _HEADLINE)
    cards = [
        _card(metric, report)
        for metric in headline
        if metric.has_headline(report.before, report.after)
    ]
    against = (by_name[name] for name in _AGAINST)
    return [*cards, *(_card_against(m, report) for m in against if m in shown_metrics(report))]


def _card(metric: Metric, report: Report) -> dict[str, str]:
    before, after = report.before, report.after
    return {
        "label": metric.label,
        "hint": metric.wanted if metric.group == "quality" else "",
        "before": metric.brief(before),
        "after": "" if before is after else metric.brief(after),
        "change": metric.summary_sentence(before, after),
        "direction": metric.direction(before, after),
    }


def _card_against(metric: Metric, report: Report) -> dict[str, str]:
    return {
        "label": metric.label,
        "hint": "with the model as it came",
        "before": metric.brief(report.after),
        "after": "",
        "change": "",
        "direction": "same",
    }


def _step(before: Stage, stage: Stage) -> dict[str, Any]:
    """What the page says of one step beside the table."""
    layers = per_layer(stage.reasons, len(before.shape))
    return {
        "stage": stage,
        "options": {name: format_value(value) for name, value in stage.options.items()},
        "layers": layers,
        "layer_rows": list(zip(*layers.values())),
        "reasons": other_reasons(stage.reasons, layers),
        "seconds": sum(stage.seconds.values()),
    }
