"""What acceptance tests measured, written down, so that CI need not measure all of it every time.

``make figures SLUG=smt`` runs the acceptance tests of a paper and appends a line for each to
``tests/evidence/smt.jsonl``: what was compared with what, the processor seconds, the versions, and
a digest of the sources that the record names and of the test itself. A fast test holds that every
acceptance test has such a line, that its comparisons hold, and that its digest is that of the files
as they are. CI measures two papers again, chosen by the commit. Papers without a file of evidence
are measured every time.
"""

from __future__ import annotations

import ast
import hashlib
import json
import operator
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from modwright.papers import Paper, paper, papers

__all__ = ["BUDGET", "Ledger", "digest_of", "holds", "measured_again", "paper_of", "with_evidence"]

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "tests" / "evidence"
BUDGET = 240.0
"""Processor seconds for what is measured again."""


def command(slug: str) -> str:
    """What writes the evidence of a paper anew."""
    return f"make figures SLUG={slug}"


def with_evidence() -> list[Paper]:
    """Papers whose acceptance tests were written down, one for each file of tests."""
    owners = (paper_of(record.acceptance) for record in papers() if record.acceptance is not None)
    return [paper(slug) for slug in dict.fromkeys(owners) if slug and ledger_file(slug).exists()]


def ledger_file(slug: str) -> Path:
    return EVIDENCE / f"{slug}.jsonl"


@cache
def ledger(slug: str) -> dict[str, dict[str, Any]]:
    """Test of a paper, by the end of its node id -> its newest line."""
    lines = ledger_file(slug).read_text(encoding="utf-8").splitlines()
    return {line["item"]: line for line in map(json.loads, lines)}


@cache
def paper_of(file: str) -> str | None:
    """The first paper whose acceptance tests are in this file, a path from the root.

    Papers that share a file share its evidence, under the name of the first.
    """
    return next((record.slug for record in papers() if record.acceptance == file), None)


# Digests


def digest_of(record: Paper) -> str:
    """Of what its modules and its acceptance tests say; comments, docstrings and layout aside.

    The modules are those of all papers that share the tests.
    """
    assert record.acceptance is not None
    sharing = (other for other in papers() if other.acceptance == record.acceptance)
    files = [_source(module) for module in sorted({m for other in sharing for m in other.modules})]
    files.append(ROOT / record.acceptance)
    found = hashlib.sha256()
    for file in files:
        found.update(_meaning(file.read_text(encoding="utf-8")).encode())
    return found.hexdigest()[:16]


def _source(module: str) -> Path:
    place = ROOT.joinpath("src", *module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _meaning(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            del node.body[0]
    return ast.dump(tree)


# Comparisons, as pytest explains asserts that hold: "(91.4 - 90.2) >= 0.5"

_COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    ast.LtE: operator.le,
    ast.Lt: operator.lt,
    ast.GtE: operator.ge,
    ast.Gt: operator.gt,
    ast.Eq: operator.eq,
}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def holds(comparison: str) -> bool | None:
    """Whether a comparison of numbers holds; None for a text that is none.

    Example:
        >>> holds("(91.5 - 90.5) >= 0.5"), holds("1.3 <= 1.25"), holds("all(...)")
        (True, False, None)
    """
    try:
        tree = ast.parse(comparison.strip(), mode="eval").body
        if not isinstance(tree, ast.Compare):
            return None
        values = [_number(node) for node in (tree.left, *tree.comparators)]
        tests = [_COMPARISONS[type(op)] for op in tree.ops]
    except (SyntaxError, KeyError):
        return None
    return all(test(a, b) for test, a, b in zip(tests, values, values[1:]))


def _number(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand)
    if isinstance(node, ast.BinOp):
        return float(_ARITHMETIC[type(node.op)](_number(node.left), _number(node.right)))
    raise KeyError(type(node))


# Writing


class Ledger:
    """A plugin of pytest that notes what the tests of one paper compare, and appends it."""

    def __init__(self, slug: str) -> None:
        self.record = paper(slug)
        self.compared: dict[str, list[dict[str, str]]] = {}
        self.seconds: dict[str, float] = {}
        self.passed: set[str] = set()

    def pytest_assertion_pass(self, item: Any, lineno: int, orig: str, expl: str) -> None:
        first = expl.splitlines()[0]
        if holds(first) is not None:
            self.compared.setdefault(item.nodeid, []).append({"claim": orig, "found": first})

    def pytest_runtest_logreport(self, report: Any) -> None:
        taken = getattr(report, "processor_seconds", 0.0)
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + taken
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        file = ledger_file(self.record.slug)
        file.parent.mkdir(exist_ok=True)
        shared = {
            "command": command(self.record.slug),
            "versions": {name: version(name) for name in ("torch", "transformers")}
            | {"python": platform.python_version()},
            "digest": digest_of(self.record),
        }
        with file.open("a", encoding="utf-8") as out:
            for nodeid in sorted(self.passed):
                line = {
                    "item": nodeid.partition("::")[2],
                    "compared": self.compared.get(nodeid, []),
                    "seconds": round(self.seconds[nodeid], 1),
                    **shared,
                }
                out.write(json.dumps(line) + "\n")


# What CI measures again


def measured_again(items: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Of acceptance tests, as (file, test), those that CI runs at this commit.

    All of papers without evidence; of two of the others, those that fit into the budget together.
    """
    listed = [(file, test, paper_of(file)) for file, test in items]
    written = {slug for *_, slug in listed if slug and ledger_file(slug).exists()}
    chosen = sorted(written, key=_drawn)[:2]
    kept, left = {(file, test) for file, test, slug in listed if slug not in written}, BUDGET
    again = [entry for entry in listed if entry[2] in chosen]
    for file, test, slug in sorted(again, key=lambda e: (chosen.index(str(e[2])), _drawn(e[1]))):
        seconds = ledger(str(slug)).get(test, {}).get("seconds", BUDGET)
        if seconds <= left:
            left -= seconds
            kept.add((file, test))
    return kept


def _drawn(word: str) -> bytes:
    """A place in an order that changes with every commit."""
    return hashlib.sha256((_commit() + word).encode()).digest()


@cache
def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def main() -> int:
    """``python tests/evidence.py SLUG``, or ``all`` papers that work: measure and write down."""
    if sys.argv[1] == "all":  # each in a process of its own, as the first use of a model costs more
        named = {record.acceptance or "" for record in papers()}
        slugs = sorted(str(paper_of(f)) for f in named if f.startswith("tests/acceptance/"))
        runs = [subprocess.run([sys.executable, __file__, slug], check=False) for slug in slugs]
        return max(done.returncode for done in runs)
    import pytest

    acceptance = paper(sys.argv[1]).acceptance
    if acceptance is None:
        print(f"{sys.argv[1]} has no acceptance test", file=sys.stderr)
        return 2
    os.environ.pop("MODWRIGHT_FIGURES", None)  # as CI measures it, and not as pages quote it
    options = ["-q", "--full", "-p", "no:cacheprovider", str(ROOT / acceptance)]
    return int(pytest.main(options, plugins=[Ledger(str(paper_of(acceptance)))]))


if __name__ == "__main__":
    sys.exit(main())
