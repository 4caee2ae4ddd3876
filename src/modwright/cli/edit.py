"""``modwright edit METHOD``: a subcommand for every method, made from its dataclass."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer import Option

from modwright.cli import parameters as arg
from modwright.cli.console import log, make_progress
from modwright.cli.generated import command_of
from modwright.metrics.registry import in_order
from modwright.recipes.load import parse_recipe
from modwright.recipes.options import summary
from modwright.recipes.schema import Data
from modwright.surgery import make_method, method_names, method_type

__all__ = ["add_methods"]

_DATA = Data()


def add_methods(group: typer.Typer) -> None:
    """Adds a subcommand per method."""
    for name in method_names():
        kind = method_type(name)
        words = summary(kind)
        last = f"The paper: modwright papers {kind.paper}"
        if kind.paper is None:
            tried = " ".join(f"--{key} '{value}'" for key, value in kind.examples[0].items())
            last = f"Example: modwright edit {name} smollm2-135m -o out/edited {tried}"
        add = group.command(name=name, help=words, short_help=words, epilog=last)
        add(command_of(name, kind, _edit))


def _edit(
    method: str,
    options: dict[str, Any],
    model: arg.Model,
    out: arg.Out,
    data: Annotated[
        str | None,
        Option(
            help=f"Calibration text: {arg.TEXTS}; {' and '.join(_DATA.data)} unless it is said."
        ),
    ] = None,
    windows: Annotated[int, Option(help="Windows of calibration text.")] = _DATA.windows,
    length: Annotated[
        int, Option(help="Tokens of a window, in calibration and perplexity.")
    ] = _DATA.length,
    seed: Annotated[int | None, Option(help="Draw calibration windows at random with it.")] = None,
    device: arg.Device = None,
    dtype: arg.Dtype = None,
    no_eval: Annotated[
        bool, Option("--no-eval", help="Count the cost, measure nothing else.")
    ] = False,
    force: arg.Force = False,
) -> None:
    """One method as a recipe; all but the first two are what every method takes."""
    from modwright.cli.show import show_result
    from modwright.core import distributed
    from modwright.recipes.run import run

    make_method(method, options)  # refuses in the words of the command line, not of a recipe
    nothing = {kind.name: None for kind in in_order() if kind.by_default}
    text = {} if data is None else {"data": data}
    recipe = parse_recipe(
        {
            "model": model,
            "dtype": dtype,
            "device": device,
            "calibration": {**text, "windows": windows, "length": length, "seed": seed},
            "steps": [{"method": method, "options": options}],
            "evaluate": nothing
            if no_eval
            else {"perplexity": {"length": length, "required": False}},
        },
        name=f"edit {method}",
        plugins=arg.named_plugins(None),
    )
    with distributed.init_distributed():
        result = run(recipe, out, force=force, progress=make_progress(), log=log)
        if distributed.is_main():
            show_result(result)
