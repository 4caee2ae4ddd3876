"""Reads regular files that others wrote, of bounded size and depth, or raises CheckpointError."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import yaml

from modwright.core.errors import CheckpointError, reason

__all__ = ["first_bytes", "parse_yaml", "read_json", "read_text", "read_yaml"]
__all__ += ["refuse_no_weights", "require_depth", "require_regular"]

# The longest JSON files of a checkpoint are tokenizers and shard indices, of some ten megabytes.
_LONGEST = 2**28
_DEEPEST = 64
# Written by hand, or small: recipes, and what a method was asked.
_LONGEST_YAML = 2**18
_MOST_NODES = 2**17
_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_KINDS |= {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def require_regular(path: Path) -> int:
    """The size of a regular file; a pipe would be waited on for ever, a device never ends.

    Example:
        >>> require_regular(Path("/dev/null"))
        Traceback (most recent call last):
        modwright.core.errors.CheckpointError: /dev/null is a device, not a file
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise CheckpointError(f"{path} is {kind}, not a file")
    return found.st_size


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read: {reason(error)}")


def first_bytes(path: Path, count: int) -> bytes:
    """How a regular file begins."""
    require_regular(path)
    try:
        with path.open("rb") as stream:
            return stream.read(count)
    except OSError as error:
        raise _unreadable(path, error) from error


def refuse_no_weights(path: Path) -> None:
    """Refuse what stands where weights should: a git-lfs pointer, a web page, a pipe."""
    begin = first_bytes(path, 512).lstrip().lower()
    if begin.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` in its directory"
        )
    if begin.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page, not the weights; download the file itself")
    if not begin:
        raise CheckpointError(f"{path} is empty; copy or download it again")


def read_text(path: Path, longest: int = _LONGEST) -> str:
    """The text of a regular file in UTF-8, of so many bytes at most."""
    size = require_regular(path)
    if size > longest:
        raise CheckpointError(f"{path} has {size:,} bytes, more than the {longest:,} that are read")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not text in UTF-8") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def read_json(path: Path, longest: int = _LONGEST) -> Any:
    """The value of a JSON file that is not too long, nor nested too deeply."""
    text = read_text(path, longest)
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise _too_deep(str(path)) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    require_depth(value, str(path))
    return value


def require_depth(value: Any, name: str) -> None:
    """Refuse a deep value of lists and dicts, which others would go through by recursion."""
    level = {id(value): value}
    for _ in range(_DEEPEST + 1):
        # A part that several name, as in YAML, is followed once.
        level = {
            id(part): part
            for one in level.values()
            for part in _parts(one)
            if isinstance(part, dict | list)
        }
        if not level:
            return
    raise _too_deep(name)


def _too_deep(name: str) -> CheckpointError:
    return CheckpointError(f"{name} nests deeper than {_DEEPEST} levels")


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def read_yaml(path: Path) -> Any:
    """The value of a YAML file, within the bounds of :func:`parse_yaml`."""
    try:
        return parse_yaml(read_text(path, _LONGEST_YAML), str(path))
    except (yaml.YAMLError, ValueError) as error:
        told = str(error).split("\n")[0]
        raise CheckpointError(f"{path} is not valid YAML: {told}") from error


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML text, bounded in length, depth and in what its aliases repeat.

    What is no YAML raises ``yaml.YAMLError``.
    """
    if len(text) > _LONGEST_YAML:
        raise CheckpointError(
            f"{name} has {len(text):,} characters, more than the {_LONGEST_YAML:,} that are read"
        )
    try:
        value = yaml.safe_load(text)
    except RecursionError as error:
        raise _too_deep(name) from error
    require_depth(value, name)
    if _nodes(value, {}) > _MOST_NODES:
        raise CheckpointError(f"{name} repeats its parts to more than {_MOST_NODES:,} values")
    return value


def _nodes(value: Any, known: dict[int, int]) -> int:
    """Values in a tree, one that is named twice counted twice."""
    if id(value) not in known:
        known[id(value)] = 1 + sum(_nodes(part, known) for part in _parts(value))
    return known[id(value)]
