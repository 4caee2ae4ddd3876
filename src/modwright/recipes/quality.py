"""How good a model is: perplexity, agreement with the original, scores of the harness."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from modwright.checkpoint import Checkpoint
from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError
from modwright.core.progress import SILENT, Progress
from modwright.data.text import TextData, load_text
from modwright.metrics.divergence import (
    Divergence,
    divergence,
    eval_positions_of,
    require_comparable,
)
from modwright.metrics.lm_eval import Harness, HarnessRecipe, require_scorable, run_harness
from modwright.metrics.lm_eval_tasks import HarnessTasks, load_harness_tasks
from modwright.metrics.perplexity import Perplexity, PerplexityRecipe, perplexity
from modwright.metrics.vocabulary import require_same_tokenizer
from modwright.recipes.schema import Data, Evaluate, HarnessTasksOf, PerplexityOf

__all__ = ["TEACHER", "Evaluation", "evaluate", "evaluation_digest", "measure_quality"]
__all__ += ["text_of", "timed", "writes_text"]

TEACHER = "the baseline"


def text_of(asked: Data | PerplexityOf) -> tuple[TextData, dict[str, Any]]:
    """Where a text comes from, and the other fields of its entry in the recipe."""
    fields = asked.model_dump()
    return TextData(*map(fields.pop, ("data", "split", "column", "encoding"))), fields


def writes_text(model: Any, tokenizer: Any) -> bool:
    """Whether perplexity and samples can be had of a model."""
    return tokenizer is not None and bool(getattr(model, "can_generate", lambda: False)())


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Says which part of the recipe a refusal is about."""
    try:
        yield
    except InvalidInputError as error:
        raise InvalidInputError(f"evaluate.{what}: {error}") from error


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Notes how long the block took."""
    start = time.monotonic()
    yield
    seconds[name] = time.monotonic() - start


def evaluation_digest(opened: Checkpoint, asked: Evaluate) -> str | None:
    """Digest of all that quality is measured on; None where nothing is.

    What could not be measured later is refused: a missing text, a task that is unknown.
    """
    model, tokenizer, digests = opened.model, opened.tokenizer, []
    if asked.perplexity is not None and writes_text(model, tokenizer):
        with _named("perplexity"):
            digests.append(sha256_of(load_text(text_of(asked.perplexity)[0])))
    if asked.agreement:
        with _named("agreement"):
            if asked.perplexity is None:
                raise InvalidInputError(
                    "it is measured on the windows of evaluate.perplexity, which is null; give "
                    "that too, or set agreement to false"
                )
            if tokenizer is None:
                raise InvalidInputError(
                    f"it is measured on text, and {opened.source.name} has no tokenizer; give a "
                    "model that has one, or set agreement to false"
                )
            kind = require_comparable(model, model)
            _, read = eval_positions_of(kind, model, tokenizer, _windows(asked.perplexity))
            digests.append(read["sha256"])
    if asked.harness is not None:
        with _named("harness"):
            require_scorable(model, tokenizer)
            digests.append(load_harness_tasks(_tasks(asked.harness)).digest())
    return "+".join(digests) or None


def measure_quality(
    model: Any,
    tokenizer: Any,
    asked: Evaluate,
    progress: Progress,
    teacher: Any = None,
    log: Callable[[str], None] | None = None,
) -> tuple[dict[str, Any], dict[str, float]]:
    """What a stage of the report holds of a model's quality, and the seconds of each measurement.

    Divergence is measured where there is a ``teacher``; all else also on the baseline, in
    the same run. ``log`` hears of each number as soon as it is known.
    """
    log = log or (lambda message: None)
    found: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    if asked.perplexity is not None and writes_text(model, tokenizer):
        with timed("perplexity", seconds), _named("perplexity"):
            quality = perplexity(model, tokenizer, _windows(asked.perplexity), progress)
        found["quality"] = {
            "perplexity": quality.value,
            "finite": quality.finite,
            "recipe": quality.recipe,
        }
        log(f"perplexity {quality.value:.2f}")
    if asked.agreement and asked.perplexity is not None and teacher is not None:
        with timed("agreement", seconds), _named("agreement"):
            near = divergence(teacher, model, tokenizer, _windows(asked.perplexity), progress)
        figures = {"kl": near.kl, "top1": near.top1, "cosine": near.cosine}
        figures = {name: value for name, value in figures.items() if value is not None}
        found["agreement"] = {
            **figures,
            "tokens": near.tokens,
            "finite": near.finite,
            "recipe": {**near.recipe, "teacher": TEACHER},
        }
        log("agreement: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    if asked.harness is not None:
        with timed("harness", seconds), _named("harness"):
            scored = run_harness(model, tokenizer, _tasks(asked.harness), progress)
        found["harness"] = {
            "scores": [{"name": score.name, **asdict(score)} for score in scored.scores],
            "finite": scored.finite,
            "recipe": scored.recipe,
        }
    return found, seconds


def _windows(asked: PerplexityOf) -> PerplexityRecipe:
    text, fields = text_of(asked)
    return PerplexityRecipe(data=text, **fields)


def _tasks(asked: HarnessTasksOf) -> HarnessRecipe:
    return HarnessRecipe(**{**asked.model_dump(), "tasks": tuple(asked.tasks)})


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a model; None is what was not asked for, or what it has not."""

    model: str  # as it was opened
    perplexity: Perplexity | None  # of causal language models
    agreement: Divergence | None  # with the model that it is compared with
    harness: Harness | None
    against: Evaluation | None = None  # the same of that other model

    def to_dict(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite stay as they are."""
        parts = {"perplexity": self.perplexity, "agreement": self.agreement}
        plain = {
            name: None if part is None else {**asdict(part), "finite": part.finite}
            for name, part in {**parts, "harness": self.harness}.items()
        }
        against = None if self.against is None else self.against.to_dict()
        return {"model": self.model, **plain, "against": against}


def evaluate(
    opened: Checkpoint,
    text: PerplexityRecipe,
    *,
    against: Checkpoint | None = None,
    tasks: HarnessTasks | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Perplexity on a text; with another model also the agreement with it; scores of tasks.

    The other model, the original, is measured first, by the same recipes in the same run. What
    cannot be measured is refused before the first forward pass of any size; only perplexity is left
    out without a word where a model has none and there is something else to measure.

    Raises:
        InvalidInputError: no tokenizer, two different ones, outputs that cannot be compared.

    Example:
        ``evaluate(open("out/demo"), PerplexityRecipe("lee"), against=open("smollm2-135m"))``
    """
    for one in [opened] if against is None else [opened, against]:
        if getattr(one.model, "main_input_name", "") == "pixel_values":
            raise InvalidInputError(f"{one.source.name} is a vision model and has no perplexity")
        if one.tokenizer is None:
            raise InvalidInputError(
                f"{one.source.name} has no tokenizer, so it cannot be measured on text"
            )
        if tasks is not None:
            require_scorable(one.model, one.tokenizer)
    first = near = None
    if against is not None:
        names = (against.source.name, opened.source.name)
        require_same_tokenizer(against.tokenizer, opened.tokenizer, names, text.data)
        require_comparable(against.model, opened.model)
        first = _alone(against, text, tasks, progress)
        near = divergence(against.model, opened.model, opened.tokenizer, text, progress)
        near = replace(near, recipe={**near.recipe, "teacher": against.source.name})
    found = _alone(opened, text, tasks, progress)
    if against is None and found.perplexity is None and found.harness is None:
        perplexity(opened.model, opened.tokenizer, text)  # refuses and says why
    return replace(found, agreement=near, against=first)


def _alone(
    opened: Checkpoint, text: PerplexityRecipe, tasks: HarnessTasks | None, progress: Progress
) -> Evaluation:
    model, tokenizer = opened.model, opened.tokenizer
    quality = harness = None
    if writes_text(model, tokenizer):
        quality = perplexity(model, tokenizer, text, progress)
    if tasks is not None:
        harness = run_harness(model, tokenizer, tasks, progress)
    return Evaluation(opened.source.name, quality, None, harness)
