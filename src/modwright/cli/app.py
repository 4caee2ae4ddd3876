"""All commands. Their bodies import what they need, so that ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from modwright.cli import parameters as arg
from modwright.cli.console import emit_json, log, make_progress, open_checkpoint, output
from modwright.cli.evaluate import evaluate
from modwright.cli.heal import heal, predict
from modwright.cli.run import run, train
from modwright.cli.study import compare, study
from modwright.cli.weights import export, import_model, rename
from modwright.core.files import require_new, require_new_directory, write_file

__all__ = ["build"]


def _version(shown: bool) -> None:
    if shown:
        from modwright import __version__

        print(f"modwright {__version__}")
        raise typer.Exit


def build(arguments: Sequence[str] = ()) -> Any:
    """The command tree, for ``arguments`` that name a command.

    Methods become subcommands of ``edit``, analyses of ``analyze``, only when they are asked for.
    """
    app = typer.Typer(
        name="modwright",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help="Open a Transformer as typed parts; measure, edit, verify, save; load it again.",
        epilog="Begin with: modwright inspect smollm2-135m. Every command has --help and an "
        "example there; --debug shows a traceback when something fails.",
    )

    @app.callback()
    def _root(
        version: Annotated[
            bool,
            Option(
                "--version", callback=_version, is_eager=True, help="Print the version and stop."
            ),
        ] = False,
        plugins: arg.Plugins = None,
    ) -> None:
        arg.named_plugins(plugins)

    for name, command, example in _COMMANDS:
        words = (command.__doc__ or "").split("\n\n")[0]
        app.command(name=name, short_help=words, epilog=f"Example: modwright {example}")(command)
    edit = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        short_help="Use one method on one model, without a recipe.",
        help="Use one method on one model, without a recipe. A method's --help lists its options. "
        "To drop parts of your own choice: modwright edit MODEL -o DIR --drop "
        "'attention[3,7]; mlp[2]; block[28:30]'.",
        epilog="Example: modwright edit llm_drop smollm2-135m -o out/shorter --n 4",
    )
    look = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        short_help="Look inside a model, or into a file that a training recorded.",
        help="Look inside a model, or into a file that a training recorded. Every number stands "
        "beside what nothing would give. An analysis' --help lists its options.",
        epilog="Example: modwright analyze stream_mean smollm2-135m -o out/mean",
    )
    if "edit" in arguments:
        from modwright.cli.edit import add_methods

        add_methods(edit)
    if "analyze" in arguments:
        from modwright.cli.analyze import add_analyses

        add_analyses(look)
    app.add_typer(edit, name="edit")
    app.add_typer(look, name="analyze")
    return typer.main.get_command(app)


def inspect(
    model: arg.Model,
    length: arg.Length = 512,
    dtype: arg.Dtype = None,
    html: Annotated[
        Path | None, Option(metavar="FILE", help="Also write the tree as an HTML page.")
    ] = None,
    force: Annotated[bool, Option("--force", help="Replace the HTML page.")] = False,
    json: arg.Json = False,
) -> None:
    """Show a model's parts with their parameters, MACs and bytes."""
    from modwright.anatomy import Anatomy
    from modwright.cost import inspect as inspect_parts

    if html is not None:
        require_new(html, force)
    opened = open_checkpoint(model, dtype=dtype, progress=make_progress())
    tree = inspect_parts(Anatomy.of(opened.model), length=length)
    if html is not None:
        write_file(html, tree._repr_html_())
    if json:
        emit_json(tree.to_dict())
    else:
        output().print(tree)


