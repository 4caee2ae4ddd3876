"""Reads files that others wrote: only regular ones, of bounded size and depth, or a refusal."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import yaml

from modwright.core.errors import CheckpointError

__all__ = [
    "first_bytes",
    "parse_yaml",
    "read_json",
    "read_text",
    "read_yaml",
    "refuse_no_weights",
    "require_depth",
    "require_regular",
]

# The longest JSON files of a checkpoint are tokenizers and shard indices, of some ten megabytes.
_LONGEST = 2**28
_DEEPEST = 64
# Written by hand, or small: recipes, and what a method was asked.
_LONGEST_YAML = 2**18
_MOST_NODES = 2**17
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def require_regular(path: Path) -> int:
    """The size of a regular file; a pipe would be waited on for ever, a device never ends.

    Raises:
        CheckpointError: there is none, it is no regular file, or may not be looked at.

    Example:
        >>> require_regular(Path("/dev/null"))
        Traceback (most recent call last):
        modwright.core.errors.CheckpointError: /dev/null is a device, not a file
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} cannot be read: {told}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "something else")
        raise CheckpointError(f"{path} is {kind}, not a file")
    return found.st_size


def first_bytes(path: Path, count: int) -> bytes:
    """How a regular file begins.

    Raises:
        CheckpointError: it cannot be read.
    """
    require_regular(path)
    try:
        with path.open("rb") as stream:
            return stream.read(count)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def refuse_no_weights(path: Path) -> None:
    """Refuse what stands where weights should: a git-lfs pointer, a web page, a pipe.

    Raises:
        CheckpointError: names what the file is.
    """
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
    """The text of a regular file in UTF-8.

    Args:
        path: the file.
        longest: bytes that it may have.

    Raises:
        CheckpointError: it cannot be read, is too long, or is no text.
    """
    size = require_regular(path)
    if size > longest:
        raise CheckpointError(f"{path} has {size:,} bytes, more than the {longest:,} that are read")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not text in UTF-8") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def read_json(path: Path, longest: int = _LONGEST) -> Any:
    """The value of a JSON file.

    Raises:
        CheckpointError: it cannot be read, is too long, no JSON, or nested too deeply.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "some.json")
        >>> _ = file.write_text('{"layers": [1, 2]}')
        >>> read_json(file)
        {'layers': [1, 2]}
    """
    text = read_text(path, longest)
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise CheckpointError(f"{path} nests deeper than {_DEEPEST} levels") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    require_depth(value, str(path))
    return value


def require_depth(value: Any, name: str, deepest: int = _DEEPEST) -> None:
    """Refuse a value of lists and dicts that others would go through by recursion.

    Raises:
        CheckpointError: it nests deeper.
    """
    level = [value]
    for _ in range(deepest + 1):
        # A part that several name, as in YAML, is followed once.
        level = list(
            {
                id(part): part
                for one in level
                if isinstance(one, dict | list)
                for part in (one.values() if isinstance(one, dict) else one)
                if isinstance(part, dict | list)
            }.values()
        )
        if not level:
            return
    raise CheckpointError(f"{name} nests deeper than {deepest} levels")


def read_yaml(path: Path) -> Any:
    """The value of a YAML file.

    Raises:
        CheckpointError: it cannot be read, is too long, no YAML, or nested or repeated too much.
    """
    try:
        return parse_yaml(read_text(path, _LONGEST_YAML), str(path))
    except (yaml.YAMLError, ValueError) as error:
        told = str(error).split("\n")[0]
        raise CheckpointError(f"{path} is not valid YAML: {told}") from error


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML text, bounded in length, depth and in what its aliases repeat.

    Raises:
        CheckpointError: it is beyond the bounds.
        yaml.YAMLError: it is no YAML.

    Example:
        >>> parse_yaml("steps: [1, 2]", "recipe")
        {'steps': [1, 2]}
    """
    if len(text) > _LONGEST_YAML:
        raise CheckpointError(
            f"{name} has {len(text):,} characters, more than the {_LONGEST_YAML:,} that are read"
        )
    try:
        value = yaml.safe_load(text)
    except RecursionError as error:
        raise CheckpointError(f"{name} nests deeper than {_DEEPEST} levels") from error
    require_depth(value, name)
    if _nodes(value, {}) > _MOST_NODES:
        raise CheckpointError(f"{name} repeats its parts to more than {_MOST_NODES:,} values")
    return value


def _nodes(value: Any, known: dict[int, int]) -> int:
    """Values in a tree, one that is named twice counted twice."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_nodes(part, known) for part in parts)
    return known[id(value)]
