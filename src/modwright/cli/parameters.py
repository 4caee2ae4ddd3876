"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

__all__ = [
    "TEXTS",
    "Device",
    "Dtype",
    "Force",
    "Json",
    "Length",
    "Model",
    "Out",
    "OutOrRecipe",
    "Plugins",
]
__all__ += ["Recipe", "ReplaceFile", "Set", "key_values", "named_plugins", "set_option"]
__all__ += ["to_output", "with_options"]

TEXTS = (
    "a text by name (lee and others), a text file, a folder of them, a file of rows "
    "(jsonl, csv, parquet), or datasets:NAME"
)


def set_option(help: str) -> Any:
    """``--set KEY=VALUE``."""
    return Option("--set", metavar="KEY=VALUE", help=help)


def to_output(metavar: str, help: str) -> Any:
    """``-o``, ``--output``."""
    return Option("-o", "--output", metavar=metavar, help=help)


Model = Annotated[
    str,
    Argument(
        metavar="MODEL",
        help="A directory, a .gguf file, a packaged name (smollm2-135m, minilm, lab-lm), "
        "preset:NAME, or a hub id.",
    ),
]
Recipe = Annotated[
    Path, Argument(metavar="RECIPE", help="A YAML file that says model, steps and output.")
]
Out = Annotated[Path, to_output("DIR", "Directory to write.")]
OutOrRecipe = Annotated[
    Path | None, to_output("DIR", "Directory to write; else the recipe's `output`.")
]
Json = Annotated[bool, Option("--json", help="Print JSON on stdout; all words go to stderr.")]
Length = Annotated[int, Option(help="Tokens of a sequence.")]
Force = Annotated[bool, Option("--force", help="Replace what the output directory holds.")]
ReplaceFile = Annotated[bool, Option("--force", help="Replace the file.")]
Set = Annotated[
    list[str] | None,
    set_option("Change one value of the recipe: --set steps.0.n=6. Repeat it for more."),
]
Plugins = Annotated[
    list[str] | None,
    Option(
        "--plugin",
        metavar="FILE|MODULE",
        help="Code of your own that registers parts, methods, families and so on. Repeat it for "
        "more.",
    ),
]
Dtype = Annotated[
    str | None,
    Option(
        help="Type of the weights: float32, bfloat16, float16 or float64; the source's by default."
    ),
]


Device = Annotated[
    str | None,
    Option(metavar="NAME", help="Where the model runs: cpu, cuda, cuda:1; the CPU by default."),
]


def with_options(changes: Sequence[str] | None, **options: str | None) -> list[str]:
    """What ``--set`` was given, and options of a command that are keys of its recipe."""
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    return [*(changes or ()), *given]


def named_plugins(given: Sequence[str] | None) -> list[str]:
    """All plugins of this command line, as they are named anywhere: before the command, behind it.

    Raises:
        InvalidInputError: one is no file and no module.
    """
    from modwright.core.plugins import add_plugin, added_plugins

    for plugin in given or ():
        add_plugin(plugin)
    return added_plugins()


def key_values(given: Sequence[str] | None, example: str) -> dict[str, str]:
    """What ``--set KEY=VALUE`` was given, each value as text.

    Raises:
        InvalidInputError: one of them has no key.
    """
    from modwright.core.errors import InvalidInputError

    found = {}
    for one in given or ():
        key, equals, value = one.partition("=")
        if not equals or not key:
            raise InvalidInputError(f"--set {one!r}: KEY=VALUE is wanted, such as --set {example}")
        found[key] = value
    return found
