"""Words that choose parts of a model: ``attention[3,7]; mlp[2]; block[28:30]``.

A clause is a kind of part and, in brackets, layers: single ones (negative ones count from the end),
slices as in Python (``4:``, ``::2``), or ``*``. What matches nothing is an error.
"""

from __future__ import annotations

import re

from modwright.anatomy.anatomy import Anatomy
from modwright.anatomy.views import Block, Sublayer
from modwright.core.errors import InvalidInputError, unknown_name

__all__ = ["KINDS", "part_of", "pick_layers", "select"]

KINDS = ("attention", "mlp", "block")
_CLAUSE = re.compile(r"^([a-z_]+)\s*\[([^\[\]]*)\]$")
_SLICE = re.compile(r"^(-?\d*):(-?\d*)(?::(\d+))?$")


def select(anatomy: Anatomy, text: str) -> list[Block | Sublayer]:
    """The parts that ``text`` names, in its order.

    Raises:
        InvalidInputError: a clause that cannot be read, a part that is not there, or one that is
            named twice.

    Example:
        >>> import modwright
        >>> anatomy = modwright.open("preset:tiny-llama").anatomy
        >>> [part.address for part in select(anatomy, "attention[0, -1]; block[1:3]")]
        ['blocks.0.attention', 'blocks.3.attention', 'blocks.1', 'blocks.2']
    """
    clauses = [clause.strip() for clause in text.split(";") if clause.strip()]
    if not clauses:
        raise InvalidInputError(
            "the selector is empty; write for example 'attention[3,7]; block[28:30]'"
        )
    chosen: list[Block | Sublayer] = []
    for clause in clauses:
        match = _CLAUSE.match(clause)
        if match is None:
            raise InvalidInputError(
                f"cannot read {clause!r}; a clause is a kind and layers in brackets, such as "
                f"attention[3,7]; kinds are {', '.join(KINDS)}"
            )
        kind, inside = match.groups()
        if kind not in KINDS:
            raise unknown_name("kind of part", kind, KINDS)
        for index in pick_layers(inside, len(anatomy.blocks), clause):
            part = part_of(anatomy.blocks[index], kind)
            if part is None:
                gone = ", it was removed before" if kind in anatomy.family.block else ""
                raise InvalidInputError(f"{clause!r}: block {index} has no {kind}{gone}")
            chosen.append(part)
    addresses = [part.address for part in chosen]
    twice = next((a for a in addresses if addresses.count(a) > 1), None)
    if twice is not None:
        raise InvalidInputError(f"{text!r} names {twice} twice")
    return chosen


def part_of(block: Block, kind: str) -> Block | Sublayer | None:
    """What one of :data:`KINDS` means in a block: itself, or what stands at a place of it."""
    return block if kind == "block" else block.at(kind)


def pick_layers(text: str, layers: int, clause: str | None = None) -> list[int]:
    """The layers, of so many, that the inside of a pair of brackets names, in its order.

    Messages quote ``clause``, or ``text``.

    Raises:
        InvalidInputError: nothing is named, or what is named is not there.

    Example:
        >>> pick_layers("0, -1, 2:4", 6)
        [0, 5, 2, 3]
    """
    where = clause or text
    named: list[int] = []
    for item in (piece.strip() for piece in text.split(",")):
        found = range(layers) if item == "*" else _one(item, layers, where)
        if not found:
            raise InvalidInputError(
                f"{where!r}: {item!r} matches no layer; there are 0 to {layers - 1}"
            )
        named += found
    return named


def _one(item: str, layers: int, where: str) -> list[int] | range:
    if re.fullmatch(r"-?\d+", item):
        bounds = [int(item)]
        found: list[int] | range = [int(item) % layers]
    else:
        match = _SLICE.match(item)
        if match is None or match[3] == "0":
            raise InvalidInputError(
                f"{where!r}: cannot read {item or 'nothing'!r}; valid are 3, -1, 4:8, 4:, ::2 and *"
            )
        start, stop, step = (int(number) if number else None for number in match.groups())
        bounds = [number for number in (start, None if stop == layers else stop) if number]
        found = range(layers)[start:stop:step]
    for number in bounds:
        if not -layers <= number < layers:
            raise InvalidInputError(
                f"{where!r}: there is no layer {number}; there are 0 to {layers - 1}"
            )
    return found
