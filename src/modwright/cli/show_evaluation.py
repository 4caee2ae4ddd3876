"""What ``modwright eval`` prints: numbers, the original's beside them, and every recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from modwright.core.formatting import difference_text, nats_text, score_text
from modwright.report.tables import flat

if TYPE_CHECKING:
    from modwright.recipes.evaluation import Evaluation
    from modwright.tasks.harness import Score

__all__ = ["evaluation_lines"]


def evaluation_lines(found: Evaluation, sample: Any = None) -> Group:
    """All numbers with their recipes; a table of both models where there are two."""
    lines: list[Any] = []
    if found.against is not None:
        lines.append(_both(found, found.against))
    if found.perplexity is not None:
        number = found.perplexity
        lines += [
            Text(f"perplexity {number.value:.4f} per token over {number.tokens:,} tokens"),
            Text(
                f"  {number.bits_per_byte:.4f} bits per byte; "
                f"{number.word_perplexity:,.1f} per word"
            ),
            _recipe(number.recipe),
        ]
    elif found.agreement is not None:
        lines.append(Text(f"no perplexity: {found.model} is no causal language model"))
    if found.agreement is not None:
        near = found.agreement
        lines += [
            Text(f"agreement over {near.tokens:,} tokens: {', '.join(_near(near))}"),
            _recipe(near.recipe),
        ]
    if found.harness is not None:
        lines += [Text(_said(score)) for score in found.harness.scores]
        lines.append(_recipe(found.harness.recipe))
    if sample is not None:
        lines.append(Text(f"after {sample.prompt!r}: {sample.text.strip()}"))
    return Group(*lines)


def _near(near: Any) -> Iterator[str]:
    if near.kl is not None:
        yield f"KL {nats_text(near.kl)} nats per token"
    if near.top1 is not None:
        yield f"top-1 {100 * near.top1:.1f} %"
    if near.cosine is not None:
        yield f"cosine {score_text(near.cosine)}"


def _said(score: Score) -> str:
    shots = "" if score.num_fewshot is None else f"{score.num_fewshot}-shot, "
    said = f"{score.harness}, version {score.version}, {shots}{score.documents:,} documents"
    return f"{'' if score.asked else '  '}{score.name} {_value(score)} ({said})"


def _value(score: Score) -> str:
    if score.value is None:
        return "not finite"
    error = "" if score.stderr is None else f" ± {score_text(score.stderr)}"
    return f"{score_text(score.value)}{error}"


def _both(found: Evaluation, against: Evaluation) -> Table:
    """One row per number: the original's, the model's, and the change."""
    table = Table()
    table.add_column("")
    for name in (against.model, found.model, "change"):
        table.add_column(name, justify="right", overflow="fold")
    if found.perplexity is not None and against.perplexity is not None:
        one, two = against.perplexity.value, found.perplexity.value
        known = math.isfinite(one) and math.isfinite(two)
        change = f"× {two / one:.3f}" if known else "-"
        table.add_row("perplexity per token", f"{one:.2f}", f"{two:.2f}", change)
    for words in _near(found.agreement):
        name, _, value = words.partition(" ")
        table.add_row(f"{name} to {against.model}", "", value, "")
    earlier = {score.name: score for score in (against.harness.scores if against.harness else ())}
    for score in found.harness.scores if found.harness else ():
        first = earlier[score.name]
        if score.value is None or first.value is None:
            change = "-"
        else:
            change = difference_text(score.value - first.value)
        table.add_row(score.name, _value(first), _value(score), change)
    return table


def _recipe(recipe: Mapping[str, Any]) -> Text:
    return Text("  " + ", ".join(f"{name} {value}" for name, value in flat(recipe).items()))
