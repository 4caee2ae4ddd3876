"""Measures how good a model is: perplexity, agreement with the original, scores of the harness.

What could not be measured later is refused before any work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from modwright.calibration.text import load_text
from modwright.checkpoint import Checkpoint
from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError
from modwright.core.progress import Progress
from modwright.recipes.schema import Evaluate, HarnessTasksOf, PerplexityOf
from modwright.recipes.texts import text_of, writes_text
from modwright.tasks.agreement import agreement, eval_positions_of, require_comparable
from modwright.tasks.harness import HarnessRecipe, require_scorable, run_harness
from modwright.tasks.harness_tasks import load_harness_tasks
from modwright.tasks.perplexity import PerplexityRecipe, perplexity

__all__ = ["TEACHER", "evaluation_digest", "measure_quality"]

TEACHER = "the model as it came"


def evaluation_digest(opened: Checkpoint, evaluate: Evaluate) -> str | None:
    """Digest of all that quality is measured on; None where nothing is.

    Raises:
        InvalidInputError: a text that cannot be read or is too short, a model that has no such
            measure, a task that is unknown or whose data is not here.
    """
    checks = (_check_text, _check_agreement, _check_harness)
    info = [check(opened, evaluate) for check in checks]
    return "+".join(digest for digest in info if digest is not None) or None


def _check_text(opened: Checkpoint, evaluate: Evaluate) -> str | None:
    if evaluate.perplexity is None or not writes_text(opened.model, opened.tokenizer):
        return None
    with _named("perplexity"):
        text = load_text(text_of(evaluate.perplexity)[0])
    return sha256_of(text)


def _check_agreement(opened: Checkpoint, evaluate: Evaluate) -> str | None:
    if not evaluate.agreement:
        return None
    with _named("agreement"):
        if evaluate.perplexity is None:
            raise InvalidInputError(
                "it is measured on the windows of evaluate.perplexity, which is null; give that "
                "too, or set agreement to false"
            )
        if opened.tokenizer is None:
            raise InvalidInputError(
                f"it is measured on text, and {opened.source.name} brings no tokenizer; give a "
                "model that has one, or set agreement to false"
            )
        kind = require_comparable(opened.model, opened.model)
        windows = _windows(evaluate.perplexity)
        _, recipe = eval_positions_of(kind, opened.model, opened.tokenizer, windows)
    digest: str = recipe["sha256"]
    return digest


def _check_harness(opened: Checkpoint, evaluate: Evaluate) -> str | None:
    if evaluate.harness is None:
        return None
    with _named("harness"):
        require_scorable(opened.model, opened.tokenizer)
        return load_harness_tasks(_tasks(evaluate.harness)).digest()


def measure_quality(
    model: Any,
    tokenizer: Any,
    evaluate: Evaluate,
    progress: Progress,
    teacher: Any = None,
    log: Callable[[str], None] | None = None,
) -> tuple[dict[str, Any], dict[str, float]]:
    """What a stage of the report holds of a model's quality, and the seconds of each measurement.

    Agreement is measured where there is a ``teacher``; all else also on the model as it came, in
    the same run. ``log`` hears of each number as soon as it is known.
    """
    log = log or (lambda message: None)
    found: dict[str, Any] = {}
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.monotonic()
        with _named(name):
            yield
        seconds[name] = time.monotonic() - start

    if evaluate.perplexity is not None and writes_text(model, tokenizer):
        with timed("perplexity"):
            quality = perplexity(model, tokenizer, _windows(evaluate.perplexity), progress)
        found["quality"] = {
            "perplexity": quality.value,
            "finite": quality.finite,
            "recipe": quality.recipe,
        }
        log(f"perplexity {quality.value:.2f}")
    if evaluate.agreement and evaluate.perplexity is not None and teacher is not None:
        with timed("agreement"):
            near = agreement(teacher, model, tokenizer, _windows(evaluate.perplexity), progress)
        figures = {"kl": near.kl, "top1": near.top1, "cosine": near.cosine}
        found["agreement"] = {
            **{name: value for name, value in figures.items() if value is not None},
            "tokens": near.tokens,
            "finite": near.finite,
            "recipe": {**near.recipe, "teacher": TEACHER},
        }
        info = (f"{name} {value:.4f}" for name, value in figures.items() if value is not None)
        log(f"agreement: {', '.join(info)}")
    if evaluate.harness is not None:
        with timed("harness"):
            scored = run_harness(model, tokenizer, _tasks(evaluate.harness), progress)
        found["harness"] = {
            "scores": [{"name": score.name, **asdict(score)} for score in scored.scores],
            "finite": scored.finite,
            "recipe": scored.recipe,
        }
    return found, seconds


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Says which part of the recipe a refusal is about."""
    try:
        yield
    except InvalidInputError as error:
        raise InvalidInputError(f"evaluate.{what}: {error}") from error


def _windows(asked: PerplexityOf) -> PerplexityRecipe:
    text, fields = text_of(asked)
    return PerplexityRecipe(data=text, **fields)


def _tasks(asked: HarnessTasksOf) -> HarnessRecipe:
    fields = asked.model_dump()
    return HarnessRecipe(tasks=tuple(fields.pop("tasks")), **fields)
