"""The table of what applies to each kind of component, asked of small examples of each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tables import code, table

__all__ = ["KINDS", "MAKERS", "answers"]

DECODER, ENCODER = "tiny-gpt2", "tiny-vit"
TOYS = Path(__file__).parents[2] / "tests" / "toy_components.py"
"""Components that the tests know, and the package does not."""

KINDS: dict[str, str] = {
    "token mixer with keys and values": "",
    "token mixer with a state": "toy_memory",
    "token mixer that keeps nothing": "toy_mean",
    "channel mixer with neurons": "",
    "channel mixer without neurons": "toy_turn",
    "activation, neurons independent": "toy_hinge",
    "activation that mixes neurons": "toy_share",
}
"""Kind -> the toy that stands for it; modwright's own attention and MLP have none."""


@dataclass(frozen=True)
class Column:
    """A kind of component with what was answered of it."""

    kind: str
    decoders: str | None
    answers: tuple[Any, ...]


@cache
def answers() -> tuple[Column, ...]:
    """All questions about one example of each kind. One that a decoder refuses is asked about
    where it stands in an encoder of images."""
    from modwright.core.registry import registries_restored

    with registries_restored():
        sys.path.insert(0, str(TOYS.parent))
        try:
            import toy_components  # noqa: F401
        finally:
            sys.path.remove(str(TOYS.parent))
        return tuple(_column(kind) for kind in KINDS)


def _column(kind: str) -> Column:
    import modwright
    from modwright.core.errors import VerificationError
    from modwright.papers.component_support import component_support

    refusal = None
    try:
        model, address = _example(kind, DECODER)
    except VerificationError as error:
        refusal = str(error).partition(": ")[2]
        model, address = _example(kind, ENCODER)
    assert modwright.Anatomy.of(model).part(address) is not None
    return Column(kind, refusal, tuple(component_support(model, address)))


def _example(kind: str, preset: str) -> tuple[Any, str]:
    """A tiny model with an example of the kind in its second block, and where it stands."""
    import modwright
    from modwright.edits import Change, Replace, keep_heads, keep_neurons
    from modwright.nn.component import COMPONENTS
    from modwright.surgery import make_method

    source = modwright.open(f"preset:{preset}").model
    block = modwright.Anatomy.of(source).blocks[1]
    toy = COMPONENTS[KINDS[kind]] if KINDS[kind] else None
    role = "attention" if kind.startswith("token") else "mlp"
    address = f"{block.address}.{role}"
    if toy is None:
        mlp = block.mlp
        change = (
            keep_heads(block.attention, [0, 1])
            if role == "attention"
            else keep_neurons(mlp, range(mlp.intermediate_size // 2))
        )
    elif toy.kind == "activation":
        change = make_method("replace_activation", activation=toy.name, blocks="1")
    else:
        width = {"hidden_size": block.mlp.hidden_size}
        values = toy.make(**width).state_dict()
        named = {f"{address}.{name}": value for name, value in values.items()}
        change = Change((Replace(address, toy.name, width),), named)
    return modwright.apply(source, change).model, address


def _rows() -> list[tuple[str, str]]:
    """What was asked, in order; an encoder is not asked to generate."""
    asked = dict.fromkeys((one.about, one.what) for column in answers() for one in column.answers)
    order = ["the part", "generation", "methods", "export"]
    return sorted(asked, key=lambda row: order.index(row[0]))


def _cells(about: str, what: str) -> Iterator[str]:
    for column in answers():
        found = [one for one in column.answers if (one.about, one.what) == (about, what)]
        if not found:
            yield "–"
            continue
        notes = ",".join(str(_numbered()[reason]) for reason in found[0].refusals)
        yield found[0].word + (f" <sup>{notes}</sup>" if notes else "")


@cache
def _numbered() -> dict[str, int]:
    """Every reason once, in the order of the table."""
    reasons: dict[str, None] = {}
    for column in answers():
        if column.decoders is not None:
            reasons[column.decoders] = None
    for about, what in _rows():
        for column in answers():
            for one in column.answers:
                if (one.about, one.what) == (about, what):
                    reasons.update(dict.fromkeys(one.refusals))
    return {reason: number for number, reason in enumerate(reasons, start=1)}


def _matrix() -> str:
    stands = [
        "yes" if c.decoders is None else f"no <sup>{_numbered()[c.decoders]}</sup>"
        for c in answers()
    ]
    lines = [
        ["**place**: in decoders", *stands],
        ["in encoders, image models", *["yes"] * len(stands)],
    ]
    last = ""
    for about, what in _rows():
        name = code(what) if about in ("methods", "export") else what
        lines.append([f"**{about}**: {name}" if about != last else name, *_cells(about, what)])
        last = about
    return table(["", *KINDS], lines)


def _reasons() -> str:
    return "\n".join(f"{number}. “{reason}”" for reason, number in _numbered().items())


MAKERS = {"component-kinds": _matrix, "component-reasons": _reasons}
