"""Scores of the evaluation harness (lm-eval), each with the version and the recipe it came from."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field

from modwright.core.digest import sha256_of
from modwright.core.errors import InvalidInputError
from modwright.core.modes import eval_mode
from modwright.core.progress import SILENT, Progress
from modwright.metrics.column import Column, StageLike
from modwright.metrics.forward import dtype_of, require_causal, require_vocabulary
from modwright.metrics.lm_eval_model import counted_model
from modwright.metrics.lm_eval_tasks import (
    SEEDS,
    HarnessRecipe,
    HarnessTasks,
    harness_version,
    load_harness_tasks,
    quiet_harness,
    seeded,
)
from modwright.metrics.lm_eval_words import (
    ScoreTable,
    score_columns,
    score_lines,
    score_sentences,
    score_table,
)
from modwright.metrics.registry import Metric, Subject, metric
from modwright.metrics.windows import AtLeastOne

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Harness", "HarnessRecipe", "LmEvalMetric", "Score", "require_scorable", "run_harness"]

_NO_LM = "the harness scores causal language models"
_RESAMPLES = 1_000


@dataclass(frozen=True)
class Score:
    """One number of the harness.

    Attributes:
        task: the task or group, with its ``version``.
        metric: as the harness calls it: ``acc``, ``word_perplexity``.
        filter: what was done to the answers first; ``none`` for most tasks.
        value: the number as the harness gives it; None where the model's output is not finite.
        stderr: its standard error over the documents; None where the harness has none.
        higher_is_better: None where the task does not say.
        documents: how many were scored.
        num_fewshot: solved examples before each question; None for a group whose tasks differ.
        harness: its version.
        asked: whether it was asked for by name, or else belongs to a group that was.
    """

    task: str
    metric: str
    filter: str
    value: float | None
    stderr: float | None
    higher_is_better: bool | None
    documents: int
    num_fewshot: int | None
    version: str
    harness: str
    asked: bool

    @property
    def name(self) -> str:
        """Task and metric, with the filter where there is one."""
        kept = "" if self.filter == "none" else f" ({self.filter})"
        return f"{self.task} {self.metric}{kept}"


@dataclass(frozen=True)
class Harness:
    """All scores of a run.

    Attributes:
        finite: False where a logit was NaN; then no score has a value.
        recipe: JSON-able: harness, tasks with version, examples and documents, limit, batch size,
            longest input, tokens before a text, how many inputs had to be cut, seeds, dtype, digest
            of all requests.
        seconds: of everything but loading the tasks.
    """

    scores: tuple[Score, ...]
    finite: bool
    recipe: dict[str, Any]
    seconds: float


def run_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: HarnessRecipe | HarnessTasks,
    progress: Progress = SILENT,
) -> Harness:
    """Score a causal language model in memory on tasks of the harness, with the harness's own code.

    The model, its tokenizer and the random numbers are left as they were. The tasks can be loaded
    already, by `load_harness_tasks`.

    Raises:
        InvalidInputError: not a causal language model, or what `load_harness_tasks` refuses.

    Example:
        ``run_harness(model, tokenizer, HarnessRecipe(("lambada_openai",), limit=100)).scores``
    """
    require_scorable(model, tokenizer)
    tasks = asked if isinstance(asked, HarnessTasks) else load_harness_tasks(asked)
    recipe = tasks.recipe
    import lm_eval

    with eval_mode(model), torch.no_grad(), quiet_harness() as heard, seeded(model):
        begin = time.perf_counter()
        lm = counted_model()(model, tokenizer, recipe.batch_size, progress)
        for task in tasks.loaded["tasks"].values():
            task.set_fewshot_seed(seed=SEEDS["fewshot"])
        options: dict[str, Any] = {"limit": recipe.limit, "bootstrap_iters": _RESAMPLES}
        found = lm_eval.evaluate(lm, tasks.loaded, log_samples=False, **options)
        seconds = time.perf_counter() - begin
    return Harness(
        scores=tuple(_scores(found, tasks, lm.finite)),
        finite=lm.finite,
        recipe={
            "harness": harness_version(),
            "tasks": {
                name: {
                    "version": str(found["versions"].get(name)),
                    "num_fewshot": found["n-shot"].get(name),
                    "documents": "{effective} of {original}".format(**found["n-samples"][name]),
                }
                for name in tasks.loaded["tasks"]
            },
            "include_path": recipe.include_path,
            "limit": recipe.limit,
            "num_fewshot": recipe.num_fewshot,
            "batch_size": recipe.batch_size,
            "longest_input": lm.max_length,
            "inputs_cut": heard.truncated,
            "before_a_text": tokenizer.decode([lm.prefix_token_id]),
            "chat_template": False,
            "seeds": dict(SEEDS),
            "resamples": _RESAMPLES,
            "dtype": dtype_of(model),
            "sha256": sha256_of(*_requests(tasks)),
        },
        seconds=seconds,
    )


def require_scorable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Refuse what the harness cannot score, seen from a few tokens."""
    require_vocabulary(model, _NO_LM)
    if tokenizer is None:
        raise InvalidInputError(f"{_NO_LM} on text, and this model has no tokenizer")
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise InvalidInputError(
            "the harness puts the BOS or EOS token before a text, and this tokenizer has neither"
        )
    with eval_mode(model), torch.no_grad():
        require_causal(model, _NO_LM)


