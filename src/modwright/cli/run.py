"""``modwright run`` and its rehearsal, and ``modwright train``: what a recipe says is done."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from modwright.cli import parameters as arg
from modwright.cli.console import emit_json, log, make_progress, output

__all__ = ["run", "train"]


def run(
    recipe: arg.Recipe,
    out: arg.OutOrRecipe = None,
    changes: arg.Set = None,
    plugins: arg.Plugins = None,
    device: arg.Device = None,
    dtype: arg.Dtype = None,
    force: arg.Force = False,
    no_check: Annotated[
        bool, Option("--no-check", help="Do not reopen the result in a new process.")
    ] = False,
    dry_run: Annotated[
        bool,
        Option(
            "--dry-run",
            help="Try what the run needs (memory, disk, texts, the save) and write nothing.",
        ),
    ] = False,
    json: arg.Json = False,
) -> None:
    """Run a recipe: plan, apply, verify, measure, save and report.

    A run that was stopped goes on where it was when the same command is given again. Started by
    torchrun or accelerate launch, several processes share the calibration.
    """
    import modwright.recipes.dry_run as rehearsing
    import modwright.recipes.run as running
    from modwright.cli.show import dry_run_lines, show_result
    from modwright.core import distributed
    from modwright.recipes import load_recipe

    with distributed.init_distributed():
        with distributed.fail_together():
            changed = arg.with_options(changes, device=device, dtype=dtype)
            asked = load_recipe(recipe, changed, arg.named_plugins(plugins))
        progress = make_progress()
        if dry_run:
            tried = rehearsing.dry_run(asked, out, force=force, progress=progress, log=log)
            if tried is not None and json:
                emit_json(tried.to_dict())
            elif tried is not None:
                output().print(dry_run_lines(tried))
            return
        result = running.run(
            asked, out, force=force, check=not no_check, progress=progress, log=log
        )
        if not distributed.is_main():
            return
    if json:
        emit_json(result.report.to_dict())
    else:
        show_result(result)


def train(
    recipe: Annotated[
        Path,
        Argument(
            metavar="RECIPE", help="A YAML file that says model, data, objective and settings."
        ),
    ],
    out: arg.OutOrRecipe = None,
    changes: Annotated[
        list[str] | None,
        arg.set_option(
            "Change one value of the recipe: --set settings.epochs=3. Repeat it for more."
        ),
    ] = None,
    plugins: arg.Plugins = None,
    force: arg.Force = False,
    json: arg.Json = False,
) -> None:
    """Train a vision model from a recipe, and save it.

    The smallest recipe has two lines: `model: {name: poolformer_s12}` and
    `data: {images: digits}`.

    model is a named model with fields of its config, or {checkpoint: DIR}. data.images is digits,
    fashion-mnist, or a folder of images. objective is cross_entropy (label_smoothing, mixup,
    cutmix), distillation (teacher: DIR) or another one. settings has epochs, batch_size,
    learning_rate and so on. Unknown keys are refused with a list of the valid ones;
    `modwright schema --train` prints all of them. Text is learned from by a step of `modwright
    run`: `{train: {objective: next_token, data: {text: FILE}}}`.

    DIR gets a checkpoint for transformers' Auto classes, training.json, curves.svg and the recipe
    with every default written out. A training that was stopped, or killed, goes on from its newest
    checkpoint when the same command is given again, to the same weights. Started by torchrun or
    accelerate launch, several processes share the images of each step.
    """
    from modwright.cli.show import show_training
    from modwright.core import distributed
    from modwright.recipes.training import train as run_training
    from modwright.recipes.training_schema import load_training

    with distributed.init_distributed():
        with distributed.fail_together():
            asked = load_training(recipe, changes or (), arg.named_plugins(plugins))
        done = run_training(asked, out, force=force, progress=make_progress(), log=log)
        if not distributed.is_main():
            return
    if json:
        emit_json(dict(done.info))
    else:
        show_training(done)
