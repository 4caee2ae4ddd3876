"""Every file and directory that is written appears whole or not at all.

What is written stands under a hidden name beside its place and is renamed at the end. A lock keeps
two runs from one output directory; what a killed run left is cleaned up by the next.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from modwright.core.errors import CheckpointError, WriteFailed, reason
from modwright.core.formatting import format_bytes

__all__ = ["alone_at", "read_json", "require_new", "require_new_directory", "require_space"]
__all__ += ["tidy_after_killed", "whole_directory", "write_file", "writing"]

_PATIENCE = 0.2  # seconds for a lock that is being given back
_OF_FILES = (OSError, SafetensorError)  # how libraries say that they could not write


def write_file(
    out: str | os.PathLike[str],
    content: str | bytes | Callable[[Path], object],
    *,
    kept_in: Path | None = None,
) -> Path:
    """Writes a file that is whole or not there; an older one stays until the new one is whole.

    Args:
        out: the file; its directory exists.
        content: text, bytes, or what writes to the path that it is given, as ``torch.save`` does
            with large tensors: nothing is copied here.
        kept_in: where finished work is kept that the same command goes on from; messages say so.

    Raises:
        CheckpointError: nothing can be written there.
        WriteFailed: it cannot be written to its end, mostly because the disk is full.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp(), "notes.txt")
        >>> write_file(place, lambda partial: partial.write_bytes(b"two")).read_text()
        'two'
        >>> [file.name for file in place.parent.iterdir()]
        ['notes.txt']
    """
    place = Path(out)
    partial = place.with_name(f".{place.name}.partial{place.suffix}")
    kind = CheckpointError
    try:
        partial.touch()
        kind = WriteFailed
        if callable(content):
            content(partial)
        else:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(place)
    except (*_OF_FILES, RuntimeError) as error:  # torch.save raises the last where the disk is full
        if kept_in is not None:
            raise _to_go_on(kept_in, error) from error
        raise kind(f"cannot write {str(out)!r}: {reason(error)}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return place


def read_json(file: Path) -> Any:
    """What a JSON file holds; None where there is no such file, or none that can be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Around the writing of files that a stopped run goes on from."""
    try:
        yield
    except _OF_FILES as error:
        raise _to_go_on(place, error) from error


def _to_go_on(place: Path, error: BaseException) -> WriteFailed:
    return WriteFailed(
        f"cannot write in {str(place)!r}: {reason(error)}; what is finished is kept there, and "
        "the same command goes on from it"
    )


def require_new(out: Path, force: bool) -> None:
    """Refuses a file that is there, unless by ``force``, or that is a directory."""
    if out.is_dir():
        raise CheckpointError(f"cannot write {str(out)!r}: it is a directory; name a file")
    if out.exists() and not force:
        raise CheckpointError(f"{str(out)!r} exists; name another file, or replace it with --force")


def require_new_directory(out: str | os.PathLike[str], force: bool = False) -> None:
    """Refuses a directory that holds something, unless by ``force``, or that is a file."""
    place = Path(out).expanduser()
    if place.exists() and not place.is_dir():
        raise CheckpointError(f"cannot write {str(out)!r}: it is a file; name a directory")
    if place.exists() and any(place.iterdir()) and not force:
        raise CheckpointError(
            f"{str(out)!r} exists and is not empty; name another directory, or replace it with "
            "force=True (--force)"
        )


def require_space(folder: Path, needed: int, what: str) -> int:
    """The bytes that are free in a folder; refuses more that are needed, with both figures."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"{what} needs {format_bytes(needed)} on disk and {format_bytes(free)} are free there"
        )
    return free