def _scores(found: Mapping[str, Any], tasks: HarnessTasks, finite: bool) -> Iterator[Score]:
    shown = set(_asked(found, tasks))
    for name, numbers in found["results"].items():
        for key, value in numbers.items():
            metric, comma, kept = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            yield Score(
                task=name,
                metric=metric,
                filter=kept,
                value=_number(value) if finite else None,
                stderr=_number(numbers.get(f"{metric}_stderr,{kept}")) if finite else None,
                higher_is_better=(found["higher_is_better"].get(name) or {}).get(metric),
                documents=int(numbers.get("sample_len") or numbers.get("sample_count") or 0),
                num_fewshot=shots if isinstance(shots := found["n-shot"].get(name), int) else None,
                version=str(found["versions"].get(name)),
                harness=harness_version(),
                asked=name in shown,
            )


def _asked(found: Mapping[str, Any], tasks: HarnessTasks) -> Iterator[str]:
    """Names whose scores were asked for; a group that has none of its own stands for its tasks."""
    groups = tasks.loaded.get("group_map") or {}
    inside = {child for children in groups.values() for child in children}
    waiting = [
        name for name in found["results"] if name in tasks.recipe.tasks or name not in inside
    ]
    while waiting:
        name = waiting.pop()
        if any("," in key for key in found["results"].get(name, ())):
            yield name
        else:
            waiting += groups.get(name, ())


def _requests(tasks: HarnessTasks) -> Iterator[str]:
    """Two runs whose requests are the same were asked the same."""
    for name, task in tasks.loaded["tasks"].items():
        yield name
        yield from (repr(instance.args) for instance in task.instances)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None  # "N/A", or a metric that is no number
    return float(value) if math.isfinite(value) else None


@metric(
    "lm_eval",
    unit="",
    direction=None,
    title="Harness scores",
    columns=(),
    must_be_finite=(),
    old_key="harness",
    old_field="harness",
    order=60,
    rules=(
        (
            "within the standard error of the difference",
            "a score's change is at most the root of the sum of both squared standard errors",
        ),
    ),
)
@dataclass(frozen=True)
class LmEvalMetric(Metric):
    """Scores of tasks of the evaluation harness (lm-eval); needs the extra ``text``.

    Attributes:
        tasks: names of tasks, groups or tags, or paths of task files.
        include_path: a directory of one's own tasks.
        limit: documents of each task; null takes all.
        num_fewshot: examples before each question; null: as the task says.
        batch_size: requests at once.
    """

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    include_path: str | None = None
    limit: AtLeastOne | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    batch_size: AtLeastOne = 1

    def asked(self) -> HarnessRecipe:
        """The same as what runs the harness takes it."""
        return HarnessRecipe(**{**asdict(self), "tasks": tuple(self.tasks)})

    def digest(self, subject: Subject) -> str:
        require_scorable(subject.model, subject.tokenizer)
        return load_harness_tasks(self.asked()).digest()

    def measure(self, subject: Subject, progress: Progress = SILENT) -> StoredScores:
        found = run_harness(subject.model, subject.tokenizer, self.asked(), progress)
        scores = tuple({"name": score.name, **asdict(score)} for score in found.scores)
        return StoredScores(scores, found.finite, found.recipe, found.seconds)

    @classmethod
    def columns_of(cls, stages: Sequence[StageLike]) -> list[Column]:
        return list(score_columns(stages))

    @classmethod
    def problem_of(cls, values: Mapping[str, Any]) -> str | None:
        scores = values.get("scores") or []
        if not isinstance(scores, list):
            return "scores: must be a list"
        for at, score in enumerate(scores):
            if not isinstance(score, dict) or not isinstance(score.get("name"), str):
                return f"scores.{at}.name: is missing"
            for key in ("value", "stderr"):
                number = score.get(key)
                if isinstance(number, bool) or not isinstance(number, int | float | None):
                    return f"scores.{at}.{key}: must be a number, not {number!r}"
        return None

    @classmethod
    def described(cls, values: Mapping[str, Any]) -> str:
        recipe = values.get("recipe") or {}
        tasks = ", ".join(recipe.get("tasks") or ())
        return f"scores of {recipe.get('harness', 'the harness')} ({tasks})"

    @classmethod
    def sentences(cls, before: StageLike, after: StageLike) -> Iterator[str]:
        return score_sentences(before, after)

    @classmethod
    def step_sentences(cls, before: StageLike, after: StageLike, name: str) -> Iterator[str]:
        return iter(())

    @classmethod
    def table(cls, stages: Sequence[StageLike]) -> ScoreTable | None:
        return score_table(stages)

    @classmethod
    def lines(cls, values: Mapping[str, Any]) -> Iterator[str]:
        return score_lines(values)


@dataclass(frozen=True)
class StoredScores:
    """What a report stores of a run of the harness: each score as a mapping, with its name."""

    scores: tuple[dict[str, Any], ...]
    finite: bool
    recipe: dict[str, Any]
    seconds: float
