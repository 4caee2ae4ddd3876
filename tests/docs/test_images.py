"""The images of the tutorial: there, small, self-contained, and made from the page's commands."""

from __future__ import annotations

import html
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from documents import ROOT, pages

IMAGES = ROOT / "docs" / "images" / "tutorial"
USED = re.compile(r"\((?:docs/)?(?:\.\./)*images/tutorial/([\w.-]+)\)")


@pytest.fixture(scope="module")
def images() -> Any:
    spec = importlib.util.spec_from_file_location("make_images", ROOT / "docs" / "make_images.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    import sys

    sys.modules["make_images"] = module
    spec.loader.exec_module(module)
    return module


def test_every_image_is_used_and_they_are_small() -> None:
    there = {file.name: file.stat().st_size for file in IMAGES.iterdir()}
    used = {name for page in pages() for name in USED.findall(page.read_text(encoding="utf-8"))}
    assert used == set(there)
    assert sum(there.values()) < 1_500_000


def test_each_image_stands_below_a_command_of_its_own(images: Any) -> None:
    shots = list(images.shots())
    assert [shot.name for shot in shots] == ["inspect", "plan", "run", "report", "reload"]
    assert len({shot.block.line for shot in shots}) == len(shots)
    assert {f"{shot.name}.{shot.kind}" for shot in shots} == {f.name for f in IMAGES.iterdir()}


def test_terminals_show_commands_and_ask_for_no_font(images: Any) -> None:
    made = images.terminal("a-title", [("modwright x", "\x1b[1mbold\x1b[0m and plain\n")])
    assert "modwright" in made and "bold" in made and "a-title" in made
    assert "@font-face" not in made and "\x1b" not in made
    assert made == images.terminal("a-title", [("modwright x", "\x1b[1mbold\x1b[0m and plain\n")])


CELL = 12.2  # width of a letter in the images of a terminal


def test_fault_B13_every_line_of_a_terminal_is_whole_and_as_wide_as_its_letters(
    images: Any,
) -> None:
    long = " ".join(["from transformers import AutoModelForCausalLM"] * 4)
    made = images.terminal("a-title", [("modwright x", f"{long}\n{'x' * 230}\n")])
    drawn = {file.name: file.read_text(encoding="utf-8") for file in IMAGES.glob("*.svg")}
    for name, text in {"made": made, **drawn}.items():
        lines = re.findall(
            r'<text [^>]*x="([\d.]+)"[^>]*textLength="([\d.]+)"[^>]*>(.*?)</text>', text
        )
        assert lines, name
        for left, width, letters in lines:
            count = len(html.unescape(letters))
            assert float(width) == pytest.approx(CELL * count), (name, letters)
            assert float(left) + float(width) <= CELL * images.COLUMNS + 0.1, (name, letters)
    letters = "".join(re.findall(r"<text [^>]*>(.*?)</text>", made)).replace("&#160;", "")
    assert long.replace(" ", "") in letters and "x" * 230 in letters


def test_the_folder_of_a_command_is_not_shown(images: Any, tmp_path: Path) -> None:
    assert images.run("echo $PWD/first.log", tmp_path) == "first.log\n"


def test_terminals_fetch_nothing() -> None:
    for file in IMAGES.glob("*.svg"):
        text = file.read_text(encoding="utf-8")
        addresses = set(re.findall(r"https?://[^\s\"'<)]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}, file.name


@pytest.mark.slow
@pytest.mark.models
def test_the_image_of_the_parts_is_what_the_command_prints(images: Any, tmp_path: Path) -> None:
    images.make(["inspect"], tmp_path)
    assert (tmp_path / "inspect.svg").read_text() == (IMAGES / "inspect.svg").read_text()
