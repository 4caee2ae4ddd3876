"""Plugins: files and modules of users that register things, imported once and under one name.

A plugin is named by an entry point of an installed package (group ``modwright.plugins``), in the
variable ``MODWRIGHT_PLUGINS`` (files or modules, separated as in ``PATH``), on the command line, in
a recipe, or by :func:`add_plugin`. All are imported when a registry is first asked.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from modwright.core.errors import InvalidInputError, ModwrightError, did_you_mean, first_line
from modwright.core.plugin_modules import PLUGIN_MODULE
from modwright.core.registry import Origin, Registry

__all__ = ["GROUP", "GUARD", "VARIABLE", "add_plugin", "is_of_plugin", "load_plugins"]
__all__ += ["added_plugins", "plugin_being_loaded", "plugin_digests", "plugin_in", "plugin_names"]
__all__ += ["plugins_restored", "spec_of_plugin"]

GROUP = "modwright.plugins"
"""The group of entry points of packages that bring plugins."""

VARIABLE = "MODWRIGHT_PLUGINS"
"""The environment variable that names plugins."""

GUARD = "if __name__ == '__main__':"
"""Where a file has the work that it does not do when it is imported."""


@dataclass(frozen=True)
class _Plugin:
    """A plugin: how it is named to other processes, what it is imported as, and its file.

    What an entry point names has no file here, as it is found again by every process.
    """

    name: str
    module: str
    file: Path | None
    said: str


def add_plugin(plugin: str | os.PathLike[str], folder: Path | None = None) -> str:
    """Makes a plugin known; it is imported when a registry is next asked.

    Args:
        plugin: a file that ends with .py, the folder of a package, or the name of a module.
        folder: where a relative path begins; the working directory by default.

    Returns:
        How it is named in any process: the whole path of the file, or the module's name.

    Raises:
        InvalidInputError: there is no such file, or it cannot be one.

    Example:
        >>> import tempfile
        >>> from modwright.edits.registry import part_names
        >>> file = Path(tempfile.mkdtemp(), "my_parts.py")
        >>> _ = file.write_text(
        ...     "from torch import nn\\n"
        ...     "from modwright.edits import register_part\\n"
        ...     "@register_part('my_tanh')\\n"
        ...     "def my_tanh(config):\\n"
        ...     "    return nn.Tanh()\\n"
        ... )
        >>> with plugins_restored():
        ...     _ = add_plugin(file)
        ...     "my_tanh" in part_names()
        True
    """
    found = _plugin(plugin, folder)
    if found.name not in [one.name for one in _added]:
        _added.append(found)
    return found.name


def load_plugins() -> None:
    """Imports the plugins that are known and were not imported yet.

    A plugin that asks a registry while it is imported gets what is there by then.

    Raises:
        InvalidInputError: one cannot be imported; says in which line and why. Nothing that it had
            registered by then stays.
    """
    if plugin_being_loaded() is None:
        for plugin in _known():
            if plugin.name not in _loaded:
                _load(plugin)


def plugin_being_loaded() -> str | None:
    """The plugin that this thread is importing now."""
    found: _Plugin | None = getattr(_under_way, "plugin", None)
    return None if found is None else found.said


def plugin_names() -> list[str]:
    """The plugins that were named, as ``MODWRIGHT_PLUGINS`` names them in another process.

    Those of entry points are left out: every process finds them itself.
    """
    return [one.name for one in _named()]


def is_of_plugin(origin: Origin) -> bool:
    """Whether code is that of a plugin, so that every process that is told of plugins knows it."""
    if any(one.file == origin.file is not None for one in _named()):
        return True
    modules = [one.module for one in _known()]
    return any(origin.module == one or origin.module.startswith(f"{one}.") for one in modules)


def added_plugins() -> list[str]:
    """The plugins that :func:`add_plugin` made known, in order."""
    return [one.name for one in _added]


def plugin_digests() -> list[str]:
    """For each plugin that was named the digest of its source: it changes under the same name."""
    from modwright.core.digest import sha256_of  # `import modwright` is quick without it

    return [sha256_of(*(file.read_bytes() for file in _sources(one))) for one in _named()]


def plugin_in(folder: Path, plugin: str) -> str:
    """A plugin as a file in ``folder`` names it, as it is named anywhere.

    Example:
        >>> plugin_in(Path("/home"), "parts.py"), plugin_in(Path("/home"), "my.parts")
        ('/home/parts.py', 'my.parts')
    """
    return str(folder.absolute() / Path(plugin).expanduser()) if _names_file(plugin) else plugin


@contextmanager
def plugins_restored() -> Iterator[None]:
    """Plugins that are added within the block are forgotten afterwards, with what they registered.

    Modules that were named, and not files, stay imported and registered.
    """
    added, loaded = list(_added), set(_loaded)
    try:
        yield
    finally:
        gone = {_module_name(Path(one)) for one in _loaded - loaded if Path(one).is_absolute()}
        _added[:] = added
        _loaded.intersection_update(loaded)
        for registry in Registry.every():
            for name, origin in registry.outside().items():
                if origin.module.partition(".")[0] in gone:
                    registry.forget(name)
        for module in [name for name in sys.modules if name.partition(".")[0] in gone]:
            del sys.modules[module]


_added: list[_Plugin] = []
_loaded: set[str] = set()
_under_way = threading.local()


def _plugin(given: str | os.PathLike[str], folder: Path | None = None, where: str = "") -> _Plugin:
    """A plugin by its path or name; messages begin with ``where``."""
    text = os.fspath(given)
    if not isinstance(given, os.PathLike) and not _names_file(text):
        if not all(part.isidentifier() for part in text.split(".")):
            raise InvalidInputError(
                f"{where}plugin {text!r} is neither a file that ends with .py nor a module"
            )
        return _Plugin(text, text, None, repr(text))
    place = Path(folder or Path.cwd(), Path(text).expanduser())
    with suppress(OSError, RuntimeError):
        place = place.resolve()
    file = place / "__init__.py" if place.is_dir() else place
    if not file.is_file() or file.suffix != ".py":
        raise InvalidInputError(f"{where}plugin {text!r}: {_no_file(place)}")
    if os.pathsep in str(place):
        raise InvalidInputError(
            f"{where}plugin {text!r}: a path with {os.pathsep!r} in it cannot be handed on to "
            "other processes"
        )
    return _Plugin(str(place), _module_name(place), file, repr(text))


def _names_file(text: str) -> bool:
    return text.endswith(".py") or "/" in text or os.sep in text


def _no_file(place: Path) -> str:
    if place.is_dir():
        return "it is a folder without an __init__.py; name a file that ends with .py"
    if place.exists():
        return "a plugin is a file that ends with .py, the folder of a package, or a module"
    near = [entry.name for entry in place.parent.glob("*.py")] if place.parent.is_dir() else []
    return f"no such file{did_you_mean(place.name, near)}"


def _module_name(place: Path) -> str:
    """The same for the same path in every process, so that what is pickled is found again."""
    from modwright.core.digest import sha256_of

    return f"{PLUGIN_MODULE}{re.sub('[^0-9A-Za-z_]', '_', place.stem)}_{sha256_of(str(place))[:8]}"


def _named() -> list[_Plugin]:
    """Those of the variable, then those that were added."""
    return list(
        {one.name: one for one in (*_of_variable(os.environ.get(VARIABLE, "")), *_added)}.values()
    )


def _known() -> list[_Plugin]:
    return [*_entry_points(), *_named()]


@cache
def _of_variable(value: str) -> tuple[_Plugin, ...]:
    found = (text.strip() for text in value.split(os.pathsep))
    return tuple(_plugin(text, where=f"{VARIABLE}: ") for text in found if text)


@cache
def _entry_points() -> tuple[_Plugin, ...]:
    from importlib.metadata import entry_points

    return tuple(
        _Plugin(
            f"{GROUP}:{one.name}",
            one.module,
            None,
            f"{one.name!r} of the package {one.dist.name if one.dist else '?'}",
        )
        for one in entry_points(group=GROUP)
    )


def _load(plugin: _Plugin) -> None:
    before = {id(registry): registry.outside().keys() for registry in Registry.every()}
    _under_way.plugin = plugin
    try:
        name = _running(plugin) or plugin.module
        module = importlib.import_module(name)  # waits for another thread that is importing it
        sys.modules.setdefault(plugin.module, module)
    except (Exception, SystemExit) as error:
        for registry in Registry.every():
            for name, origin in registry.outside().items():
                if origin.module not in sys.modules and name not in before.get(id(registry), ()):
                    registry.forget(name)
        raise InvalidInputError(f"plugin {plugin.said}{_problem(error, plugin)}") from error
    finally:
        _under_way.plugin = None
    _loaded.add(plugin.name)


def _running(plugin: _Plugin) -> str | None:
    """The name that the plugin's file has in this process: as a script, or an ordinary import."""
    if plugin.file is None:
        return None
    for name, module in list(sys.modules.items()):
        own = str(getattr(module, "__file__", None) or "")
        near = own.endswith(plugin.file.name) and Path(own).exists()
        if near and name != plugin.module and plugin.file.samefile(own):
            return name
    return None


