"""Texts by name come from packages that are there, and say which where they are not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from modwright.core.errors import InvalidInputError
from modwright.data import texts
from modwright.data.registry import datasets_of
from modwright.data.text_sources import load_text, read_text


@pytest.mark.parametrize(
    ("name", "least", "word"),
    [
        ("lee", 20_000, "Democrats"),
        ("lee-background", 300_000, "Afghan"),
        ("python-topics", 400_000, "comprehension"),
        ("sklearn-descr", 40_000, "Iris"),
    ],
)
def test_packaged_texts_are_there(name: str, least: int, word: str) -> None:
    text, facts = read_text(name)
    assert len(text) > least and word in text and facts["data"] == name
    assert "gensim" not in sys.modules


@pytest.mark.parametrize("name", ["lee", "lee-background", "sklearn-descr"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InvalidInputError, match="not installed: pip install --no-deps") as refusal:
        load_text(name)
    assert name in str(refusal.value)


def test_the_texts_of_a_package_are_whole_and_in_order() -> None:
    from pydoc_data.topics import topics

    assert load_text("python-topics") == "\n\n".join(topics[name] for name in sorted(topics))
    assert read_text("sklearn-descr")[1]["documents"].endswith("files joined by a blank line")


def test_fortunes_are_the_files_of_the_systems_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "_FORTUNES", str(tmp_path))
    (tmp_path / "art").write_text("One.\n%\nTwo.\n%\n")
    (tmp_path / "art.dat").write_bytes(b"\0\1")
    (tmp_path / "art.u8").symlink_to("art")
    (tmp_path / "wisdom").write_text("Three – with a dash.\n%\n", encoding="utf-8")
    assert load_text("fortunes") == "One.\n%\nTwo.\n%\n\n\nThree – with a dash.\n%\n"
    monkeypatch.setattr(texts, "_FORTUNES", str(tmp_path / "gone"))
    with pytest.raises(InvalidInputError, match="not installed: apt install fortunes"):
        load_text("fortunes")


def test_every_text_has_a_license_or_says_that_it_has_none() -> None:
    assert all(info.license and info.source for info in datasets_of("text").all().values())
