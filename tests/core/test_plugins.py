"""Plugins are imported once, under one name, when a registry is first asked; what fails is said."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modwright.core import plugin_modules
from modwright.core.errors import InvalidInputError
from modwright.core.plugin_modules import PLUGIN_MODULE
from modwright.core.plugins import (
    GROUP,
    VARIABLE,
    add_plugin,
    load_plugins,
    plugin_digests,
    plugin_in,
    plugin_names,
    plugins_restored,
)
from modwright.core.registry import Registry
from warm_processes import run_python

Write = Callable[..., Path]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[Any]]:
    """A registry that plugins find as ``shelf.TABLE``; they are forgotten afterwards."""
    made = Registry[Any]("book")
    shelf = type(sys)("shelf")
    shelf.TABLE, shelf.LOG = made, []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shelf", shelf)
    monkeypatch.delenv(VARIABLE, raising=False)
    with plugins_restored():
        yield made
    Registry._all.remove(made)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a plugin that registers under some names, and then does more."""

    def write(name: str, *names: str, more: str = "") -> Path:
        lines = ["from shelf import LOG, TABLE", "LOG.append(__name__)"]
        for one in names:
            lines += [f"@TABLE.register('{one}')", f"class {one.title()}:", "    pass"]
        (tmp_path / name).write_text("\n".join([*lines, more, ""]))
        return tmp_path / name

    return write


def log() -> list[str]:
    found: list[str] = sys.modules["shelf"].LOG
    return found


def test_a_file_is_imported_once_when_a_registry_is_first_asked(
    table: Registry[Any], write: Write
) -> None:
    other = Registry[Any]("other")
    name = add_plugin(write("novels.py", "emma"))
    add_plugin(name)
    assert log() == [] and plugin_names() == [name]
    assert not other.names(), "any registry may be asked"
    (module,) = log()
    assert module.startswith(f"{PLUGIN_MODULE}novels_") and table.names() == ["emma"]
    load_plugins()
    assert len(log()) == 1
    assert table.outside()["emma"].file == Path(name)
    Registry._all.remove(other)


def test_its_classes_are_found_again_by_name_in_another_process(
    table: Registry[Any], write: Write, tmp_path: Path
) -> None:
    file = write("poems.py")
    file.write_text("class Poem:\n    lines = 3\n")
    add_plugin(file)
    load_plugins()
    (module,) = (name for name in sys.modules if name.startswith(f"{PLUGIN_MODULE}poems_"))
    stored = tmp_path / "stored"
    stored.write_bytes(pickle.dumps(sys.modules[module].Poem()))
    code = (
        "import modwright, pickle, sys; one = pickle.load(open(sys.argv[1], 'rb'));"
        "print(one.lines, type(one).__module__, 'torch' in sys.modules)"
    )
    env = {**os.environ, VARIABLE: str(file)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(stored)], env=env, capture_output=True, text=True
    )
    assert done.stdout.split() == ["3", module, "False"], done.stderr


def test_the_variable_names_files_and_modules(
    table: Registry[Any], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("first.py", "one"), write("second.py", "two")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(VARIABLE, os.pathsep.join(["first.py", "", "second"]))
    assert table.names() == ["one", "two"]
    assert plugin_names() == [str(tmp_path / "first.py"), "second"]
    assert log()[1] == "second"
    monkeypatch.setenv(VARIABLE, "gone.py")
    with pytest.raises(InvalidInputError, match=r"^MODWRIGHT_PLUGINS: plugin 'gone.py': no such"):
        table.names()
    sys.modules.pop("second")


def test_entry_points_of_installed_packages_are_plugins(tmp_path: Path) -> None:
    (tmp_path / "bookshop").mkdir()
    (tmp_path / "bookshop" / "__init__.py").write_text(
        "from modwright.core.registry import Registry\nBOOKS = Registry('book')\n"
    )
    (tmp_path / "bookshop" / "fresh.py").write_text(
        "from bookshop import BOOKS\nBOOKS.add('emma', 1)\n"
    )
    info = tmp_path / "bookshop-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bookshop\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nfresh = bookshop.fresh\n")
    code = (
        "from bookshop import BOOKS; from modwright.core.handover import handover;"
        "print(BOOKS.names(), handover().plugins)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def run() -> Any:
        return subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=tmp_path
        )

    done = run()
    assert done.stdout.strip() == "['emma'] ()", done.stderr
    (tmp_path / "bookshop" / "fresh.py").write_text("1 / 0\n")
    assert (
        run()
        .stderr.splitlines()[-1]
        .endswith(
            "plugin 'fresh' of the package bookshop, fresh.py line 1: ZeroDivisionError: "
            "division by zero"
        )
    )


def test_a_plugin_that_asks_while_it_is_imported_gets_what_is_there(
    table: Registry[Any], write: Write
) -> None:
    add_plugin(write("asks.py", "one", more="assert TABLE.names() == ['one'] and 'one' in TABLE"))
    add_plugin(write("more.py", "two"))
    assert table.names() == ["one", "two"] and len(log()) == 2


def test_threads_that_ask_at_once_all_get_everything(table: Registry[Any], write: Write) -> None:
    add_plugin(write("slow.py", more="import time\ntime.sleep(0.05)\nTABLE.add('late', 1)"))
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(table.names())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["late"]] * 4 and len(log()) == 1


