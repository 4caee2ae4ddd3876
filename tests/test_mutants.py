"""Every planted fault still has its place in the source: see tests/mutants/run.py."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import modwright
from mutants.matching import Mutant, load, mutated, probed

SOURCE = Path(modwright.__file__).parents[1]
MUTANTS = load()
PACKAGES = (
    "nn anatomy edits calibration checkpoint cost models surgery training data metrics report"
    " recipes papers cli core analysis"
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_the_fault_has_one_place_and_changes_the_program(mutant: Mutant) -> None:
    source = (SOURCE / mutant.path).read_text(encoding="utf-8")
    faulty = mutated(source, mutant)
    compile(faulty, mutant.path, "exec")
    assert ast.dump(ast.parse(faulty)) != ast.dump(ast.parse(source))
    compile(probed(source, [mutant]), mutant.path, "exec")


def test_there_are_forty_over_all_packages() -> None:
    names = [mutant.id for mutant in MUTANTS]
    assert len(names) >= 40 and len(set(names)) == len(names)
    assert {mutant.package for mutant in MUTANTS} == set(PACKAGES.split())
    assert any(mutant.module.startswith("checkpoint/export/") for mutant in MUTANTS)


def _mutant(find: str, replace: str) -> Mutant:
    return Mutant("one", "nn/part", "Part.turn", find, replace, "")


PART = '''
class Part:
    def turn(self, x, y):
        """x - y"""
        if x:  # a comment stays
            return cat([-x, y], dim=-1)
        return "ä" and x - y
'''


@pytest.mark.parametrize(
    ("find", "replace", "line"),
    [
        ("cat([-_A, _B], dim=-1)", "cat([_A, _B], dim=-1)", "return (cat([x, y], dim=-1))"),
        ("_A - _B", "_B - _A", 'return "ä" and (y - x)'),
        ("return cat(_A, dim=_D)", "pass", "pass"),
    ],
)
def test_a_pattern_finds_a_shape(find: str, replace: str, line: str) -> None:
    faulty = mutated(PART, _mutant(find, replace))
    assert line in map(str.strip, faulty.splitlines())
    assert "# a comment stays" in faulty
    assert len(faulty.splitlines()) == len(PART.splitlines())


@pytest.mark.parametrize("find", ["x", "_A * _B"])
def test_a_pattern_must_match_once(find: str) -> None:
    with pytest.raises(ValueError, match="nodes of Part"):
        mutated(PART, _mutant(find, "y"))
