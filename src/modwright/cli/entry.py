"""Runs a command and turns what went wrong into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from modwright.errors import ModwrightError

__all__ = ["main", "run_command"]

FAILED, REFUSED, INTERRUPTED = 1, 2, 130


def run_command(arguments: Sequence[str]) -> int:
    """Runs ``modwright ARGUMENTS``.

    Returns:
        0 when done, 1 when the work failed, 2 when the input was refused.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    debug = "--debug" in arguments or bool(os.environ.get("MODWRIGHT_DEBUG"))
    kept = [argument for argument in arguments if argument != "--debug"]
    from modwright.cli.app import build

    command = build(kept)
    try:
        code = command.main(args=kept, prog_name="modwright", standalone_mode=False)
        return int(code or 0)
    except ModwrightError as error:
        return _say(str(error), error.exit_code, error, debug)
    except KeyboardInterrupt:
        return _say("interrupted; finished steps are kept, the same command goes on", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        return FAILED
    except Exception as error:
        if hasattr(error, "format_message"):  # wrong usage, found by the argument parser
            return _say(_usage(error), REFUSED, error, debug)
        if type(error).__name__ == "Abort":
            return _say("interrupted", INTERRUPTED)
        told = str(error).strip().split("\n")[0] or "no message"
        message = f"failed: {type(error).__name__}: {told} (--debug shows where)"
        return _say(message, FAILED, error, debug)


def _usage(error: Exception) -> str:
    """The parser's message, with the commands or options that there are."""
    message: str = error.format_message()  # type: ignore[attr-defined]
    message = " ".join(message.split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = getattr(context, "command", None)
    commands = getattr(command, "commands", None)
    if commands and "ommand" in message:
        return f"{message}; legal commands: {', '.join(sorted(commands))}"
    if command is not None and "ption" in message and "legal" not in message:
        names = [max(p.opts, key=len) for p in command.params if p.opts[0].startswith("-")]
        return f"{message}; legal options: {', '.join(sorted(names))}"
    if context is not None and "rgument" in message:
        return f"{message}; usage: {' '.join(context.get_usage().split()[1:])}"
    return message


def _say(message: str, code: int, error: BaseException | None = None, debug: bool = False) -> int:
    if debug and error is not None:
        import traceback

        traceback.print_exception(error)
    print(f"modwright: {message}", file=sys.stderr)
    return code


def main() -> None:
    """Entry point of the ``modwright`` script."""
    sys.exit(run_command(sys.argv[1:]))