@contextmanager
def whole_directory(
    out: str | os.PathLike[str], *, force: bool = False, keep: tuple[Path, ...] = ()
) -> Iterator[Path]:
    """Give a fresh directory to write into; it becomes ``out`` when the block ends well.

    When the block raises, nothing is left and an older ``out`` is untouched.

    Args:
        out: the directory to make; missing parents are made too.
        force: allow an ``out`` that holds files; it is removed once the new one is in its place.
        keep: paths that replacing ``out`` must not remove, sources above all.

    Raises:
        CheckpointError: ``out`` is in use, is not empty, is a file, or cannot be made.
        WriteFailed: it cannot be written on, mostly because the disk is full.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp(), "out")
        >>> with whole_directory(place) as folder:
        ...     _ = (folder / "report.json").write_text("{}")
        ...     place.exists()
        False
        >>> [file.name for file in place.iterdir()]
        ['report.json']
    """
    place = Path(out).expanduser().resolve()
    here, sources = Path.cwd().resolve(), [path.resolve() for path in keep]
    within = {"the working directory": [here, *here.parents]}
    within["its source"] = [parent for source in sources for parent in source.parents]
    for what, parents in within.items():
        if place in parents:
            raise CheckpointError(
                f"cannot write {str(out)!r}: {what} is in it; name a new directory below it"
            )
    partial = place.with_name(f".{place.name}.partial-{os.getpid()}")
    kind = CheckpointError
    try:
        with alone_at(place, str(out)):
            _tidy(place)
            require_new_directory(out, force)
            partial.mkdir()
            kind = WriteFailed
            try:
                yield partial
                _swap(partial, place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise kind(f"cannot write {str(out)!r}: {reason(error)}") from error


@contextmanager
def alone_at(place: Path, given: str) -> Iterator[None]:
    """Keep other runs from ``place`` while the block runs; missing parents are made.

    It need not exist: the lock stands beside it. Another run is refused in a line that names the
    output as it was ``given``.
    """
    made = list(takewhile(lambda parent: not parent.exists(), place.parents))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot make the directory {str(place.parent)!r}: {reason(error)}"
        ) from error
    file = place.with_name(f".{place.name}.lock")
    try:
        lock = _acquired(file, given)
        try:
            yield
        finally:
            # Before it is let go: who waits for it sees that its file is gone, and makes a new one.
            # Where an open file cannot be removed it stays, and holds nobody.
            with suppress(OSError):
                file.unlink(missing_ok=True)
            lock.release()
    finally:
        for parent in made:
            with suppress(OSError):  # only those that stayed empty go
                parent.rmdir()


def tidy_after_killed(place: Path) -> None:
    """Takes back what a killed run left beside an output; nothing while another run is at work."""
    with suppress(CheckpointError), alone_at(place, str(place)):
        _tidy(place)


def _swap(partial: Path, place: Path) -> None:
    """Put the finished directory in its place; the old one goes only after that."""
    if not place.exists():
        partial.replace(place)
        return
    old = place.with_name(f".{place.name}.old-{os.getpid()}")
    place.replace(old)
    try:
        partial.replace(place)
    except BaseException:
        old.replace(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _tidy(place: Path) -> None:
    """Take back what a run left that was killed while it held the lock, as we hold it now."""
    for left in place.parent.glob(f".{place.name}.old-*"):
        if place.exists():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.replace(place)
    for left in place.parent.glob(f".{place.name}.partial-*"):
        shutil.rmtree(left, ignore_errors=True)


def _acquired(file: Path, given: str) -> Any:
    """The lock of the system on a file, which ends with the process however it ends.

    Who holds it is written down for the message to others; the lock holds without it.
    """
    import filelock

    lock = filelock.FileLock(file, timeout=_PATIENCE)
    try:
        lock.acquire()
    except filelock.Timeout:
        found = None
        with suppress(OSError):
            found = re.match(r"\d+", file.read_text(encoding="ascii", errors="replace"))
        holder = f" (process {found[0]})" if found else ""
        raise CheckpointError(
            f"another run{holder} is writing {given!r}; wait for it or name another directory"
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot write {given!r}: {reason(error)}") from error
    with suppress(OSError):
        # Where the system has no locks, filelock itself has written down who it is.
        if str(os.getpid()) not in file.read_text(encoding="ascii", errors="replace").split():
            file.write_text(f"{os.getpid()}\n", encoding="ascii")
    return lock
