"""Single files that commands write: whole or not at all, and never over another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from modwright.core.errors import CheckpointError

__all__ = ["require_new", "whole_file"]


def require_new(out: Path, force: bool) -> None:
    """Refuses a place that is taken."""
    if out.is_dir():
        raise CheckpointError(f"cannot write {str(out)!r}: it is a directory; name a file")
    if out.exists() and not force:
        raise CheckpointError(f"{str(out)!r} exists; name another file, or replace it with --force")


def whole_file(out: Path, write: Callable[[Path], object]) -> None:
    """Writes beside the place and renames at the end."""
    partial = out.with_name(f".{out.name}.partial{out.suffix}")
    try:
        write(partial)
        partial.replace(out)
    except (OSError, RuntimeError) as error:
        told = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(f"cannot write {str(out)!r}: {told}") from error
    finally:
        partial.unlink(missing_ok=True)
