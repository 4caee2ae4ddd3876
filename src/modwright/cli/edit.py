"""``modwright edit METHOD``: a subcommand for every method, made from its dataclass."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from modwright.cli.console import make_progress, output, say

__all__ = ["add_methods"]


def add_methods(group: typer.Typer) -> None:
    """Adds a subcommand per method."""
    from modwright.surgery import method_names, method_type

    for name in method_names():
        kind = method_type(name)
        summary = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0]
        group.command(name=name, help=summary)(_command(name, kind))


def _command(name: str, kind: type[Any]) -> Callable[..., None]:
    fields = {field.name: field for field in dataclasses.fields(kind)}

    def command(**given: Any) -> None:
        options = {key: given.pop(key) for key in fields if key in given}
        _edit(
            name, {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}, **given
        )

    parameters = [*_common(), *_options(kind, fields)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _parameter(name: str, kind: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _common() -> list[inspect.Parameter]:
    """What every method takes: model, output, calibration text, evaluation."""
    option = typer.Option
    return [
        _parameter("model", Annotated[str, typer.Argument(help="The model to edit.")]),
        _parameter("out", Annotated[Path, option("-o", "--output", help="Directory to write.")]),
        _parameter("data", Annotated[str, option(help="Calibration text.")], "lee-background"),
        _parameter("windows", Annotated[int, option(help="Windows of text.")], 32),
        _parameter("length", Annotated[int, option(help="Tokens of a window.")], 512),
        _parameter("seed", Annotated[int | None, option(help="Choose windows at random.")], None),
        _parameter(
            "dtype", Annotated[str | None, option(help="float32, bfloat16, float16.")], None
        ),
        _parameter(
            "no_eval", Annotated[bool, option("--no-eval", help="Measure only the cost.")], False
        ),
        _parameter("force", Annotated[bool, option("--force", help="Replace the output.")], False),
    ]


def _options(kind: type[Any], fields: dict[str, Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(kind)
    told = _told(kind)
    made = []
    for name, field in fields.items():
        flag = f"--{name.replace('_', '-')}"
        annotation = _plain(hints[name])
        flags = [f"{flag}/--no-{flag[2:]}"] if annotation is bool else [flag]
        default = field.default
        help_text = told.get(name, "")
        default = list(default) if isinstance(default, tuple) else default
        made.append(
            _parameter(name, Annotated[annotation, typer.Option(*flags, help=help_text)], default)
        )
    return made


def _plain(hint: Any) -> Any:
    """A type that the argument parser knows. What is legal is checked by the method itself."""
    origin = get_origin(hint)
    if origin is Literal:
        return str
    if origin is tuple:
        return list[str]
    if origin in (Union, types.UnionType):
        inner = [_plain(arg) for arg in get_args(hint) if arg is not type(None)]
        return inner[0] | None
    return hint


def _told(kind: type[Any]) -> dict[str, str]:
    """Field -> its sentence in the ``Attributes:`` section of the docstring."""
    text = inspect.cleandoc(kind.__doc__ or "")
    section = text.partition("Attributes:\n")[2].partition("\n\n")[0]
    found = re.split(r"^ {4}(\w+): ", section, flags=re.MULTILINE)
    return {name: " ".join(said.split()) for name, said in zip(found[1::2], found[2::2])}


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
    from modwright.cli.show import show_outcome
    from modwright.recipes.load import parse_recipe
    from modwright.recipes.run import run

    nothing = {"perplexity": None, "generate": None, "speed": None}
    recipe = parse_recipe(
        {
            "model": model,
            "dtype": dtype,
            "calibration": {"data": data, "windows": windows, "length": length, "seed": seed},
            "steps": [{"method": method, "options": options}],
            **({"evaluate": nothing} if no_eval else {}),
        },
        name=f"edit {method}",
    )
    outcome = run(recipe, out, force=force, progress=make_progress(), say=say)
    show_outcome(output(), outcome)
