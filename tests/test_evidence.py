"""The evidence of every paper is complete, current and as good as the paper's page claims."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import evidence
from evidence import ROOT, command, digest_of, holds, ledger, measured_again, with_evidence
from modwright.papers import Paper

WRITTEN = with_evidence()


def required(file: Path) -> list[str]:
    """Names of the tests that CI runs; others are measured for pages alone."""
    tree, shared = (ast.parse(one.read_text()) for one in (file, file.with_name("figures.py")))
    named = (node for node in (*tree.body, *shared.body) if isinstance(node, ast.Assign))
    skips = {ast.unparse(n.targets[0]) for n in named if "skipif" in ast.unparse(n.value)}

    def always_runs(test: ast.FunctionDef) -> bool:
        marks = [ast.unparse(mark) for mark in test.decorator_list]
        return not any("skipif" in mark or mark in skips for mark in marks)

    tests = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return [test.name for test in tests if test.name.startswith("test_") and always_runs(test)]


@pytest.mark.parametrize("record", WRITTEN, ids=lambda record: record.slug)
def test_every_acceptance_test_has_evidence_that_holds(record: Paper) -> None:
    assert record.acceptance is not None
    found = {item.partition("[")[0] for item in ledger(record.slug)}
    missing = set(required(ROOT / record.acceptance)) - found
    assert not missing, f"no evidence for {sorted(missing)}; {command(record.slug)} writes it"
    for item, line in ledger(record.slug).items():
        for pair in line["compared"]:
            assert holds(pair["found"]), f"{record.slug}, {item}: {pair}"


@pytest.mark.parametrize("record", WRITTEN, ids=lambda record: record.slug)
def test_evidence_is_of_the_sources_as_they_are(record: Paper) -> None:
    stale = {
        line["item"] for line in ledger(record.slug).values() if line["digest"] != digest_of(record)
    }
    assert not stale, (
        f"what {record.slug} is made of has changed since {sorted(stale)} were measured; "
        f"measure again with: {command(record.slug)}"
    )


def test_comparisons_are_read() -> None:
    assert holds("1.13 <= 1.25") and holds("1 == 1") and holds("-1 < (3 - 2.5) <= 0.5")
    assert holds("(91.0 - 90.9) >= 0.5") is False
    assert holds("'a' == 'a'") is None and holds("tensor(1.) < 2") is None and holds("1 <") is None


def test_layout_and_docstrings_do_not_change_a_digest() -> None:
    plain = evidence._meaning("def f(x):\n    return x + 1\n")
    assert (
        evidence._meaning('"""M."""\ndef f( x ):\n    """F."""\n    return (x+1)  # c\n') == plain
    )
    assert evidence._meaning("def f(x):\n    return x + 2\n") != plain


def test_two_papers_are_measured_again_within_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {slug: f"tests/acceptance/{slug}.py" for slug in ("a", "b", "c", "new")}
    slugs = {file: slug for slug, file in files.items()}
    monkeypatch.setattr(evidence, "paper_of", slugs.get)
    monkeypatch.setattr(evidence, "EVIDENCE", tmp_path)
    monkeypatch.setattr(
        evidence, "ledger", lambda slug: {f"test_{i}": {"seconds": 100.0} for i in range(3)}
    )
    for slug in ("a", "b", "c"):
        (tmp_path / f"{slug}.jsonl").touch()
    items = [(file, f"test_{i}") for file in files.values() for i in range(3)]
    seen = set()
    for commit in "0123456789":
        monkeypatch.setattr(evidence, "_commit", lambda commit=commit: commit)
        kept = measured_again(items)
        again = {(file, test) for file, test in kept if file != files["new"]}
        assert len(kept) - len(again) == 3 and len(again) == 2
        assert len({file for file, _ in again}) <= 2
        seen |= {slugs[file] for file, _ in again}
    assert seen == {"a", "b", "c"}
