"""The command line, as ``--help`` prints it."""

from __future__ import annotations

from typing import Any

__all__ = ["MAKERS"]

_WIDTH = 84


def _commands() -> str:
    from modwright.cli.app import build

    root = build(["edit", "analyze"])
    lines: list[str] = []
    for name, command in root.commands.items():
        inner = getattr(command, "commands", {})
        lines += _section(f"modwright {name}", command, 2)
        for method, sub in inner.items():
            lines += _section(f"modwright {name} {method}", sub, 3)
    return "\n".join(lines)


def _section(path: str, command: Any, level: int) -> list[str]:
    import click

    context = click.Context(
        command, info_name=path, terminal_width=_WIDTH, max_content_width=_WIDTH
    )
    text = command.get_help(context).rstrip()
    return [f"{'#' * level} `{path}`", "", "```text", text, "```", ""]


MAKERS = {"commands": _commands}
