"""``modwright train RECIPE``: learns weights as a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modwright.cli.console import emit_json, log, make_progress, output
from modwright.cli.parameters import Force, Json

__all__ = ["train"]


def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE", help="A YAML file that says model, data, objective and settings."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Directory to write; else the recipe's `output`."
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one value of the recipe: --set settings.epochs=3. Repeat it for more.",
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Train a model of images from a recipe, and save it.

    The least recipe is two lines: `model: {name: poolformer_s12}` and `data: {pictures: digits}`.

    model is a named model with fields of its config, or {checkpoint: DIR}. data.pictures is digits,
    idx (the four files of MNIST or Fashion-MNIST) or folder (one folder per class). objective.loss
    is cross_entropy (label_smoothing, mixup, cutmix) or distillation (teacher: DIR). settings has
    epochs, batch_size, learning_rate and so on. A key that is not known is answered with those that
    are; `modwright schema --train` prints all of them.

    DIR gets a checkpoint for transformers' Auto classes, training.json, curves.svg and the recipe
    with every default written out. A training that was stopped, or killed, goes on from its newest
    checkpoint when the same command is given again, to the same weights. Started by torchrun or
    accelerate launch, several processes share the images of each step.
    """
    from modwright.core import distributed
    from modwright.recipes.training import train as run_training
    from modwright.recipes.training_schema import load_training

    with distributed.init_distributed():
        with distributed.fail_together():
            asked = load_training(recipe, changes or ())
        done = run_training(asked, out, force=force, progress=make_progress(), log=log)
        if not distributed.is_main():
            return
    if json:
        emit_json(dict(done.info))
        return
    losses = [entry["loss"] for entry in done.info["log"] if "loss" in entry]
    lines = [f"accuracy on test images: {100 * done.info['accuracy']:.2f} %"]
    if losses:
        lines.append(f"loss: {losses[0]:.4f} at first, {losses[-1]:.4f} at last")
    lines.append(f"steps: {done.info['steps']} in {done.info['seconds']:.1f} s")
    auto = done.info["auto_class"]
    first = "" if done.info.get("plain") else "import modwright; "
    load = f"from transformers import {auto}; {auto}.from_pretrained({str(done.output)!r})"
    lines.append(f"load: {first}{load}")
    for line in lines:
        output().print(line, markup=False, soft_wrap=True)
