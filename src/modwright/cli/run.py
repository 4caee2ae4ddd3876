"""``modwright run RECIPE``, and its rehearsal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modwright.cli.console import emit_json, log, make_progress, output
from modwright.cli.parameters import Force, Json, Recipe, Set

__all__ = ["run"]


def run(
    recipe: Recipe,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Directory to write; else the recipe's `output`."
        ),
    ] = None,
    changes: Set = None,
    force: Force = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not reopen the result in a new process.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Try what the run needs (memory, disk, texts, the save) and write nothing.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Run a recipe: plan, apply, verify, measure, save and report.

    A run that was stopped goes on where it was when the same command is given again. Started by
    torchrun or accelerate launch, several processes share the calibration.
    """
    import modwright.recipes.rehearsal as rehearsing
    import modwright.recipes.run as running
    from modwright.cli.show import rehearsal_lines, show_result
    from modwright.core import distributed
    from modwright.recipes import load_recipe

    with distributed.init_distributed():
        with distributed.fail_together():
            asked = load_recipe(recipe, changes or ())
        progress = make_progress()
        if dry_run:
            tried = rehearsing.dry_run(asked, out, force=force, progress=progress, log=log)
            if tried is not None and json:
                emit_json(tried.to_dict())
            elif tried is not None:
                output().print(rehearsal_lines(tried))
            return
        result = running.run(
            asked, out, force=force, check=not no_check, progress=progress, log=log
        )
        if not distributed.is_main():
            return
    if json:
        emit_json(result.report.to_dict())
    else:
        show_result(output(), result)
