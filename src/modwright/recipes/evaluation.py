"""Measures one model, alone or against the one it was made of. Refuses before any work."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from modwright.checkpoint import Checkpoint
from modwright.core.errors import InvalidInputError
from modwright.core.progress import SILENT, Progress
from modwright.recipes.texts import writes_text
from modwright.tasks.agreement import Agreement, agreement, require_comparable
from modwright.tasks.harness import Harness, require_scorable, run_harness
from modwright.tasks.harness_tasks import HarnessTasks
from modwright.tasks.perplexity import Perplexity, PerplexityRecipe, perplexity
from modwright.tasks.vocabulary import require_same_tokenizer

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a model; None is what was not asked for, or what it has not.

    Attributes:
        model: as it was opened.
        perplexity: of causal language models.
        agreement: with the model that it is compared with.
        harness: scores of the tasks.
        against: the same of that other model, measured in the same run.
    """

    model: str
    perplexity: Perplexity | None
    agreement: Agreement | None
    harness: Harness | None
    against: Evaluation | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite stay as they are."""
        return {
            "model": self.model,
            "perplexity": _plain(self.perplexity),
            "agreement": _plain(self.agreement),
            "harness": _plain(self.harness),
            "against": self.against.to_dict() if self.against is not None else None,
        }


def evaluate(
    opened: Checkpoint,
    text: PerplexityRecipe,
    *,
    against: Checkpoint | None = None,
    tasks: HarnessTasks | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Perplexity on a text; with another model also the agreement with it; scores of tasks.

    The other model is measured first, by the same recipes in the same run, so that there is a value
    before to every value after. What cannot be measured is refused before the first forward pass of
    any size; only perplexity is left out without a word where a model has none and there is
    something else to measure.

    Args:
        opened: the model.
        text: windows of text for perplexity and agreement.
        against: the original that the model was made of.
        tasks: of the harness, loaded by `modwright.tasks.harness_tasks.load_harness_tasks`.
        progress: told of every phase.

    Raises:
        InvalidInputError: no tokenizer, two different ones, outputs that cannot be compared.

    Example:
        ``evaluate(open("out/demo"), PerplexityRecipe("lee"), against=open("smollm2-135m"))``
    """
    both = [opened] if against is None else [opened, against]
    for one in both:
        if getattr(one.model, "main_input_name", "") == "pixel_values":
            raise InvalidInputError(
                f"{one.source.name} reads images: it can be measured on no text"
            )
        if one.tokenizer is None:
            raise InvalidInputError(
                f"{one.source.name} brings no tokenizer, so it cannot be measured on text"
            )
        if tasks is not None:
            require_scorable(one.model, one.tokenizer)
    if against is not None:
        names = (against.source.name, opened.source.name)
        require_same_tokenizer(against.tokenizer, opened.tokenizer, names, text.data)
        require_comparable(against.model, opened.model)
        first = _measure(against, text, tasks, progress)
        near = agreement(against.model, opened.model, opened.tokenizer, text, progress)
        near = replace(near, recipe={**near.recipe, "teacher": against.source.name})
        found = _measure(opened, text, tasks, progress)
        return replace(found, agreement=near, against=first)
    found = _measure(opened, text, tasks, progress)
    if found.perplexity is None and found.harness is None:
        perplexity(opened.model, opened.tokenizer, text)  # refuses and says why
    return found


def _measure(
    opened: Checkpoint,
    text: PerplexityRecipe,
    tasks: HarnessTasks | None,
    progress: Progress,
) -> Evaluation:
    model, tokenizer = opened.model, opened.tokenizer
    return Evaluation(
        opened.source.name,
        perplexity(model, tokenizer, text, progress) if writes_text(model, tokenizer) else None,
        None,
        run_harness(model, tokenizer, tasks, progress) if tasks is not None else None,
    )


def _plain(found: Perplexity | Agreement | Harness | None) -> dict[str, Any] | None:
    return None if found is None else {**asdict(found), "finite": found.finite}
