"""The project speaks of itself alone, and says in one place what it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import modwright
from modwright.checkpoint import ALIASES

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
THIS = "tests/test_project.py"

# Paths of one machine, hosts from which packages were fetched, private addresses, loose ends.
_HOSTS = r"pypi|files\.pythonhosted|registry\.npmjs|download\.pytorch"
_PRIVATE = r"10|192\.168|172\.(?:1[6-9]|2\d|3[01])"
FORBIDDEN = {
    "path of one machine": r"(?<![\w./-])/(?:root|work|workspace|mnt)/\w",
    "temporary path": r"(?<![\w./-])/tmp/\w",
    "host of packages": rf"(?:{_HOSTS})\.(?:org|com)",
    "index of packages": r"--(?:extra-)?index-url|--trusted-host",
    "private address": rf"\b(?:{_PRIVATE})(?:\.\d+){{2,3}}\b",
    "placeholder": r"(?m)^@[A-Z]{3,}@$",
    "unfinished work": r"\b(?:TODO|FIXME|XXX)\b",
}


def tracked() -> list[Path]:
    """What belongs to the project: as git has it, or all files where this is no checkout."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git checkout")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def texts() -> list[tuple[str, str]]:
    found = []
    for file in tracked():
        name = file.relative_to(ROOT).as_posix()
        content = file.read_bytes()
        if b"\0" not in content and name != THIS:
            found.append((name, content.decode("utf-8")))
    return found


@pytest.mark.parametrize("what", FORBIDDEN)
def test_files_hold_no(what: str) -> None:
    hits = []
    for name, text in texts():
        for match in re.finditer(FORBIDDEN[what], text):
            line = text.count("\n", 0, match.start()) + 1
            hits.append(f"{name}:{line}: {match[0]}")
    assert hits == []


@pytest.mark.parametrize(
    ("what", "text", "word"),
    [
        ("path of one machine", "see /{}/models", "root"),
        ("temporary path", "open('/{}/x')", "tmp"),
        ("host of packages", "https://{}.org/packages", "files.pythonhosted"),
        ("index of packages", "install --extra-{} x", "index-url"),
        ("private address", "http://10.{}:80", "1.2.3"),
        ("placeholder", "a\n@{}@\nb", "FIGURE"),
        ("unfinished work", "# {}: more", "TO" + "DO"),
    ],
)
def test_the_search_finds(what: str, text: str, word: str) -> None:
    assert re.search(FORBIDDEN[what], text.format(word))
    assert not re.search(FORBIDDEN[what], text.format("..."))


def test_no_large_files_are_tracked() -> None:
    """Packaged models of the project's own have 4 MB each, all files together."""
    own = [
        ROOT / "src" / a.package / a.inside for a in ALIASES.values() if a.package == "modwright"
    ]
    models = [[file for file in tracked() if place in file.parents] for place in own]
    assert models and all(0 < sum(f.stat().st_size for f in m) <= 4_000_000 for m in models)
    others = set(tracked()).difference(*models)
    sizes = {file.relative_to(ROOT).as_posix(): file.stat().st_size for file in others}
    assert {name: size for name, size in sizes.items() if size > 2_000_000} == {}


def test_files_end_with_one_newline_and_have_no_carriage_returns() -> None:
    wrong = [
        name
        for name, text in texts()
        if text and (not text.endswith("\n") or text.endswith("\n\n") or "\r" in text)
    ]
    assert wrong == []


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return found


def test_the_version_is_in_one_place_and_in_the_changelog() -> None:
    version = modwright.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(?:[abrc.]+\w+)?", version)
    told = project()
    assert told["project"]["dynamic"] == ["version"]  # type: ignore[index]
    path = told["tool"]["hatch"]["version"]["path"]  # type: ignore[index]
    assert f'__version__ = "{version}"' in (ROOT / path).read_text()
    heading = rf"(?m)^## \[?{re.escape(version)}\]?(?: |$)"
    assert re.search(heading, (ROOT / "CHANGELOG.md").read_text())


def test_the_script_is_the_command_line() -> None:
    scripts = project()["project"]["scripts"]  # type: ignore[index]
    assert scripts == {"modwright": "modwright.cli:main"}


@pytest.mark.contract("D5")
def test_both_ends_of_the_supported_transformers_have_an_environment() -> None:
    """`make test` runs on the newer one, `make test-oldest` on the bound that users may have."""
    lower = re.search(r'"transformers>=([\d.]+),', (ROOT / "pyproject.toml").read_text())
    assert lower is not None

    def locked(name: str) -> str:
        found = re.search(r"^transformers==([\d.]+)$", (ROOT / name).read_text(), re.M)
        assert found is not None, name
        return found[1]

    oldest = locked("requirements-oldest.lock")
    assert oldest.startswith(lower[1])
    assert tuple(map(int, oldest.split("."))) < tuple(
        map(int, locked("requirements.lock").split("."))
    )
    assert "test-oldest:" in (ROOT / "Makefile").read_text()
    # Its own tests are those of the transformers that is installed.
    assert locked("requirements-transformers.lock") == locked("requirements.lock")


@pytest.mark.contract("K2")
def test_the_direction_of_imports_is_held() -> None:
    contracts = project()["tool"]["importlinter"]["contracts"]  # type: ignore[index]
    layers = next(contract for contract in contracts if contract["type"] == "layers")
    named = set(re.findall(r"modwright\.(\w+)", " ".join(layers["layers"])))
    package = ROOT / "src" / "modwright"
    packages = {place.name for place in package.iterdir() if (place / "__init__.py").exists()}
    assert packages <= named, f"packages without a place: {packages - named}"


def test_tests_mirror_the_packages() -> None:
    package = ROOT / "src" / "modwright"
    packages = {place.name for place in package.iterdir() if (place / "__init__.py").exists()}
    missing = {room for room in packages if not list((ROOT / "tests" / room).glob("test_*.py"))}
    assert missing == set()


def test_no_two_test_modules_of_plain_folders_share_a_name() -> None:
    # pytest imports those under their bare names, so the second of two would not be collected
    plain = [
        path
        for path in (ROOT / "tests").rglob("test_*.py")
        if not (path.parent / "__init__.py").exists()
    ]
    names = [path.name for path in plain]
    assert not {name for name in names if names.count(name) > 1}


def test_every_module_says_what_it_is() -> None:
    silent = [
        file.relative_to(ROOT).as_posix()
        for file in sorted((ROOT / "src").rglob("*.py"))
        if not file.read_text().lstrip().startswith(('"""', 'r"""'))
    ]
    assert silent == []
