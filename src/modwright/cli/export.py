"""``modwright export``: the files of a model for other programs, and where it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modwright.cli.console import emit_json, log, make_progress, output
from modwright.cli.parameters import Dtype, Force, Json, Model

if TYPE_CHECKING:
    from modwright.checkpoint.export import Exported, Target

__all__ = ["export"]


def export(
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Directory to write. Without it, say where the model runs and write nothing.",
        ),
    ] = None,
    to: Annotated[
        str, typer.Option(metavar="TARGET", help="plain, standalone, pt2, onnx or gguf.")
    ] = "standalone",
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An option of the target: --to gguf --set type=q8_0. Repeat it for more.",
        ),
    ] = None,
    dtype: Dtype = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run model code that MODEL brings.")
    ] = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a model for other programs, and compare it there.

    plain: a stock checkpoint. standalone: a checkpoint with one Python file, for transformers
    without modwright. pt2: torch.export. onnx: ONNX Runtime. gguf: llama.cpp and its kin.
    """
    from modwright.checkpoint.export import export as export_model
    from modwright.checkpoint.export import make_target, runtime_support
    from modwright.cli.opening import open_checkpoint

    target = make_target(to, _options(options or ()))
    if out is not None:
        target.check_installed()  # before a model is opened
    progress = make_progress()
    opened = open_checkpoint(
        model, dtype=dtype, trust_remote_code=trust_remote_code, progress=progress
    )
    if out is None:
        _show_serving(opened.name, runtime_support(opened.model), json)
        return
    _show_export(export_model(opened, out, target, force=force, progress=progress), target, json)


def _options(given: Sequence[str]) -> dict[str, str]:
    from modwright.core.errors import InvalidInputError

    found = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals or not key:
            raise InvalidInputError(f"--set {one!r}: KEY=VALUE is wanted, such as --set type=q8_0")
        found[key] = value
    return found


def _show_serving(name: str, found: Sequence[Any], json: bool) -> None:
    """One row per runtime: whether it takes the model, and why not."""
    from dataclasses import asdict

    from rich.table import Table

    if json:
        emit_json([asdict(entry) for entry in found])
        return
    table = Table(title=f"where {name} runs", title_justify="left")
    for heading in ("runtime", "answer", "why", "command"):
        table.add_column(heading, overflow="fold")
    for entry in found:
        table.add_row(entry.runtime, entry.answer, entry.why, entry.command)
    output().print(table)


def _show_export(done: Exported, target: Target, json: bool) -> None:
    """What was written, beside what the model weighs, and how it compared."""
    from dataclasses import asdict

    from rich.table import Table

    from modwright.core.formatting import format_bytes

    if json:
        emit_json({**asdict(done), "output": str(done.output), "bytes": done.bytes})
        return
    table = Table(title=f"exported to {target.name}", title_justify="left")
    table.add_column("file")
    table.add_column("size", justify="right")
    for name in done.made:
        table.add_row(name, format_bytes(done.files[name]))
    table.add_section()
    share = done.bytes / done.checkpoint_bytes
    table.add_row("together", format_bytes(done.bytes))
    table.add_row("weights of the model", f"{format_bytes(done.checkpoint_bytes)} ({share:.2f} x)")
    output().print(table)
    log(f"checked: {done.compared}")
    log(f"written: {done.output}; README.md there says how it is opened")
