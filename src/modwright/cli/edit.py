"""``modwright edit METHOD``: a subcommand for every method, made from its dataclass."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer import Option

from modwright.cli import parameters as arg
from modwright.cli.console import log, make_progress
from modwright.metrics.registry import in_order
from modwright.recipes.load import parse_recipe
from modwright.recipes.options import option_help, summary
from modwright.recipes.schema import Data
from modwright.surgery import make_method, method_names, method_type

__all__ = ["add_methods"]

_DATA = Data()
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


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
        add(_command(name, kind))


def _command(name: str, kind: type[Any]) -> Callable[..., None]:
    fields = {field.name: field for field in dataclasses.fields(kind)}

    def command(**given: Any) -> None:
        options = {key: given.pop(key) for key in fields if key in given}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
        _edit(name, plain, **given)

    common = list(inspect.signature(_edit, eval_str=True).parameters.values())[2:]
    # A method's own option stands in front of a common one of the same name.
    parameters = [p.replace(kind=_KEYWORD) for p in common if p.name not in fields]
    parameters += _options(kind, fields)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _options(kind: type[Any], fields: dict[str, Any]) -> list[inspect.Parameter]:
    hints, info = get_type_hints(kind), option_help(kind)
    made = []
    for name, field in fields.items():
        flag = name.replace("_", "-")
        annotation = _plain(hints[name])
        words = info.get(name, "")
        if get_origin(annotation) is list:
            words += f" Repeat --{flag} for each."
        option = Option(
            f"--{flag}/--no-{flag}" if annotation is bool else f"--{flag}",
            help=words,
            metavar="|".join(_valid(hints[name])) or None,
        )
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        if field.default is dataclasses.MISSING:
            default = inspect.Parameter.empty
        made.append(
            inspect.Parameter(
                name, _KEYWORD, default=default, annotation=Annotated[annotation, option]
            )
        )
    return made


def _valid(hint: Any) -> list[str]:
    """The words that an option takes, where they are few."""
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    return [word for inner in get_args(hint) for word in _valid(inner)]


def _plain(hint: Any) -> Any:
    """A type that the argument parser knows. What is valid is checked by the method itself."""
    origin = get_origin(hint)
    if origin is Literal:
        return str
    if origin is tuple:
        return list[str]
    if origin in (Union, types.UnionType):
        inner = [_plain(part) for part in get_args(hint) if part is not type(None)]
        return inner[0] | None
    return hint


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