def cost(
    model: arg.Model,
    length: arg.Length = 512,
    batch: Annotated[int, Option(help="Sequences at once.")] = 1,
    device: arg.Device = None,
    dtype: arg.Dtype = None,
    measure: Annotated[bool, Option("--measure", help="Also time prefill and decode.")] = False,
    new_tokens: Annotated[int, Option(help="Tokens to decode when timing.")] = 32,
    threads: Annotated[
        int | None, Option(help="CPU threads when timing; torch's choice by default.")
    ] = None,
    json: arg.Json = False,
) -> None:
    """Count parameters, bytes, MACs and memory of a whole model.

    Bytes are of the weights, the key/value cache and the activations; --measure times it too.
    """
    from modwright.cost import count, measure_speed

    progress = make_progress()
    opened = open_checkpoint(model, dtype=dtype, device=device, progress=progress)
    counted = count(opened.model, length=length, batch=batch)
    speed = None
    if measure:
        speed = measure_speed(
            opened.model,
            batch=batch,
            prompt=length,
            new_tokens=new_tokens,
            threads=threads,
            progress=progress,
        )
    if json:
        emit_json({"cost": counted.to_dict(), "speed": speed.to_dict() if speed else None})
        return
    output().print(counted)
    if speed is not None:
        output().print(speed)


def plan(
    recipe: arg.Recipe,
    changes: arg.Set = None,
    plugins: arg.Plugins = None,
    device: arg.Device = None,
    dtype: arg.Dtype = None,
    save: Annotated[
        Path | None,
        Option(
            metavar="DIR", help="Compute the plan from data and keep it here for `modwright apply`."
        ),
    ] = None,
    force: arg.Force = False,
    json: arg.Json = False,
) -> None:
    """Say what a recipe would do and need, and write nothing.

    The estimate is made before any data is read. With --save the plan itself is computed and kept.
    """
    from modwright.cli.show import estimate_table, plan_lines
    from modwright.recipes import load_recipe
    from modwright.recipes.composed import open_model
    from modwright.recipes.estimate import estimate_resources
    from modwright.recipes.plans import make_plans, save_plans

    if save is not None:
        require_new_directory(save, force)
    changed = arg.with_options(changes, device=device, dtype=dtype)
    asked = load_recipe(recipe, changed, arg.named_plugins(plugins))
    progress = make_progress()
    opened = open_model(asked, progress)
    expected = estimate_resources(asked, opened.model, opened.name)
    if save is not None:
        plans, _ = make_plans(asked, opened, progress)
        save_plans(plans, asked, save, force=force)
        if not json:
            for made in plans:
                output().print(plan_lines(made))
        log(f"written: {save}; `modwright apply {save} -o OUT` carries it out")
    if json:
        emit_json(expected.to_dict())
    elif save is None:
        output().print(estimate_table(expected))


def apply(
    plan: Annotated[
        Path, Argument(metavar="PLAN", help="A directory that `modwright plan --save` wrote.")
    ],
    out: arg.Out,
    model: Annotated[
        str | None, Option(metavar="MODEL", help="The one that was planned for by default.")
    ] = None,
    force: arg.Force = False,
) -> None:
    """Carry out a saved plan and write the checkpoint."""
    from modwright.checkpoint import save as save_checkpoint
    from modwright.core.errors import InvalidInputError
    from modwright.edits.verify import check_reopens
    from modwright.recipes.plans import apply_plans, load_plans

    plans, recipe = load_plans(plan)
    source = model or recipe.get("model")
    if source is None:
        raise InvalidInputError("the plan does not name a model; give --model")
    opened = open_checkpoint(source, dtype=recipe.get("dtype"), progress=make_progress())
    applied = apply_plans(opened.model, plans)
    log(str(applied.tensor_diff))
    save_checkpoint(
        applied.model,
        out,
        source=opened.source,
        tokenizer=opened.tokenizer,
        force=force,
        check=lambda folder: log(str(check_reopens(applied.model, folder))),
    )
    log(f"written: {out}" + (" (plain)" if applied.plain else " (needs `import modwright`)"))


