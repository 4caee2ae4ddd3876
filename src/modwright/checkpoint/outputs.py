"""Output directories that appear whole or not at all.

An output is written into a hidden directory beside its place and renamed at the end. A lock file
beside it keeps two runs from one place; what a killed run left is cleaned up by the next.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modwright.checkpoint.wording import format_bytes
from modwright.core.errors import CheckpointError, WriteFailed

__all__ = ["alone_at", "require_space", "tidy_after_killed", "whole_directory"]

_CLOCK_SLACK = 2.0  # seconds by which a process's start time may be reported differently
_YOUNG = 60.0  # seconds a lock without readable content is taken for one that is being written


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
    _refuse_danger(place, str(out), keep)
    partial = place.with_name(f".{place.name}.partial-{os.getpid()}")
    kind = CheckpointError
    try:
        with alone_at(place, str(out)):
            _tidy(place)
            _refuse_existing(place, str(out), force)
            partial.mkdir()
            kind = WriteFailed
            try:
                yield partial
                _swap(partial, place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise kind(f"cannot write {str(out)!r}: {error.strerror or error}") from error


@contextmanager
def alone_at(place: Path, given: str) -> Iterator[None]:
    """Keep other runs from ``place`` while the block runs; missing parents are made.

    Args:
        place: need not exist; the lock stands beside it.
        given: the output as the user named it, for the message to the other run.

    Raises:
        CheckpointError: another run holds the place.
    """
    made = _make_parents(place)
    try:
        with _locked(place, given):
            yield
    finally:
        for parent in made:
            # Only those that stayed empty go.
            with suppress(OSError):
                parent.rmdir()


def tidy_after_killed(place: Path) -> None:
    """Takes back what a killed run left beside an output; nothing while another run is at work.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp(), "out")
        >>> place.with_name(".out.partial-4194305").mkdir()
        >>> tidy_after_killed(place)
        >>> list(place.parent.iterdir())
        []
    """
    with suppress(CheckpointError), alone_at(place, str(place)):
        _tidy(place)


def require_space(folder: Path, needed: int, what: str) -> int:
    """Refuse to start writing ``needed`` bytes where they do not fit.

    Returns:
        Bytes that are free there.

    Raises:
        CheckpointError: with both figures.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"{what} needs {format_bytes(needed)} on disk and {format_bytes(free)} are free there"
        )
    return free


def _refuse_danger(place: Path, given: str, keep: tuple[Path, ...]) -> None:
    """An output never replaces a directory that other things live in."""
    for path, what in [
        (Path.cwd(), "the working directory"),
        *((path, "its source") for path in keep),
    ]:
        inside = path.resolve()
        if place in inside.parents or (place == inside and path == Path.cwd()):
            raise CheckpointError(
                f"cannot write {given!r}: {what} is in it; name a new directory below it"
            )


def _make_parents(place: Path) -> list[Path]:
    """Make missing parents; returns those made, innermost first, to be taken back on failure."""
    made = []
    for parent in place.parents:
        if parent.exists():
            break
        made.append(parent)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot make the directory {str(place.parent)!r}: {error.strerror or error}"
        ) from error
    return made


def _refuse_existing(place: Path, given: str, force: bool) -> None:
    if place.exists() and not place.is_dir():
        raise CheckpointError(f"cannot write {given!r}: it is a file; name a directory")
    if place.exists() and any(place.iterdir()) and not force:
        raise CheckpointError(
            f"{given!r} exists and is not empty; name another directory, or replace it with "
            "force=True (--force)"
        )


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


@contextmanager
def _locked(place: Path, given: str) -> Iterator[None]:
    lock = place.with_name(f".{place.name}.lock")
    try:
        _acquire(lock, given)
    except OSError as error:
        raise CheckpointError(f"cannot write {given!r}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _acquire(lock: Path, given: str) -> None:
    while True:
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            holder = _holder(lock)
            if holder is not None:
                raise CheckpointError(
                    f"another run ({holder}) is writing {given!r}; wait for it or name another "
                    "directory"
                ) from None
            # Renaming picks one winner among runs that find the same stale lock.
            with suppress(FileNotFoundError):
                stale = lock.with_name(f"{lock.name}.stale-{os.getpid()}")
                lock.replace(stale)
                stale.unlink()
            continue
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            json.dump({"pid": os.getpid(), "started": _started(os.getpid())}, stream)
        return


def _holder(lock: Path) -> str | None:
    """Who holds the lock, or None when that process is gone."""
    try:
        content = json.loads(lock.read_text(encoding="ascii"))
        pid = content if isinstance(content, int) else int(content["pid"])
        recorded = None if isinstance(content, int) else content.get("started")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        with suppress(FileNotFoundError):
            if time.time() - lock.stat().st_mtime < _YOUNG:
                return "just started"
        return None
    started = _started(pid)
    if started is None or (recorded is not None and abs(started - recorded) > _CLOCK_SLACK):
        return None
    return f"process {pid}"


def _started(pid: int) -> float | None:
    """When a process began, which tells it from a later one with the same number; None if gone."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time())
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return 0.0
