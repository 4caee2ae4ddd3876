"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["TEXTS", "Dtype", "Force", "Json", "Length", "Model", "Recipe", "Set"]

TEXTS = (
    "lee, lee-background, a text file, a folder of them, a file of rows (jsonl, csv, parquet), or "
    "datasets:NAME"
)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A directory, a .gguf file, a packaged name (smollm2-135m, minilm), preset:NAME, "
        "or a hub id.",
    ),
]
Recipe = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A YAML file that says model, steps and output.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; all words go to stderr.")]
Length = Annotated[int, typer.Option(help="Tokens of a sequence.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what the output directory holds.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one value of the recipe: --set steps.0.n=6. Repeat it for more.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Type of the weights: float32, bfloat16, float16 or float64; the source's by default."
    ),
]
