import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modwright.core.errors import InvalidInputError
from modwright.core.registry import Registry, registries_restored


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with a registry, a file that registers, a subpackage, and one that never should."""
    root = tmp_path / "shelf"
    (root / "deeper").mkdir(parents=True)
    (root / "__init__.py").write_text(
        "from modwright.core.registry import Registry\n"
        "BOOKS = Registry('book', __name__, prefix='')\n"
        "TALES = Registry('tale', __name__, prefix='tale_')\n"
    )
    (root / "novel.py").write_text(
        "from shelf import BOOKS\nBOOKS.add('novel', 1)\nassert 'novel' in BOOKS\n"
    )
    (root / "tale_of_two.py").write_text("from shelf import TALES\nTALES.add('two', 2)\n")
    (root / "deeper" / "__init__.py").write_text("")
    (root / "deeper" / "poem.py").write_text("from shelf import BOOKS\nBOOKS.add('poem', 3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "shelf"
    for name in [name for name in sys.modules if name.split(".")[0] == "shelf"]:
        del sys.modules[name]
    for registry in [r for r in Registry._all if r.package == "shelf"]:
        Registry._all.remove(registry)


def test_files_of_a_package_are_imported_when_a_name_is_first_asked_for(package: str) -> None:
    from shelf import BOOKS, TALES  # type: ignore[import-not-found]

    assert not any(name.startswith("shelf.") for name in sys.modules)
    assert TALES.names() == ["two"]
    assert "shelf.novel" not in sys.modules, "its name has another beginning"
    assert BOOKS.names() == ["novel", "poem"] and "poem" in BOOKS
    assert BOOKS["poem"] == 3 and BOOKS.all() == {"novel": 1, "poem": 3}


def test_a_file_that_fails_is_tried_again_and_never_forgotten(package: str, tmp_path: Path) -> None:
    broken = tmp_path / "shelf" / "broken.py"
    broken.write_text("raise RuntimeError('out of print')\n")
    from shelf import BOOKS

    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of print"):
            BOOKS.names()
    broken.unlink()
    assert BOOKS.names() == ["novel", "poem"]


def test_a_name_is_taken_once_and_the_same_thing_may_come_again() -> None:
    table = Registry[object]("part")
    thing = table.add("norm", object)
    assert table.add("norm", thing) is thing
    with pytest.raises(
        InvalidInputError, match=r"a part called 'norm' is registered already, by builtins;"
    ):
        table.add("norm", int)
    table.add("norm", int, again=lambda old: old is object)
    assert table["norm"] is int


def test_unknown_names_are_answered_with_all_and_the_nearest() -> None:
    table = Registry[int]("norm")
    table.add("layer", 1)
    table.add("batch", 2)
    with pytest.raises(InvalidInputError) as refused:
        table["bach"]
    assert str(refused.value) == (
        "unknown norm 'bach'; valid values: batch, layer (did you mean 'batch'?)"
    )


def test_what_was_registered_or_lost_meanwhile_is_as_before() -> None:
    table, other = Registry[int]("a"), Registry[int]("b")
    table.add("one", 1)
    with pytest.raises(ValueError, match="stop"), registries_restored():
        table.add("two", 2)
        other.add("three", 3)
        raise ValueError("stop")
    assert table.all() == {"one": 1} and not other.all()
    with table.restored(empty=True) as empty:
        assert not empty.names()
    assert table.names() == ["one"]


def test_every_table_of_the_package_is_a_registry() -> None:
    from modwright.anatomy.families import BY_MODULES, MODEL_TYPES
    from modwright.checkpoint.export.target import TARGETS
    from modwright.checkpoint.source import PRESETS
    from modwright.edits.registry import PARTS
    from modwright.models.registry import MODELS
    from modwright.surgery.method import METHODS

    known = [BY_MODULES, MODEL_TYPES, TARGETS, PRESETS, PARTS, MODELS, METHODS]
    assert all(registry in Registry._all for registry in known)
    assert len({registry.what for registry in known}) == len(known)
    assert all(registry.names() for registry in known if registry is not PRESETS)


def test_a_registry_that_is_made_within_a_block_forgets_what_others_registered() -> None:
    with registries_restored():
        made: Registry[int] = Registry("toy")
        made.add("one", 1)
        assert made.names() == ["one"]
    assert made.names() == []
