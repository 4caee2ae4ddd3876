"""``modwright eval``: how good a model is, alone or against the one it was made of."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from modwright.cli import parameters as arg
from modwright.cli.console import emit_json, make_progress, open_checkpoint, output

__all__ = ["evaluate"]


def evaluate(
    model: arg.Model,
    against: Annotated[
        str | None,
        Option(
            metavar="MODEL",
            help="The original: measured too, and how far MODEL is from it (KL, top-1).",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        Option(
            metavar="NAME[,NAME]",
            help="Also score tasks of lm-eval; needs pip install 'modwright[text]'.",
        ),
    ] = None,
    include_path: Annotated[
        str | None, Option(metavar="DIR", help="Where task files of your own are.")
    ] = None,
    limit: Annotated[int | None, Option(help="Documents of each task; all by default.")] = None,
    num_fewshot: Annotated[
        int | None, Option(help="Examples before each question; the task's own by default.")
    ] = None,
    data: Annotated[str, Option("--text", "--data", help=f"Text: {arg.TEXTS}.")] = "lee",
    column: Annotated[
        str, Option(help="Column that holds the text, in a file of rows or a dataset.")
    ] = "text",
    windows: Annotated[int, Option(help="Windows of text.")] = 6,
    length: arg.Length = 512,
    stride: Annotated[
        int | None, Option(help="Tokens between starts of windows; by default they do not overlap.")
    ] = None,
    bos: Annotated[
        bool | None,
        Option(
            help="Begin every window with BOS, or with no special token; by default with "
            "those that the tokenizer adds."
        ),
    ] = None,
    batch_size: Annotated[int, Option(help="Windows or requests at once.")] = 1,
    dtype: arg.Dtype = None,
    prompt: Annotated[str | None, Option(help="Also write after this prompt.")] = None,
    new_tokens: Annotated[int, Option(help="Tokens to write.")] = 40,
    json: arg.Json = False,
) -> None:
    """Measure perplexity, agreement with the baseline and lm-eval tasks.

    Each number comes with its recipe. With --against both models are measured, in one run.
    """
    from dataclasses import asdict

    from modwright.calibration import TextData
    from modwright.cli.show import evaluation_lines
    from modwright.core.errors import InvalidInputError
    from modwright.metrics.generation import generate_sample
    from modwright.metrics.lm_eval_tasks import HarnessRecipe, load_harness_tasks
    from modwright.metrics.perplexity import PerplexityRecipe
    from modwright.recipes.quality import evaluate as measure

    asked = None
    of_tasks = (include_path, limit, num_fewshot)
    if tasks:  # they are looked up before a model is opened
        names = tuple(name.strip() for text in tasks for name in text.split(",") if name.strip())
        asked = load_harness_tasks(HarnessRecipe(names, *of_tasks, batch_size))
    for option, value in zip(("--include-path", "--limit", "--num-fewshot"), of_tasks):
        if value is not None and not tasks:
            raise InvalidInputError(f"{option} is about harness tasks; name them with --tasks")
    progress = make_progress()
    opened = open_checkpoint(model, dtype=dtype, progress=progress)
    original = None if against is None else open_checkpoint(against, dtype=dtype, progress=progress)
    source = TextData(data, column=column)
    text = PerplexityRecipe(
        source, windows, length, stride, "auto" if bos is None else bos, batch_size
    )
    found = measure(opened, text, against=original, tasks=asked, progress=progress)
    sample = None
    if prompt is not None:
        sample = generate_sample(opened.model, opened.tokenizer, prompt, max_new_tokens=new_tokens)
    if json:
        emit_json({**found.to_dict(), "sample": asdict(sample) if sample else None})
    else:
        output().print(evaluation_lines(found, sample))
