"""``modwright analyze NAME``: a subcommand for every analysis, made from its dataclass."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from modwright.analysis import ANALYSES
from modwright.cli import parameters as arg
from modwright.cli.console import emit_json, log, make_progress, output
from modwright.cli.generated import command_of
from modwright.recipes.options import summary
from modwright.recipes.schema import Data

__all__ = ["add_analyses"]

_DATA = Data()


def add_analyses(group: typer.Typer) -> None:
    """Adds a subcommand per analysis."""
    for name in ANALYSES.names():
        kind = ANALYSES[name]
        words = summary(kind)
        last = f"Its number: {kind.value}. Its null: {kind.null}."
        last += "" if kind.paper is None else f" The paper: modwright papers {kind.paper}"
        add = group.command(name=name, help=words, short_help=words, epilog=last)
        add(command_of(name, kind, _analyze))


def _analyze(
    name: str,
    options: dict[str, Any],
    source: Annotated[
        str,
        Argument(
            metavar="MODEL|FILE",
            help="A model as other commands take it, or a file that a training recorded, for an "
            "analysis that reads one.",
        ),
    ],
    out: arg.Out,
    data: Annotated[
        str | None,
        Option(help=f"Text: {arg.TEXTS}; {' and '.join(_DATA.data)} unless it is said."),
    ] = None,
    images: Annotated[
        str | None,
        Option(metavar="FOLDER", help="Images, for a model that reads them: digits, or a folder."),
    ] = None,
    windows: Annotated[int, Option(help="Windows of text, or images.")] = _DATA.windows,
    length: arg.Length = _DATA.length,
    seed: Annotated[int | None, Option(help="Draw windows at random with it.")] = None,
    device: arg.Device = None,
    dtype: arg.Dtype = None,
    force: arg.Force = False,
    json: arg.Json = False,
) -> None:
    """One analysis; all but the first two are what every analysis takes."""
    from modwright.recipes.analyzing import run_analysis

    found, written = run_analysis(
        name,
        options,
        source,
        Path(out),
        data={"data": data, "images": images, "windows": windows, "length": length, "seed": seed},
        opened={"device": device, "dtype": dtype},
        force=force,
        progress=make_progress(),
    )
    from modwright.report.findings import finding_sentence

    if json:
        emit_json(found.to_dict())
    else:
        output().print("\n".join([finding_sentence(found), *found.lines()]), soft_wrap=True)
    log(f"written: {out} ({', '.join(written)})")
    if "plan" in written:
        log(f"`modwright apply {Path(out) / 'plan'} --model {source} -o OUT` carries the plan out")