def upscale(
    model: Annotated[
        Path, Argument(metavar="MODEL", help="A directory with a super-resolution model.")
    ],
    image: Annotated[Path, Argument(metavar="IMAGE", help="An image file.")],
    out: Annotated[Path, arg.to_output("FILE", "Image to write, as .png.")],
    tile: Annotated[
        int | None,
        Option(help="Side of square tiles; without it the whole image is taken at once."),
    ] = None,
    overlap: Annotated[int, Option(help="Pixels that neighboring tiles share.")] = 32,
    device: arg.Device = None,
    dtype: arg.Dtype = None,
    force: arg.ReplaceFile = False,
) -> None:
    """Upscale an image with a super-resolution model.

    A model such as CRAFT looks at the whole image, so tiles, which need less memory, are an
    approximation. Images of any size are taken; gray ones are read as color.
    """
    import numpy as np
    import torch
    from PIL import Image

    from modwright.core.errors import CheckpointError, InvalidInputError
    from modwright.core.modes import set_eval
    from modwright.data.image_files import read_image
    from modwright.models.upscaling import upscale_image

    require_new(out, force)
    small = torch.from_numpy(np.asarray(read_image(image, single=True)).copy()).permute(2, 0, 1)
    opened: Any = open_checkpoint(str(model), device=device, dtype=dtype).model
    if not hasattr(opened.config, "upscale"):
        raise InvalidInputError(f"{model}: {type(opened).__name__} is not a super-resolution model")
    large = upscale_image(set_eval(opened), small, tile, overlap)
    try:
        write_file(out, Image.fromarray(large.permute(1, 2, 0).numpy()).save)
    except ValueError:
        raise CheckpointError(f"{out}: no image is written as {out.suffix!r}; .png is") from None
    sizes = [f"{side.shape[2]} x {side.shape[1]}" for side in (small, large)]
    log(f"written: {out}, {sizes[1]} pixels from {sizes[0]}")


def papers(
    slug: Annotated[str | None, Argument(metavar="SLUG", help="Show this paper in full.")] = None,
    json: arg.Json = False,
) -> None:
    """List the papers: what works, and the figure measured here."""
    from modwright.cli.show import paper_lines, papers_table
    from modwright.papers import paper, papers

    chosen = papers() if slug is None else (paper(slug),)
    if json:
        emit_json([one.to_dict() for one in chosen])
    elif slug is None:
        output().print(papers_table(chosen))
    else:
        output().print(paper_lines(chosen[0]))


def schema(
    train: Annotated[
        bool, Option("--train", help="Of recipes for `modwright train`, not for `run`.")
    ] = False,
    study: Annotated[bool, Option("--study", help="Of files for `modwright study`.")] = False,
) -> None:
    """Print the JSON Schema of recipes or of studies, for editors."""
    from modwright.core.errors import InvalidInputError

    if train and study:
        raise InvalidInputError("--train and --study: give one of them")
    if study:
        from modwright.recipes.study import study_schema

        emit_json(study_schema())
    elif train:
        from modwright.recipes.training_schema import training_schema

        emit_json(training_schema())
    else:
        from modwright.recipes.load import recipe_schema

        emit_json(recipe_schema())


# Name, function, example.
_COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("inspect", inspect, "inspect smollm2-135m --html parts.html"),
    ("cost", cost, "cost smollm2-135m --length 1024 --measure"),
    ("plan", plan, "plan examples/demo.yaml --set steps.0.n=6"),
    ("apply", apply, "apply out/plan -o out/smaller"),
    ("run", run, "run examples/demo.yaml -o out/demo"),
    ("study", study, "study widths.yaml -o out/widths --workers 2"),
    ("compare", compare, "compare out/a out/b smollm2-135m -o out/comparison"),
    ("train", train, "train examples/train.yaml -o out/digits --set settings.epochs=3"),
    ("heal", heal, "heal out/demo --teacher smollm2-135m --tokens 16384 -o out/healed"),
    ("predict", predict, "predict out/digits image.png"),
    ("import", import_model, "import poolformer_s12 poolformer_s12.pth.tar -o out/poolformer"),
    ("rename", rename, "rename out/poolformer --to official -o poolformer_s12.pth"),
    ("upscale", upscale, "upscale out/craft small.png -o large.png --tile 256"),
    ("eval", evaluate, "eval out/demo --against smollm2-135m"),
    ("export", export, "export smollm2-135m -o out/smollm2-gguf --to gguf --set type=q8_0"),
    ("papers", papers, "papers llm-drop"),
    ("schema", schema, "schema > recipe.schema.json"),
)
