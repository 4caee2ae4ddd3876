"""``modwright heal`` and ``modwright predict``: what is done with a model that stands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from modwright.cli import parameters as arg
from modwright.cli.console import emit_json, log, make_progress, open_checkpoint, output

__all__ = ["heal", "predict"]


def heal(
    model: arg.Model,
    out: arg.Out,
    teacher: Annotated[
        str, Option(metavar="BASELINE", help="What the model was made of; it only answers.")
    ],
    data: Annotated[
        list[str] | None,
        Option(
            metavar="TEXT",
            help=f"What it learns from: {arg.TEXTS}; news and the reference of Python in turn, "
            "unless it is said. Repeat it for several.",
        ),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        Option(
            metavar="TEXT",
            help="A text that judges it; other news and descriptions of data sets, unless it is "
            "said. Repeat it.",
        ),
    ] = None,
    tokens: Annotated[int | None, Option(help="Tokens to learn from; 16,384 by default.")] = None,
    minutes: Annotated[
        float | None, Option(help="How long it may take, in place of tokens; ten steps are timed.")
    ] = None,
    control: Annotated[
        bool, Option("--control", help="Train the baseline the same way, and set it beside.")
    ] = False,
    changes: Annotated[
        list[str] | None,
        arg.set_option("An option of the step heal: --set learns=norms. Repeat it for more."),
    ] = None,
    device: arg.Device = None,
    dtype: arg.Dtype = None,
    force: arg.Force = False,
    json: arg.Json = False,
) -> None:
    """Let a cut model learn from its baseline, judged by held-out texts.

    It is the recipe `steps: [{heal: {...}}]`: DIR gets the checkpoint with its report, whose curve
    over tokens has each held-out text. The best state is kept, which may be the one before; a
    sentence says where healing did not pay. Stopped, it goes on when the command is given again.
    """
    import yaml

    from modwright.cli.show import show_result
    from modwright.core import distributed
    from modwright.metrics.registry import in_order
    from modwright.recipes.load import parse_recipe
    from modwright.recipes.run import run

    options: dict[str, Any] = {"teacher": teacher, "tokens": tokens, "minutes": minutes}
    options |= {"control": control} if control else {}
    options |= {"data": [{"text": one} for one in data]} if data else {}
    options |= {"held_out": held_out} if held_out else {}
    for key, value in arg.key_values(changes, "learns=norms").items():
        options[key] = yaml.safe_load(value)
    recipe = parse_recipe(
        {
            "model": model,
            "device": device,
            "dtype": dtype,
            "steps": [{"heal": {k: v for k, v in options.items() if v is not None}}],
            "evaluate": {kind.name: None for kind in in_order() if kind.by_default},
        },
        name="heal",
        plugins=arg.named_plugins(None),
    )
    with distributed.init_distributed():
        result = run(recipe, out, force=force, progress=make_progress(), log=log)
        if not distributed.is_main():
            return
    if json:
        emit_json(result.report.to_dict())
    else:
        show_result(result)


def predict(
    model: arg.Model,
    images: Annotated[list[Path], Argument(metavar="IMAGE...", help="Image files.")],
    top: Annotated[int, Option(help="How many classes of each, the likeliest first.")] = 5,
    device: arg.Device = None,
    dtype: arg.Dtype = None,
    json: arg.Json = False,
) -> None:
    """Print the classes of images, with probabilities.

    Images are prepared as the model's own image processor says, where it has one. They are read as
    they are meant to be seen: turned by EXIF, gray, 16 bit, CMYK and transparent ones as RGB.
    """
    from modwright.metrics.images import predict_classes

    opened = open_checkpoint(model, device=device, dtype=dtype)
    found = {str(image): predict_classes(opened, image, top) for image in images}
    if json:
        emit_json(found)
        return
    for image, classes in found.items():
        said = ", ".join(f"{name} {100 * share:.1f} %" for name, share in classes.items())
        output().print(f"{image}: {said}", soft_wrap=True)
