"""All commands. Their bodies import what they need, so that ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from modwright.cli.console import emit_json, make_progress, output, say

__all__ = ["build"]

Model = Annotated[
    str,
    typer.Argument(
        help="A directory, a .gguf file, a packaged name (smollm2-135m, minilm), preset:NAME, "
        "or a hub id."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Machine output on stdout.")]
Length = Annotated[int, typer.Option(help="Tokens of a sequence.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that stands there.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: --set steps.0.n=6"),
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; the source's by default.")
]


def _version(shown: bool) -> None:
    if shown:
        from modwright import __version__

        print(f"modwright {__version__}")
        raise typer.Exit


def build(arguments: Sequence[str] = ()) -> Any:
    """The command tree. Methods become subcommands of ``edit`` only when they are asked for."""
    app = typer.Typer(
        name="modwright",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help="Open a Transformer as typed parts; measure, edit, verify, save; load it again.\n\n"
        "Try: modwright inspect smollm2-135m",
        epilog="Every command has --help. --debug shows a traceback when something fails.",
    )

    @app.callback()
    def _root(
        version: Annotated[
            bool, typer.Option("--version", callback=_version, is_eager=True, help="And stop.")
        ] = False,
    ) -> None:
        pass

    for command in (inspect, cost, plan, apply, run):
        app.command()(command)
    edit = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="One method on one model: modwright edit llm_drop smollm2-135m -o OUT --n 4",
    )
    if next((a for a in arguments if not a.startswith("-")), None) == "edit":
        from modwright.cli.edit import add_methods

        add_methods(edit)
    app.add_typer(edit, name="edit")
    app.command(name="eval")(evaluate)
    app.command()(papers)
    app.command()(schema)
    return typer.main.get_command(app)


def inspect(
    model: Model,
    length: Length = 512,
    dtype: Dtype = None,
    html: Annotated[Path | None, typer.Option(help="Also write the tree as a page.")] = None,
    json: Json = False,
) -> None:
    """Show a model's parts: parameters, multiplications and bytes of each."""
    from modwright.anatomy import Anatomy
    from modwright.checkpoint import open as open_checkpoint
    from modwright.cost import inspect as inspect_parts

    opened = open_checkpoint(model, dtype=dtype, progress=make_progress())
    tree = inspect_parts(Anatomy.of(opened.model), length=length)
    if html is not None:
        html.write_text(tree._repr_html_(), encoding="utf-8")
    if json:
        emit_json(tree.to_json())
    else:
        output().print(tree)


def cost(
    model: Model,
    length: Length = 512,
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    dtype: Dtype = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also time prefill and decode.")
    ] = False,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode when timing.")] = 32,
    threads: Annotated[int | None, typer.Option(help="CPU threads when timing.")] = None,
    json: Json = False,
) -> None:
    """Count parameters, bytes, multiplications, key/value cache and activations; time if asked."""
    from modwright.checkpoint import open as open_checkpoint
    from modwright.cost import count, measure_speed

    progress = make_progress()
    opened = open_checkpoint(model, dtype=dtype, progress=progress)
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
        emit_json({"cost": counted.to_json(), "speed": speed.to_json() if speed else None})
        return
    console = output()
    console.print(counted)
    if speed is not None:
        console.print(speed)


def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    changes: Set = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Compute the plan with data and write it here, for `modwright apply`."),
    ] = None,
    json: Json = False,
) -> None:
    """Say what a recipe would do: sizes, memory and disk. Writes nothing unless --save is given."""
    from modwright.checkpoint import open as open_checkpoint
    from modwright.cli.show import forecast_table, plan_lines
    from modwright.recipes import load_recipe
    from modwright.recipes.forecast import forecast
    from modwright.recipes.plans import make_plans, save_plans

    asked = load_recipe(recipe, changes or ())
    progress = make_progress()
    opened = open_checkpoint(asked.model, dtype=asked.dtype, progress=progress)
    expected = forecast(asked, opened.model, opened.name)
    if save is not None:
        plans, _ = make_plans(asked, opened, progress)
        save_plans(plans, asked, save)
        if not json:
            for made in plans:
                output().print(plan_lines(made))
        say(f"written: {save}; `modwright apply {save} -o OUT` carries it out")
    if json:
        emit_json(expected.to_json())
    elif save is None:
        output().print(forecast_table(expected))


