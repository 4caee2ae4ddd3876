"""What goes wrong with files while statistics are written, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from modwright.core.errors import WriteFailed

__all__ = ["writing"]


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Around the writing of files that a stopped run goes on from.

    Raises:
        WriteFailed: the disk is full, or the place cannot be written.

    Example:
        >>> with writing(Path("/proc/there")):
        ...     _ = Path("/proc/there").write_text("x")
        Traceback (most recent call last):
        ...
        modwright.core.errors.WriteFailed: cannot write in '/proc/there': No such file ...; ...
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        told = getattr(error, "strerror", None) or str(error).strip()
        raise WriteFailed(
            f"cannot write in {str(place)!r}: {told}; what is finished is kept there, and the same "
            "command goes on from it"
        ) from error
