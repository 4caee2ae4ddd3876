"""A recipe file as plain values, and for each of them where it was written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from modwright.core.errors import CheckpointError, InvalidInputError, nearest
from modwright.core.reading import parse_yaml, require_regular

__all__ = ["EvalPositions", "Location", "override", "read_changed", "read_tree"]

Location = tuple[str | int, ...]
EvalPositions = dict[Location, str]

_ENDINGS = (".yaml", ".yml")


def read_tree(file: Path, extended_by: tuple[Path, ...] = ()) -> tuple[Any, EvalPositions]:
    """The values of a YAML file, and the place of each: ``"recipe.yaml line 3"``.

    A key ``extends`` names another file, relative to this one, that this one changes.

    Raises:
        CheckpointError: a file cannot be read.
        InvalidInputError: it is not YAML, gives a key twice, or extends itself.
    """
    try:
        file.resolve()
    except (OSError, RuntimeError):
        raise CheckpointError(f"cannot read {str(file)!r}: its links lead in a circle") from None
    if file.resolve() in extended_by:
        raise InvalidInputError(
            f"{file.name}: extends goes in a circle; a file cannot extend itself"
        )
    text = _text(file, extended_by)
    try:
        tree = parse_yaml(text, file.name)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidInputError(f"{file.name}{_yaml_problem(error)}") from None
    positions: EvalPositions = {}
    if node is not None:
        _note_positions(node, (), positions, file.name, set())
    if not isinstance(tree, dict) or "extends" not in tree:
        return tree, positions
    parent = tree.pop("extends")
    if not isinstance(parent, str):
        raise InvalidInputError(
            f"{positions[('extends',)]}, extends: must name one recipe file, not {parent!r}"
        )
    base, base_positions = read_tree(file.parent / parent, (*extended_by, file.resolve()))
    return _merged(base, tree, (), base_positions, positions), positions


def read_changed(path: str | Path, overrides: Iterable[str]) -> tuple[Any, EvalPositions, str]:
    """What a recipe file holds once the overrides are applied, where it stands, and its name.

    Raises:
        CheckpointError: the file cannot be read.
        InvalidInputError: an override does not fit.
    """
    file = Path(path)
    tree, positions = read_tree(file)
    for text in overrides:
        override(tree, positions, text)
    return tree, positions, file.name


def override(tree: Any, positions: EvalPositions, text: str) -> None:
    """Changes one value: ``steps.0.n=6``; the value is read as YAML.

    Raises:
        InvalidInputError: no ``=``, a place that is not there, or a value that is not YAML.
    """
    path, equals, value = text.partition("=")
    keys = path.split(".")
    said = f"--set {text!r}"
    if not equals or not all(keys):
        raise InvalidInputError(f"{said}: write KEY=VALUE, for example steps.0.n=6")
    try:
        parsed = parse_yaml(value, said)
    except (yaml.YAMLError, ValueError):
        raise InvalidInputError(
            f"{said}: {value!r} is not a YAML value; put text into quotes"
        ) from None
    here, at = tree, _Walk(said)
    for piece in keys[:-1]:
        key = at.enter(here, piece)
        if isinstance(here, dict) and here.get(key) is None:
            here[key] = {}
        here = here[key]
    here[at.enter(here, keys[-1])] = parsed
    where = tuple(at.path)
    for place in [place for place in positions if place[: len(where)] == where]:
        del positions[place]
    positions[where] = said


class _Walk:
    """Goes down a tree along the pieces of a dotted path."""

    def __init__(self, said: str) -> None:
        self.said = said
        self.path: list[str | int] = []

    def enter(self, here: Any, piece: str) -> Any:
        """The key of ``here`` that ``piece`` means."""
        name = ".".join(map(str, self.path)) or "the recipe"
        key: str | int = piece
        if isinstance(here, list):
            if not piece.isdecimal() or int(piece) >= len(here):
                entries = f"the entries 0 to {len(here) - 1}" if here else "no entries"
                raise InvalidInputError(f"{self.said}: {name} has {entries}, not {piece!r}")
            key = int(piece)
        elif not isinstance(here, dict):
            raise InvalidInputError(f"{self.said}: {name} is {here!r} and has nothing below it")
        self.path.append(key)
        return key


def _text(file: Path, extended_by: tuple[Path, ...]) -> str:
    info = f"cannot read the recipe {str(file)!r}"
    if extended_by:
        info += f", which {extended_by[-1].name} extends"
    try:
        if file.exists() and not file.is_dir():
            require_regular(file)
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{info}: no such file{_nearest_file(file)}") from None
    except IsADirectoryError:
        raise CheckpointError(f"{info}: it is a directory; a recipe is a YAML file") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{info}: it is not text in UTF-8; a recipe is YAML") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{info}: {getattr(error, 'strerror', None) or error}") from None


def _nearest_file(file: Path) -> str:
    """The YAML file whose name is most like this one's, apart from the ending."""
    try:
        found = [entry for entry in sorted(file.parent.iterdir()) if entry.suffix in _ENDINGS]
    except OSError:
        return ""
    stems = {entry.stem: entry for entry in found}
    near = nearest(file.stem, stems, cutoff=0.6)
    return f" (did you mean {str(stems[near[0]])!r}?)" if near else ""


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f" line {mark.line + 1}" if mark is not None else ""
    problem = getattr(error, "problem", None) or str(error).split("\n")[0]
    if "'\\t'" in problem:
        problem += "; indent with spaces, not with tabs"
    return f"{line}: not valid YAML: {problem}"


def _note_positions(
    node: yaml.Node, at: Location, positions: EvalPositions, name: str, seen: set[int]
) -> None:
    positions.setdefault(at, f"{name} line {node.start_mark.line + 1}")
    if id(node) in seen:
        return  # an alias: it may hold itself
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            place = f"{name} line {key.start_mark.line + 1}"
            if here in positions and key.tag != "tag:yaml.org,2002:merge":
                path = ".".join(map(str, here))
                raise InvalidInputError(
                    f"{place}, {path}: stands in {positions[here]} already; keep one"
                )
            positions[here] = place
            _note_positions(value, here, positions, name, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_positions(value, (*at, index), positions, name, seen)


def _merged(
    base: Any, change: Any, at: Location, base_positions: EvalPositions, positions: EvalPositions
) -> Any:
    """``change`` over ``base``: mappings key by key, all else as a whole."""
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    whole: dict[Any, Any] = {}
    for key in dict.fromkeys((*base, *change)):
        here = (*at, str(key))
        if key in base and key in change:
            whole[key] = _merged(base[key], change[key], here, base_positions, positions)
        elif key in change:
            whole[key] = change[key]
        else:
            whole[key] = base[key]
            kept = {p: said for p, said in base_positions.items() if p[: len(here)] == here}
            positions.update(kept)
    return whole
