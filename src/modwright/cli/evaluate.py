"""``modwright eval``: how good a model is, alone or against the one it was made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from modwright.cli.console import emit_json, make_progress, output
from modwright.cli.parameters import TEXTS, Dtype, Json, Length, Model

if TYPE_CHECKING:
    from modwright.tasks.harness_tasks import HarnessTasks

__all__ = ["evaluate"]


def evaluate(
    model: Model,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The original: measured too, and how far MODEL is from it (KL, top-1).",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[,NAME]",
            help="Also score tasks of lm-eval; needs pip install 'modwright[text]'.",
        ),
    ] = None,
    include_path: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where task files of your own are.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Documents of each task; all by default.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before each question; the task's own by default.")
    ] = None,
    data: Annotated[str, typer.Option("--text", "--data", help=f"Text: {TEXTS}.")] = "lee",
    column: Annotated[
        str, typer.Option(help="Column that holds the text, in a file of rows or a dataset.")
    ] = "text",
    windows: Annotated[int, typer.Option(help="Windows of text.")] = 6,
    length: Length = 512,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens between starts of windows; by default they do not overlap."),
    ] = None,
    bos: Annotated[
        bool | None,
        typer.Option(
            help="Begin every window with BOS, or with no special token; by default with "
            "those that the tokenizer adds."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Windows or requests at once.")] = 1,
    dtype: Dtype = None,
    prompt: Annotated[str | None, typer.Option(help="Also write after this prompt.")] = None,
    new_tokens: Annotated[int, typer.Option(help="Tokens to write.")] = 40,
    json: Json = False,
) -> None:
    """Measure perplexity, agreement with the original and harness tasks.

    Each number comes with its recipe. With --against both models are measured, in one run.
    """
    from dataclasses import asdict

    from modwright.calibration import TextData
    from modwright.cli.opening import open_checkpoint
    from modwright.cli.show_evaluation import evaluation_lines
    from modwright.recipes.evaluation import evaluate as measure
    from modwright.tasks.generation import generate_sample
    from modwright.tasks.perplexity import PerplexityRecipe

    asked = _tasks(tasks, include_path, limit, num_fewshot, batch_size)
    progress = make_progress()
    original = None
    opened = open_checkpoint(model, dtype=dtype, progress=progress)
    if against is not None:
        original = open_checkpoint(against, dtype=dtype, progress=progress)
    text = PerplexityRecipe(
        TextData(data, column=column),
        windows,
        length,
        stride,
        "auto" if bos is None else bos,
        batch_size,
    )
    found = measure(opened, text, against=original, tasks=asked, progress=progress)
    sample: Any = None
    if prompt is not None:
        sample = generate_sample(opened.model, opened.tokenizer, prompt, max_new_tokens=new_tokens)
    if json:
        emit_json({**found.to_dict(), "sample": asdict(sample) if sample else None})
    else:
        output().print(evaluation_lines(found, sample))


def _tasks(
    given: list[str] | None,
    include_path: str | None,
    limit: int | None,
    num_fewshot: int | None,
    batch_size: int,
) -> HarnessTasks | None:
    """The tasks that are asked for, looked up before a model is opened."""
    from modwright.core.errors import InvalidInputError
    from modwright.tasks.harness_tasks import HarnessRecipe, load_harness_tasks

    names = tuple(name.strip() for text in given or () for name in text.split(",") if name.strip())
    if not given:
        stray = {"--include-path": include_path, "--limit": limit, "--num-fewshot": num_fewshot}
        for option, value in stray.items():
            if value is not None:
                raise InvalidInputError(f"{option} is about harness tasks; name them with --tasks")
        return None
    recipe = HarnessRecipe(names, include_path, limit, num_fewshot, batch_size)
    return load_harness_tasks(recipe)
