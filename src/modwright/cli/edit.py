"""``modwright edit METHOD``: a subcommand for every method, made from its dataclass."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from modwright.cli.console import log, make_progress, output
from modwright.cli.parameters import TEXTS, Dtype, Force, Model
from modwright.recipes.load import parse_recipe
from modwright.recipes.options import option_help, summary
from modwright.recipes.schema import Data
from modwright.surgery import make_method, method_names, method_type

__all__ = ["add_methods"]

_DATA = Data()


def add_methods(group: typer.Typer) -> None:
    """Adds a subcommand per method."""
    for name in method_names():
        kind = method_type(name)
        group.command(
            name=name,
            help=summary(kind),
            short_help=summary(kind),
            epilog=_last_words(name, kind),
        )(_command(name, kind))


def _last_words(name: str, kind: type[Any]) -> str:
    """Where to read on: the paper, or an example of a method that comes from none."""
    if kind.paper is not None:
        return f"The paper: modwright papers {kind.paper}"
    tried = " ".join(f"--{key} '{value}'" for key, value in kind.examples[0].items())
    return f"Example: modwright edit {name} smollm2-135m -o out/edited {tried}"


def _command(name: str, kind: type[Any]) -> Callable[..., None]:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    # A method's own option stands in front of a common one of the same name.
    common = [p for p in _common() if p.name not in fields]
    hidden = {p.name: p.default for p in _common() if p.name in fields}

    def command(**given: Any) -> None:
        options = {key: given.pop(key) for key in fields if key in given}
        _edit(
            name,
            {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
            **{**hidden, **given},
        )

    parameters = [*common, *_options(kind, fields)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _parameter(name: str, kind: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _common() -> list[inspect.Parameter]:
    """What every method takes: model, output, calibration text, evaluation."""
    option = typer.Option
    return [
        _parameter("model", Model),
        _parameter(
            "out",
            Annotated[Path, option("-o", "--output", metavar="DIR", help="Directory to write.")],
        ),
        _parameter("data", Annotated[str, option(help=f"Calibration text: {TEXTS}.")], _DATA.data),
        _parameter(
            "windows", Annotated[int, option(help="Windows of calibration text.")], _DATA.windows
        ),
        _parameter(
            "length",
            Annotated[int, option(help="Tokens of a window, in calibration and perplexity.")],
            _DATA.length,
        ),
        _parameter(
            "seed",
            Annotated[int | None, option(help="Draw calibration windows at random with it.")],
            None,
        ),
        _parameter("dtype", Dtype, None),
        _parameter(
            "no_eval",
            Annotated[bool, option("--no-eval", help="Count the cost, measure nothing else.")],
            False,
        ),
        _parameter("force", Force, False),
    ]


def _options(kind: type[Any], fields: dict[str, Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(kind)
    info = option_help(kind)
    made = []
    for name, field in fields.items():
        flag = f"--{name.replace('_', '-')}"
        annotation = _plain(hints[name])
        flags = [f"{flag}/--no-{flag[2:]}"] if annotation is bool else [flag]
        words = info.get(name, "")
        if get_origin(annotation) is list:
            words += f" Repeat {flag} for each."
        option = typer.Option(*flags, help=words, metavar="|".join(_valid(hints[name])) or None)
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        if field.default is dataclasses.MISSING:
            default = inspect.Parameter.empty
        made.append(_parameter(name, Annotated[annotation, option], default))
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
        inner = [_plain(arg) for arg in get_args(hint) if arg is not type(None)]
        return inner[0] | None
    return hint


def _edit(
    method: str,
    options: dict[str, Any],
    model: str,
    out: Path,
    data: str,
    windows: int,
    length: int,
    seed: int | None,
    dtype: str | None,
    no_eval: bool,
    force: bool,
) -> None:
    from modwright.cli.show import show_result
    from modwright.core import distributed
    from modwright.recipes.run import run

    make_method(method, options)  # refuses in the words of the command line, not of a recipe
    nothing = {"perplexity": None, "generate": None, "speed": None}
    recipe = parse_recipe(
        {
            "model": model,
            "dtype": dtype,
            "calibration": {"data": data, "windows": windows, "length": length, "seed": seed},
            "steps": [{"method": method, "options": options}],
            "evaluate": nothing if no_eval else {"perplexity": {"length": length}},
        },
        name=f"edit {method}",
    )
    with distributed.init_distributed():
        result = run(recipe, out, force=force, progress=make_progress(), log=log)
        if distributed.is_main():
            show_result(output(), result)
