"""A recipe file as plain values, and for each of them where it was written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from modwright.core.errors import CheckpointError, InvalidInputError, nearest
from modwright.core.plugins import plugin_in
from modwright.core.reading import parse_yaml, require_regular

__all__ = ["Lines", "Location", "Positions", "extended", "override", "read_changed"]
__all__ += ["set_value"]

Location = tuple[str | int, ...]
Positions = dict[Location, str]


class Lines(NamedTuple):
    """Where the values of a recipe were written, and what it is called where that is unknown."""

    positions: Positions
    name: str

    def of(self, at: Location) -> str:
        """Of a value, or else of the nearest mapping or list around it."""
        around = (at[:n] for n in range(len(at), -1, -1))
        return next((self.positions[one] for one in around if one in self.positions), self.name)


def read_changed(path: str | Path, overrides: Iterable[str]) -> tuple[Any, Positions, str]:
    """What a recipe file holds once the overrides are applied, where it stands, and its name."""
    file = Path(path)
    tree, positions = _read_tree(file)
    for text in overrides:
        override(tree, positions, text)
    return tree, positions, file.name


def _read_tree(file: Path, extended_by: tuple[Path, ...] = ()) -> tuple[Any, Positions]:
    """The values of a YAML file, over those of the file that it extends, and their places."""
    try:
        place = file.resolve()
    except (OSError, RuntimeError):
        raise CheckpointError(f"cannot read {str(file)!r}: its links lead in a circle") from None
    if place in extended_by:
        raise InvalidInputError(
            f"{file.name}: extends goes in a circle; a file cannot extend itself"
        )
    text = _text(file, extended_by)
    try:
        tree = parse_yaml(text, file.name)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidInputError(f"{file.name}{_yaml_problem(error)}") from None
    positions: Positions = {}
    if node is not None:
        _note_positions(node, (), positions, file.name, set())
    return extended(tree, positions, file.parent, (*extended_by, place)), positions


def extended(
    tree: Any, positions: Positions, folder: Path, extended_by: tuple[Path, ...] = ()
) -> Any:
    """A recipe over the file that it extends; that and its plugins are relative to ``folder``.

    Raises:
        CheckpointError: the file cannot be read.
        InvalidInputError: it is no name of a file, or files extend each other.
    """
    if isinstance(tree, dict) and isinstance(tree.get("plugins"), list):
        tree["plugins"] = [
            plugin_in(folder, one) if isinstance(one, str) else one for one in tree["plugins"]
        ]
    if not isinstance(tree, dict) or "extends" not in tree:
        return tree
    parent = tree.pop("extends")
    if not isinstance(parent, str):
        raise InvalidInputError(
            f"{positions[('extends',)]}, extends: must name one recipe file, not {parent!r}"
        )
    base, base_positions = _read_tree(folder / parent, extended_by)
    return _merged(base, tree, (), base_positions, positions)


def override(tree: Any, positions: Positions, text: str) -> None:
    """Changes one value: ``steps.0.n=6``; the value is read as YAML."""
    path, equals, value = text.partition("=")
    said = f"--set {text!r}"
    if not equals or not all(path.split(".")):
        raise InvalidInputError(f"{said}: write KEY=VALUE, for example steps.0.n=6")
    try:
        parsed = parse_yaml(value, said)
    except (yaml.YAMLError, ValueError):
        raise InvalidInputError(
            f"{said}: {value!r} is not a YAML value; put text into quotes"
        ) from None
    set_value(tree, positions, path, parsed, said)


def set_value(tree: Any, positions: Positions, path: str, value: Any, said: str) -> None:
    """Puts a value at a dotted path; ``said`` is where it was written.

    Raises:
        InvalidInputError: a value on the way has nothing below it.
    """
    here = tree
    at: Location = ()
    for piece in path.split("."):
        if at:
            if isinstance(here, dict) and here.get(at[-1]) is None:
                here[at[-1]] = {}
            here = here[at[-1]]
        at = (*at, _key(here, piece, at, said))
    here[at[-1]] = value
    for place in [place for place in positions if place[: len(at)] == at]:
        del positions[place]
    positions[at] = said


def _key(here: Any, piece: str, at: Location, said: str) -> str | int:
    """The key of ``here`` that a piece of a dotted path means."""
    name = ".".join(map(str, at)) or "the recipe"
    if isinstance(here, list):
        if not piece.isdecimal() or int(piece) >= len(here):
            entries = f"the entries 0 to {len(here) - 1}" if here else "no entries"
            raise InvalidInputError(f"{said}: {name} has {entries}, not {piece!r}")
        return int(piece)
    if not isinstance(here, dict):
        raise InvalidInputError(f"{said}: {name} is {here!r} and has nothing below it")
    return piece


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
        found = sorted(file.parent.iterdir())
    except OSError:
        return ""
    stems = {entry.stem: entry for entry in found if entry.suffix in (".yaml", ".yml")}
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
    node: yaml.Node, at: Location, positions: Positions, name: str, seen: set[int]
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
    base: Any, change: Any, at: Location, base_positions: Positions, positions: Positions
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
            positions |= {p: said for p, said in base_positions.items() if p[: len(here)] == here}
    return whole
