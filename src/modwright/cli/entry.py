"""Runs a command and turns what went wrong into one line and an exit code."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from modwright.core.errors import ModwrightError, ProcessFailed, unknown_name
from modwright.core.plugins import add_plugin, plugins_restored

__all__ = ["main", "run_command", "spelled_out", "split_at_command"]

FAILED, REFUSED, INTERRUPTED = 1, 2, 130

_GO_ON = "interrupted; finished steps of a run are kept, and the same command goes on from them"


def run_command(arguments: Sequence[str]) -> int:
    """Runs ``modwright ARGUMENTS``: 0 when done, 1 when the work failed, 2 when it was refused."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    debug = "--debug" in arguments or bool(os.environ.get("MODWRIGHT_DEBUG"))
    kept = [argument for argument in arguments if argument != "--debug"]
    with plugins_restored():
        return _run_command(kept, debug)


def _run_command(arguments: list[str], debug: bool) -> int:
    try:
        options, rest = split_at_command(arguments)
        for plugin in _plugins_of(options):  # they may bring the command: a method of `edit`
            add_plugin(plugin)
        from modwright.cli.app import build

        kept = [*options, *spelled_out(rest)]
        command = build(spelled_out(rest))
        code = int(command.main(args=kept, prog_name="modwright", standalone_mode=False) or 0)
        return _say(_GO_ON, code) if code == INTERRUPTED else code
    except ModwrightError as error:
        if isinstance(error, ProcessFailed) and error.reported:
            return error.exit_code
        return _say(str(error), error.exit_code, error, debug)
    except KeyboardInterrupt:
        return _say(_GO_ON, INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        return FAILED
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error, file=sys.stderr)
            return REFUSED
        if hasattr(error, "format_message"):  # wrong usage, found by the argument parser
            return _say(_usage(error), REFUSED, error, debug)
        if type(error).__name__ == "Abort":
            return _say("interrupted", INTERRUPTED)
        info = str(error).strip().split("\n")[0] or "no message"
        message = f"failed: {type(error).__name__}: {info} (--debug shows where)"
        return _say(message, FAILED, error, debug)


def split_at_command(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options of modwright itself, and the command with all that follows.

    Example:
        >>> split_at_command(["--plugin", "parts.py", "inspect", "--json", "out"])
        (['--plugin', 'parts.py'], ['inspect', '--json', 'out'])
    """
    at = 0
    while at < len(arguments) and arguments[at].startswith("-"):
        at += 2 if arguments[at] == "--plugin" else 1
    return list(arguments[:at]), list(arguments[at:])


def _plugins_of(options: Sequence[str]) -> list[str]:
    words = iter(options)
    found = [
        next(words, "") if word == "--plugin" else word.partition("--plugin=")[2] for word in words
    ]
    return [plugin for plugin in found if plugin]


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The arguments, with ``edit MODEL --drop X`` written as ``edit drop MODEL --parts X``.

    Example:
        >>> spelled_out(["edit", "smollm2", "--drop", "mlp[2]", "-o", "out"])
        ['edit', 'drop', 'smollm2', '--parts', 'mlp[2]', '-o', 'out']
    """
    words = [re.sub(r"^--drop(?==|\Z)", "--parts", word) for word in arguments]
    if words[:1] != ["edit"] or words == list(arguments):
        return list(arguments)
    return ["edit", "drop", *words[1:]]


def _usage(error: Any) -> str:
    """The parser's message, with the commands, options or usage that there are."""
    message = " ".join(error.format_message().split()).rstrip(".")
    message = message[:1].lower() + message[1:]
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    command = context.command
    unknown = re.match("no such command '(.*?)'", message)
    if unknown:
        return str(unknown_name("command", unknown[1], sorted(command.commands)))
    options = sorted(max(p.opts, key=len) for p in command.params if p.opts[0].startswith("-"))
    if type(error).__name__ == "NoSuchOption":
        return str(unknown_name("option", error.option_name, [*options, "--debug", "--help"]))
    message = message.replace("Input should be", "must be").partition(", unable to parse")[0]
    # A word too many is mostly the value of an option that was not named.
    more = f"; options: {', '.join(options)}" if "extra argument" in message else ""
    return f"{message}; usage: {_shape(context)}{more}"


def _shape(context: Any) -> str:
    """A command with its arguments and the options that must be there."""
    parts = [context.command_path]
    for parameter in context.command.params:
        name = parameter.metavar or parameter.name.upper()
        if parameter.param_type_name == "argument":
            parts.append(name if parameter.required else f"[{name}]")
        elif parameter.required:
            parts.append(f"{parameter.opts[0]} {name}")
    return " ".join([*parts, "[options]"])


def _say(message: str, code: int, error: BaseException | None = None, debug: bool = False) -> int:
    if debug and error is not None:
        import traceback

        traceback.print_exception(error)
    print(f"modwright: {' '.join(message.splitlines())}", file=sys.stderr)
    return code


def main() -> None:
    """Entry point of the ``modwright`` script."""
    sys.exit(run_command(sys.argv[1:]))
