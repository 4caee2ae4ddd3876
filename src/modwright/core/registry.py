"""What is found by name: files of a package that register themselves, and a user's own code."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.core.plugin_modules import PLUGIN_MODULE

__all__ = ["KindRegistry", "Origin", "Registry", "registries_restored"]

T = TypeVar("T")
R = TypeVar("R", bound=Any)


@dataclass(frozen=True)
class Origin:
    """The code that registered an entry: the nearest outside of the package, or a file of it.

    Attributes:
        module: its name.
        file: where its source lies; None for a notebook, a console and the like.
        on_import: whether its file was being run then; else a function did it later.
    """

    module: str
    file: Path | None
    on_import: bool

    @property
    def is_own(self) -> bool:
        """Whether it is code of this package."""
        return _is_own(self.module)

    @classmethod
    def of_caller(cls) -> Origin:
        """The code that is registering something now."""
        frame: Any = inspect.currentframe()
        while frame.f_back is not None and _is_own(_name(frame)) and not _runs_file(frame):
            frame = frame.f_back
        within, file = frame, Path(frame.f_code.co_filename)
        while within is not None and not (
            _runs_file(within) and within.f_globals is frame.f_globals
        ):
            within = within.f_back
        there = file.suffix == ".py" and file.is_file()
        return cls(_name(frame), file.resolve() if there else None, within is not None)


def _name(frame: Any) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_own(module: str) -> bool:
    return module.partition(".")[0] == "modwright"


def _runs_file(frame: Any) -> bool:
    return bool(frame.f_code.co_name == "<module>")


class Registry(Generic[T]):
    """Names of one kind of thing, in one table.

    A registry of a package imports the package's files when it is first asked, so that a new file
    that registers something is all that a new thing needs. Plugins are loaded then, too
    (:mod:`modwright.core.plugins`).

    Args:
        what: one entry in a word or two, for messages: "method", "export target".
        package: the package whose files register entries; None where nothing is looked for.
        prefix: only files whose names begin with it are imported.

    Example:
        >>> mixers = Registry("mixer")
        >>> @mixers.register("mean")
        ... def mean(x):
        ...     return x.mean()
        >>> mixers["mean"] is mean, mixers.names(), "maximum" in mixers
        (True, ['mean'], False)
        >>> mixers["maximum"]
        Traceback (most recent call last):
        ...
        modwright.core.errors.InvalidInputError: unknown mixer 'maximum'; valid values: mean
    """

    _all: ClassVar[list[Registry[Any]]] = []

    def __init__(self, what: str, package: str | None = None, prefix: str = "") -> None:
        self.what, self.package, self.prefix = what, package, prefix
        self._entries: dict[str, T] = {}
        self._origins: dict[str, Origin] = {}
        self._looked = package is None
        Registry._all.append(self)

    def add(self, name: str, entry: T, *, again: Callable[[T], bool] | None = None) -> T:
        """Makes an entry known, or refuses a name that is taken.

        ``again`` says whether what has the name now is the same thing, defined once more. So it is,
        too, where the file that registered it is run under another name, as a plugin or a script.
        """
        origin = Origin.of_caller()
        if not origin.is_own:
            self._import_files()  # a name of the package's own is not taken before it is used
        taken, before = self._entries.get(name, entry), self._origins.get(name, origin)
        same = taken is entry or (again is not None and again(taken))
        run_again = before.module != origin.module and before.file == origin.file is not None
        if not (same or run_again):
            raise InvalidInputError(
                f"a {self.what} called {name!r} is registered already{_by(taken, before)}; "
                "choose another name"
            )
        self._entries[name], self._origins[name] = entry, origin
        return entry

    def register(self, name: str) -> Callable[[R], R]:
        """Decorator that makes a function or a class known under ``name``."""

        def register(entry: R) -> R:
            self.add(name, entry)
            return entry

        return register

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self.all())

    def all(self) -> dict[str, T]:
        """A copy of the table, in the order of registering."""
        self._look()
        return dict(self._entries)

    def __getitem__(self, name: str) -> T:
        """An entry; an unknown name is refused with all names and the nearest."""
        if name not in self:
            raise unknown_name(self.what, name, self.names())
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._look()
        return name in self._entries

    @contextmanager
    def restored(self, *, empty: bool = False) -> Iterator[Registry[T]]:
        """What is registered within the block is forgotten afterwards; what is removed comes back.

        Where it is ``empty``, nothing is known at the beginning of the block.
        """
        before, origins = self.all(), dict(self._origins)
        self._entries = {} if empty else self.all()
        try:
            yield self
        finally:
            self._entries, self._origins = before, origins

    @classmethod
    def every(cls) -> list[Registry[Any]]:
        """All registries that there are."""
        return list(cls._all)

    def outside(self) -> dict[str, Origin]:
        """What code outside of the package registered, and where; nothing is imported to answer."""
        found = {name: self._origins[name] for name in self._entries if name in self._origins}
        return {name: origin for name, origin in found.items() if not origin.is_own}

    def forget(self, name: str) -> None:
        """Takes an entry out."""
        self._entries.pop(name, None)
        self._origins.pop(name, None)

    def _look(self) -> None:
        self._import_files()
        importlib.import_module("modwright.core.plugins").load_plugins()

    def _import_files(self) -> None:
        if self._looked:
            return
        self._looked = True  # files that are imported may ask what there is
        try:
            package = importlib.import_module(str(self.package))
            for module in pkgutil.walk_packages(package.__path__, f"{self.package}."):
                if module.name.rpartition(".")[2].startswith(self.prefix):
                    importlib.import_module(module.name)
        except BaseException:
            self._looked = False
            raise


class KindRegistry(Registry[T]):
    """One registry for each kind of a thing: a name is unique within its kind.

    Asked without a kind, it answers where one kind has the name.

    Args:
        what: one entry in a word, for messages.
        kinds: their names.
        package: see :class:`Registry`.

    Example:
        >>> parts = KindRegistry("part", ("norm", "stem"))
        >>> _ = parts.of("norm").add("identity", 1), parts.of("stem").add("identity", 2)
        >>> parts.of("stem")["identity"], parts.kinds_of("identity")
        (2, ['norm', 'stem'])
        >>> parts["identity"]
        Traceback (most recent call last):
        ...
        modwright.core.errors.InvalidInputError: 'identity' is a norm and a stem; say which is meant
    """

    def __init__(self, what: str, kinds: Sequence[str], package: str | None = None) -> None:
        # Those of the kinds are in the list of all registries; this one holds nothing itself.
        self.what = what
        self._kinds: dict[str, Registry[T]] = {
            kind: Registry(kind.replace("_", " "), package) for kind in kinds
        }

    def of(self, kind: str) -> Registry[T]:
        """The registry of a kind."""
        return self._kinds[kind]

    def kinds_of(self, name: object) -> list[str]:
        """The kinds that have a name."""
        return [kind for kind, known in self._kinds.items() if name in known]

    def all(self) -> dict[str, T]:
        """Of each name that kinds share, one entry."""
        return {name: one for known in self._kinds.values() for name, one in known.all().items()}

    def __getitem__(self, name: str) -> T:
        """The entry of a name; one that no kind has is refused, and one that several have."""
        kinds = self.kinds_of(name)
        if not kinds:
            raise unknown_name(self.what, name, self.names())
        if len(kinds) > 1:
            told = " and a ".join(kind.replace("_", " ") for kind in kinds)
            raise InvalidInputError(f"{name!r} is a {told}; say which is meant")
        return self._kinds[kinds[0]][name]

    def __contains__(self, name: object) -> bool:
        return bool(self.kinds_of(name))

    def add(self, name: str, entry: T, *, again: Callable[[T], bool] | None = None) -> T:
        """Refused: a kind is to be said."""
        raise InvalidInputError(f"of which kind the {self.what} {name!r} is must be said")

    @contextmanager
    def restored(self, *, empty: bool = False) -> Iterator[KindRegistry[T]]:
        with ExitStack() as stack:
            for known in self._kinds.values():
                stack.enter_context(known.restored(empty=empty))
            yield self

    def outside(self) -> dict[str, Origin]:
        return {
            n: origin for known in self._kinds.values() for n, origin in known.outside().items()
        }

    def forget(self, name: str) -> None:
        """Takes an entry out, of whatever kind."""
        for known in self._kinds.values():
            known.forget(name)


def _by(entry: Any, origin: Origin) -> str:
    """Who registered an entry, for messages."""
    source = getattr(entry, "source", None) or getattr(entry, "__module__", "")
    if str(source).startswith(PLUGIN_MODULE) and origin.file is not None:
        source = origin.file
    return f", by {source}" if source else ""


@contextmanager
def registries_restored() -> Iterator[None]:
    """What is registered anywhere within the block is forgotten afterwards.

    Of a registry that is made within it, what code outside of the package registered.
    """
    before = list(Registry._all)
    try:
        with ExitStack() as stack:
            for registry in before:
                stack.enter_context(registry.restored())
            yield
    finally:
        for registry in Registry._all[len(before) :]:
            for name in registry.outside():
                registry.forget(name)