def apply(
    plan: Annotated[Path, typer.Argument(help="A directory that `modwright plan --save` wrote.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Directory to write.")],
    model: Annotated[
        str | None, typer.Option(help="The model; the one it was planned for by default.")
    ] = None,
    force: Force = False,
) -> None:
    """Carry out a saved plan and write the checkpoint."""
    from modwright.checkpoint import open as open_checkpoint
    from modwright.edits.reopen import check_reopens
    from modwright.errors import Refused
    from modwright.recipes.plans import apply_plans, load_plans

    plans, recipe = load_plans(plan)
    source = model or recipe.get("model")
    if source is None:
        raise Refused("the plan does not name a model; give --model")
    opened = open_checkpoint(source, dtype=recipe.get("dtype"), progress=make_progress())
    applied = apply_plans(opened.model, plans)
    say(str(applied.accounting))
    from modwright.checkpoint import save as save_checkpoint

    def check(folder: Path) -> None:
        say(str(check_reopens(applied.model, folder)))

    save_checkpoint(
        applied.model,
        out,
        source=opened.source,
        tokenizer=opened.tokenizer,
        force=force,
        check=check,
    )
    say(f"written: {out}" + (" (plain)" if applied.plain else " (needs `import modwright`)"))


def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    out: Annotated[Path | None, typer.Option("-o", "--output", help="Directory to write.")] = None,
    changes: Set = None,
    force: Force = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not reopen the result in a new process.")
    ] = False,
    json: Json = False,
) -> None:
    """Run a recipe: every step planned, applied, verified and measured; checkpoint and report."""
    from modwright.cli.show import show_outcome
    from modwright.recipes import load_recipe
    from modwright.recipes.run import run as run_recipe

    outcome = run_recipe(
        load_recipe(recipe, changes or ()),
        out,
        force=force,
        check=not no_check,
        progress=make_progress(),
        say=say,
    )
    if json:
        emit_json(outcome.report.to_json())
    else:
        show_outcome(output(), outcome)


def evaluate(
    model: Model,
    data: Annotated[str, typer.Option(help="Text: lee, lee-background, a file, ...")] = "lee",
    windows: Annotated[int, typer.Option(help="Windows of text.")] = 6,
    length: Length = 512,
    stride: Annotated[int | None, typer.Option(help="Default: windows do not overlap.")] = None,
    bos: Annotated[bool, typer.Option("--bos", help="Begin every window with BOS.")] = False,
    dtype: Dtype = None,
    prompt: Annotated[str | None, typer.Option(help="Also write after this prompt.")] = None,
    new_tokens: Annotated[int, typer.Option(help="Tokens to write.")] = 40,
    json: Json = False,
) -> None:
    """Measure perplexity, with the recipe of the number beside it; and write a sample if asked."""
    from dataclasses import asdict

    from modwright.checkpoint import open as open_checkpoint
    from modwright.cli.show import perplexity_lines
    from modwright.errors import Refused
    from modwright.tasks.generation import generate_sample
    from modwright.tasks.perplexity import PerplexityRecipe, perplexity

    progress = make_progress()
    opened = open_checkpoint(model, dtype=dtype, progress=progress)
    if opened.tokenizer is None:
        raise Refused(f"{model} brings no tokenizer, so it cannot be measured on text")
    asked = PerplexityRecipe(data, windows=windows, length=length, stride=stride, bos=bos)
    found = perplexity(opened.model, opened.tokenizer, asked, progress)
    sample = None
    if prompt is not None:
        sample = generate_sample(opened.model, opened.tokenizer, prompt, max_new_tokens=new_tokens)
    if json:
        emit_json(
            {
                "perplexity": {**asdict(found), "finite": found.finite},
                "sample": asdict(sample) if sample else None,
            }
        )
    else:
        output().print(perplexity_lines(found, sample))


def papers(
    slug: Annotated[str | None, typer.Argument(help="One paper, in full.")] = None,
    json: Json = False,
) -> None:
    """List the papers behind the methods, with an honest status and the figure measured here."""
    from modwright.cli.show import paper_lines, papers_table
    from modwright.papers import paper, papers

    chosen = papers() if slug is None else (paper(slug),)
    if json:
        emit_json([one.to_json() for one in chosen])
    elif slug is None:
        output().print(papers_table(chosen))
    else:
        output().print(paper_lines(chosen[0]))


def schema() -> None:
    """Print the JSON Schema of recipes, with every method's options, for editors."""
    from pydantic import TypeAdapter

    from modwright.recipes import Recipe
    from modwright.surgery import method_names, method_type

    whole = Recipe.model_json_schema()
    whole["methods"] = {
        name: TypeAdapter(method_type(name)).json_schema() for name in method_names()
    }
    emit_json(whole)
