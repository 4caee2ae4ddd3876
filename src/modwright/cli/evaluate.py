"""``modwright eval``: how good a model is, alone or against the one it was made of."""

from __future__ import annotations

from typing import Annotated, Any

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
    device: arg.Device = None,
    dtype: arg.Dtype = None,
    images: Annotated[
        str | None,
        Option(
            metavar="FOLDER",
            help="Labeled images, for top-1 and top-5: digits, or a folder with one folder per "
            "class.",
        ),
    ] = None,
    image_size: Annotated[
        int | None, Option(help="Side of the images, in pixels; the model's own by default.")
    ] = None,
    prompt: Annotated[str | None, Option(help="Also write after this prompt.")] = None,
    new_tokens: Annotated[int, Option(help="Tokens to write.")] = 40,
    more: Annotated[
        list[str] | None,
        Option(
            "--metric",
            metavar="NAME",
            help="Also measure this, as in a recipe: NAME, or 'NAME: {OPTION: VALUE}'. Repeat it "
            "for more.",
        ),
    ] = None,
    json: arg.Json = False,
) -> None:
    """Measure how good a model is, alone or beside another one.

    Perplexity or accuracy, with --against both models and the divergence between them, scores of
    tasks, and any other metric. Each number comes with its recipe.
    """
    from modwright.cli.show import evaluation_lines
    from modwright.core.errors import InvalidInputError
    from modwright.metrics.registry import Metric, make_metric
    from modwright.recipes.evaluating import named_metric
    from modwright.recipes.quality import evaluate as measure

    of_tasks = {"include_path": include_path, "limit": limit, "num_fewshot": num_fewshot}
    for name, value in of_tasks.items():
        if value is not None and not (tasks or (images and name == "limit")):
            option = f"--{name.replace('_', '-')}"
            raise InvalidInputError(f"{option} is about harness tasks; name them with --tasks")
    found: list[Metric] = []
    if tasks:
        names = [name.strip() for text in tasks for name in text.split(",") if name.strip()]
        found.append(_harness(names, {**of_tasks, "batch_size": batch_size}))
    of_text = {
        "data": data,
        "column": column,
        "windows": windows,
        "length": length,
        "stride": stride,
        "bos": "auto" if bos is None else bos,
        "batch_size": batch_size,
    }
    options: dict[str, Any] = of_text
    if images is not None:
        options = {"images": images, "image_size": image_size, "batch_size": max(32, batch_size)}
        found.insert(0, make_metric("accuracy", {**options, "limit": limit}))
        options["limit"] = limit
    else:
        found.insert(0, make_metric("perplexity", of_text))
    if against is not None:
        found.append(make_metric("divergence", options))
    if prompt is not None:
        found.append(make_metric("generation", {"prompt": prompt, "max_new_tokens": new_tokens}))
    for text in more or ():
        made = named_metric(text)
        found = [*(one for one in found if one.name != made.name), made]
    found.sort(key=lambda one: (one.order, one.name))
    progress = make_progress()
    where: dict[str, Any] = {"dtype": dtype, "device": device, "progress": progress}
    opened = open_checkpoint(model, **where)
    original = None if against is None else open_checkpoint(against, **where)
    seen = measure(opened, found, against=original, optional=("perplexity",), progress=progress)
    if json:
        emit_json(seen.to_dict())
    else:
        output().print(evaluation_lines(seen))


def _harness(names: list[str], options: dict[str, Any]) -> Any:
    """The metric of lm-eval; its tasks are looked up before a model is opened."""
    from modwright.metrics.lm_eval_tasks import HarnessRecipe, load_harness_tasks
    from modwright.metrics.registry import make_metric

    load_harness_tasks(HarnessRecipe(tuple(names), **options))
    return make_metric("lm_eval", {"tasks": names, **options})
