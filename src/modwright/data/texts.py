"""Texts by name, each of a package that many machines have: nothing is fetched."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from modwright.core.errors import InvalidInputError
from modwright.data.registry import dataset
from modwright.data.text_sources import Text, text_files

__all__ = ["default_texts", "fortunes", "held_out_texts", "inside_package", "lee"]
__all__ += ["lee_background", "python_topics", "sklearn_descr"]

_FORTUNES = "/usr/share/games/fortunes"
_NEWS = "news of the Australian Broadcasting Corporation, 2000 to 2001, in gensim"


def inside_package(what: str, package: str, place: str, distribution: str = "") -> Path:
    """A file or folder of an installed package, which is located and never imported."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    path = Path(folders[0] if folders else "", place)
    if not folders or not path.exists():
        raise InvalidInputError(
            f"{what} is {place} of the package {package}, which is not installed: "
            f"pip install --no-deps {distribution or package}"
        )
    return path


@dataset("lee", "text", license="not stated", source=_NEWS)
def lee() -> Text:
    """50 news items."""
    return text_files(inside_package("text 'lee'", "gensim", "test/test_data/lee.cor"), "latin-1")


@dataset("lee-background", "text", license="not stated", source=_NEWS)
def lee_background() -> Text:
    """300 news items, other ones than those of ``lee``."""
    place = inside_package("text 'lee-background'", "gensim", "test/test_data/lee_background.cor")
    return text_files(place, "latin-1")


@dataset(
    "python-topics",
    "text",
    license="PSF-2.0",
    source="the language reference of the Python that runs, by topic",
)
def python_topics() -> Text:
    """What ``help()`` knows of the language; it changes with the version of Python."""
    from pydoc_data.topics import topics

    return Text(tuple(topics[name] for name in sorted(topics)), "document")


@dataset(
    "sklearn-descr",
    "text",
    license="BSD-3-Clause",
    source="descriptions of the datasets that scikit-learn loads",
)
def sklearn_descr() -> Text:
    """What scikit-learn says of its datasets, a document each."""
    place = inside_package("text 'sklearn-descr'", "sklearn", "datasets/descr", "scikit-learn")
    files = sorted(place.glob("*.rst"))
    return Text(tuple(file.read_text("utf-8") for file in files), "file", encoding="utf-8")


@dataset("fortunes", "text", license="mixed", source="sayings of Debian's package fortunes")
def fortunes() -> Text:
    """Sayings between lines of ``%``, one document a file."""
    if not Path(_FORTUNES).is_dir():
        raise InvalidInputError(
            f"text 'fortunes' is {_FORTUNES} of the system's package fortunes, which is not "
            "installed: apt install fortunes"
        )
    return text_files(Path(_FORTUNES))


def default_texts() -> list[str]:
    """What is calibrated and healed on, in turn, where no text is named.

    Two origins: a cut that was calibrated on one newspaper costs other texts more than that one,
    and healing on the same newspaper closes little of their gap.

    Example:
        >>> default_texts()
        ['lee-background', 'python-topics']
    """
    return ["lee-background", "python-topics"]


def held_out_texts() -> list[str]:
    """What judges a healing where nothing is named: other news, and an origin of its own.

    Example:
        >>> set(held_out_texts()) & set(default_texts())
        set()
    """
    return ["lee", "sklearn-descr"]
