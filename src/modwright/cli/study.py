"""``modwright study`` and ``modwright compare``: models in one table, with one figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from modwright.cli import parameters as arg
from modwright.cli.console import emit_json, log, make_progress, output

__all__ = ["compare", "study"]


def study(
    name: Annotated[
        str, Argument(metavar="NAME|FILE", help="A registered study, or a YAML file that says one.")
    ],
    out: arg.Out,
    changes: Annotated[
        list[str] | None,
        arg.set_option("Change one value of the study: --set seeds=[0,1]. Repeat it for more."),
    ] = None,
    plugins: arg.Plugins = None,
    workers: Annotated[
        int | None, Option(min=1, help="Processes that run cells; else those of the study.")
    ] = None,
    force: Annotated[
        bool, Option("--force", help="Run all cells anew where the study stands.")
    ] = False,
    json: arg.Json = False,
) -> None:
    """Run a recipe with several arms and seeds, and put them in one table.

    A study has `recipe` (a recipe, or its file), `arms` and `seeds`. Arms are
    `{NAME: {steps.0.n: 2}}`, values for dotted keys of the recipe, or `{steps.0.n: [2, 4, 6]}`, a
    sweep. `workers: 2` runs two cells at once, `keep: {metric: perplexity}` copies the best to
    DIR/best. Every cell is a checkpoint with its report in DIR/cells/ARM/seed-N.

    DIR gets report.html, report.md, report.json and figure.png. A study that was stopped goes on
    when the same command is given again; finished cells are not run again.
    """
    from modwright.recipes.study import load_study
    from modwright.recipes.study_run import run_study

    asked = load_study(name, changes or (), arg.named_plugins(plugins))
    done = run_study(asked, out, force=force, workers=workers, progress=make_progress(), log=log)
    _show(done.comparison, json)
    log(f"written: {done.output}/report.html" + (f", {done.kept}" if done.kept else ""))


def compare(
    models: Annotated[
        list[str], Argument(metavar="MODEL...", help="Directories, packaged names, hub ids.")
    ],
    out: Annotated[
        Path | None, arg.to_output("DIR", "Directory for the report and its figure.")
    ] = None,
    baseline: Annotated[
        str | None,
        Option(metavar="MODEL", help="The one that the others are compared with; the first."),
    ] = None,
    more: Annotated[
        list[str] | None,
        Option(
            "--metric",
            metavar="NAME",
            help="Measure this of all models, as in a recipe: NAME, or 'NAME: {OPTION: VALUE}'; "
            "without it their reports are read. Repeat it for more.",
        ),
    ] = None,
    device: arg.Device = None,
    dtype: arg.Dtype = None,
    force: arg.Force = False,
    json: arg.Json = False,
) -> None:
    """Put finished models in one table against one baseline.

    Results of `modwright run` have their numbers in their reports. A model without one is measured
    as the first report says.
    """
    from modwright.core.files import require_new_directory, whole_directory
    from modwright.recipes.compare import compare as compare_models
    from modwright.recipes.evaluating import named_metric
    from modwright.report.comparison_pages import write_comparison

    if out is not None:
        require_new_directory(out, force)
    metrics = [named_metric(text) for text in more or ()]
    where: dict[str, Any] = {"dtype": dtype, "device": device, "progress": make_progress()}
    found = compare_models(models, baseline, metrics, log=log, **where)
    if out is not None:
        with whole_directory(out, force=force, keep=tuple(map(Path, models))) as folder:
            write_comparison(found, folder)
        log(f"written: {out}/report.html")
    _show(found, json)


def _show(comparison: Any, json: bool) -> None:
    """The table and its sentences, or all as JSON."""
    from modwright.cli.show import text_table
    from modwright.report.comparison_pages import comparison_sentences, comparison_table

    if json:
        emit_json(comparison.to_dict())
        return
    made = comparison_table(comparison)
    table = text_table(comparison.title, made.heads[:1], made.heads[1:], overflow="fold")
    for row in made.rows:
        table.add_row(*(cell.text for cell in row))
    output().print(table)
    for sentence in comparison_sentences(comparison):
        output().print(f"- {sentence}")
