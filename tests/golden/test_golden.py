"""Golden vectors: every file under tests/golden and under ``--golden-dir`` is a case."""

from __future__ import annotations

from pathlib import Path

import pytest

from golden_checks import GoldenCase, checker_of, golden_files
from modwright.papers import papers

OWN = Path(__file__).parent


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_file" in metafunc.fixturenames:
        others = [Path(tree) for tree in metafunc.config.getoption("golden_dir")]
        found = golden_files([OWN, *others])
        ids = [
            f"{'' if path.is_relative_to(OWN) else 'other-'}{path.parent.name}/{path.stem}"
            for path in found
        ]
        metafunc.parametrize("golden_file", found, ids=ids)


def test_every_tree_holds_cases(golden_dirs: list[Path]) -> None:
    for tree in golden_dirs:
        assert golden_files([tree]), f"{tree} holds no SLUG/NAME.safetensors"


def test_golden(golden_file: Path) -> None:
    slug = golden_file.parent.name
    if any(paper.slug == slug and paper.status == "planned" for paper in papers()):
        pytest.skip(f"the paper {slug} is planned: nothing computes what its vectors hold yet")
    case = GoldenCase.read(golden_file)
    checker_of(slug)(case)
    case.assert_complete()