def _problem(error: BaseException, plugin: _Plugin) -> str:
    """Where and why a plugin cannot be imported, in one line."""
    missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if missing and f"{plugin.module}.".startswith(f"{missing}."):
        near = (
            f"; there is a file {plugin.module}.py" if Path(f"{plugin.module}.py").exists() else ""
        )
        return f": no module of this name can be imported; a file is named with its ending{near}"
    if isinstance(error, SystemExit):
        return f": it ends the program when it is imported; put its work below `{GUARD}`"
    told = first_line(error)
    if isinstance(error, SyntaxError):
        return f"{_at(error.filename, error.lineno, plugin)}: {type(error).__name__}: {error.msg}"
    if not isinstance(error, ModwrightError):
        told = f"{type(error).__name__}: {told}" if str(error) else told
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame for frame in frames if plugin.file is not None and frame.filename == str(plugin.file)
    ]
    others = [f for f in frames if not f.filename.startswith("<") and f.filename != __file__]
    last = next(iter([*own[-1:], *others[-1:]]), None)
    return f"{'' if last is None else _at(last.filename, last.lineno, plugin)}: {told}"


def _at(file: str | None, line: int | None, plugin: _Plugin) -> str:
    inside = plugin.file is not None and file == str(plugin.file)
    return f", line {line}" if inside else f", {Path(str(file)).name} line {line}"


def _sources(plugin: _Plugin) -> list[Path]:
    """Its file, or those of its package."""
    found = getattr(sys.modules.get(plugin.module), "__file__", None) or plugin.file
    if found is None or Path(found).name != "__init__.py":
        return [] if found is None else [Path(found)]
    return sorted(Path(found).parent.rglob("*.py"))


def spec_of_plugin(module: str) -> importlib.machinery.ModuleSpec | None:
    """Where the module of a plugin that is a file is found."""
    for one in _named():
        if one.module == module and one.file is not None:
            inside = [one.name] if one.name != str(one.file) else None
            return importlib.util.spec_from_file_location(
                module, one.file, submodule_search_locations=inside
            )
    return None