def test_a_file_that_is_imported_already_is_not_run_again(
    table: Registry[Any], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("known.py", "one")
    monkeypatch.syspath_prepend(tmp_path)
    import known  # type: ignore[import-not-found]

    add_plugin(file)
    assert table["one"] is known.One and log() == ["known"]
    del sys.modules["known"]


def test_a_file_that_is_imported_later_takes_the_place_of_its_plugin(
    table: Registry[Any], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_plugin(write("later.py", "one"))
    before = table["one"]
    monkeypatch.syspath_prepend(tmp_path)
    import later  # type: ignore[import-not-found]

    assert table["one"] is later.One is not before
    del sys.modules["later"]


def test_the_folder_of_a_package_is_one_plugin(table: Registry[Any], tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "__init__.py").write_text("from .shelves import TABLE\n")
    (tmp_path / "library" / "shelves.py").write_text("from shelf import TABLE\nTABLE.add('x', 1)\n")
    add_plugin(tmp_path / "library")
    assert table.names() == ["x"]
    (before,) = plugin_digests()
    (tmp_path / "library" / "shelves.py").write_text("")
    assert plugin_digests() != [before]


def test_the_digest_is_that_of_the_source(table: Registry[Any], write: Write) -> None:
    add_plugin(write("one.py", "one")), add_plugin(write("two.py", "two"))
    before = plugin_digests()
    load_plugins()
    assert plugin_digests() == before
    write("two.py", "two", more="# another line")
    assert plugin_digests()[0] == before[0] and plugin_digests()[1] != before[1]


def test_a_path_begins_where_it_is_written(tmp_path: Path) -> None:
    assert plugin_in(tmp_path, "parts.py") == str(tmp_path / "parts.py")
    assert plugin_in(tmp_path, "../parts.py") == f"{tmp_path}/../parts.py"
    assert plugin_in(tmp_path, "/else/parts.py") == "/else/parts.py"
    assert plugin_in(tmp_path, "my.parts") == "my.parts"


def test_plugins_of_a_block_are_forgotten_after_it(table: Registry[Any], write: Write) -> None:
    file = write("brief.py", "one")
    for times in (1, 2):
        with plugins_restored():
            add_plugin(file)
            assert table.names() == ["one"] and len(log()) == times
        assert table.names() == [] and plugin_names() == []
        assert not any(name.startswith(f"{PLUGIN_MODULE}brief") for name in sys.modules)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("1 / 0", "line 6: ZeroDivisionError: division by zero"),
        ("x = (\n", r"line \d: SyntaxError: .+"),
        ("import nonesuch", "line 6: ModuleNotFoundError: No module named 'nonesuch'"),
        ("TABLE.add('old', 2)", "line 6: a book called 'old' is registered already; choose .+"),
        ("raise SystemExit(3)", ": it ends the program when it is imported; put its work .+"),
        ("def f():\n    raise ValueError\nf()", "line 7: ValueError"),
    ],
)
def test_what_fails_inside_is_told_in_one_line_and_nothing_of_it_stays(
    more: str, told: str, table: Registry[Any], write: Write
) -> None:
    table.add("old", 1)
    add_plugin(write("good.py", "kept"))
    file = write("bad.py", "one", more=more)
    add_plugin(file)
    for _ in range(2):  # and the second time it is no other fault
        with pytest.raises(InvalidInputError, match=rf"^plugin '{file}'(, |){told}$") as refused:
            table.names()
        assert "\n" not in str(refused.value)
    assert sorted(table._entries) == ["kept", "old"]


def test_one_that_cannot_be_a_plugin_is_refused_when_it_is_named(
    table: Registry[Any], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write("parts.py"), (tmp_path / "notes.txt").write_text("")
    for given, told in {
        "part.py": "no such file (did you mean 'parts.py'?)",
        "./none/part.py": "no such file",
        str(tmp_path): "it is a folder without an __init__.py; name a file that ends with .py",
        "./notes.txt": "a plugin is a file that ends with .py, the folder of a package, "
        "or a module",
    }.items():
        with pytest.raises(InvalidInputError) as refused:
            add_plugin(given)
        assert str(refused.value) == f"plugin {given!r}: {told}"
    for given in ("", "two words", "a:b"):
        with pytest.raises(InvalidInputError, match="is neither a file that ends"):
            add_plugin(given)
    (tmp_path / "a:b.py").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be handed on"):
        add_plugin("a:b.py")
    add_plugin("parts")
    with pytest.raises(InvalidInputError) as refused:
        table.names()
    assert str(refused.value) == (
        "plugin 'parts': no module of this name can be imported; a file is named with its ending; "
        "there is a file parts.py"
    )


def test_a_name_of_the_package_is_not_taken_whichever_is_first(tmp_path: Path) -> None:
    file = tmp_path / "same.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from modwright.surgery import Requirements, WithoutData, register_method\n"
        "@register_method('llm_drop', requires=Requirements())\n"
        "@dataclass(frozen=True)\n"
        "class Mine(WithoutData):\n    pass\n"
    )
    code = "from modwright.surgery import method_names; method_names()"
    done = run_python(["-c", code], {**os.environ, VARIABLE: str(file)})
    assert done.stderr.splitlines()[-1].endswith(
        f"plugin '{file}', line 3: a method called 'llm_drop' is registered already, by "
        "modwright.surgery.llm_drop; choose another name"
    )


def test_there_is_one_finder() -> None:
    assert sum(type(one) is plugin_modules._Finder for one in sys.meta_path) == 1
