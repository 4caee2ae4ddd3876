"""Perplexity on a text of another origin than the first, and than what a model learns from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modwright.core.errors import InvalidInputError
from modwright.core.progress import SILENT, Progress
from modwright.metrics.column import Column, StageLike
from modwright.metrics.perplexity import Perplexity, perplexity, why_no_perplexity
from modwright.metrics.registry import Subject, metric
from modwright.metrics.windows import WindowOptions

__all__ = ["SecondTextMetric"]

_LABEL = "Perplexity on a second text"


@metric(
    "second_text",
    unit="per token",
    direction="lower",
    title=_LABEL,
    by_default=True,
    of_text=True,
    defaults_from="perplexity",
    own_options=("data", "split", "column", "encoding"),
    order=25,
    columns=(
        Column(
            "second_text",
            "second_text",
            _LABEL,
            key="value",
            headline="measured",
            by_window="nll",
            meaning="The same on a text of another origin. A model that was cut or healed by texts "
            "like the first one does better there than elsewhere.",
        ),
    ),
)
@dataclass(frozen=True)
class SecondTextMetric(WindowOptions):
    """Perplexity of a causal language model on a second text, of another origin.

    Measured wherever perplexity is, on as many windows, unless a recipe says ``second_text: null``.
    """

    data: str | Mapping[str, Any] = "sklearn-descr"

    def unsupported(self, subject: Subject) -> str | None:
        if (reason := why_no_perplexity(subject)) is not None:
            return reason
        try:  # what nobody asked for may not stop a run
            self.digest(subject)
        except InvalidInputError as error:
            return f"cannot be measured: {error}"
        return None

    def measure(self, subject: Subject, progress: Progress = SILENT) -> Perplexity:
        return perplexity(subject.model, subject.tokenizer, self.text_windows(), progress)

    @classmethod
    def step_sentences(cls, before: StageLike, after: StageLike, name: str) -> Iterator[str]:
        return iter(())  # the table has each step
