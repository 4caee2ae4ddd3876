"""What is found by name: files of a package that register themselves, and a user's own code."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Generic, TypeVar

from modwright.core.errors import InvalidInputError, unknown_name

__all__ = ["Registry", "registries_restored"]

T = TypeVar("T")
R = TypeVar("R", bound=Any)


class Registry(Generic[T]):
    """Names of one kind of thing, in one table.

    A registry of a package imports the package's files when it is first asked, so that a new file
    that registers something is all that a new thing needs.

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
        self._looked = package is None
        Registry._all.append(self)

    def add(self, name: str, entry: T, *, again: Callable[[T], bool] | None = None) -> T:
        """Makes an entry known, or refuses a name that is taken.

        ``again`` says whether what has the name now is the same thing, defined once more.
        """
        taken = self._entries.get(name, entry)
        if taken is not entry and not (again is not None and again(taken)):
            source = getattr(taken, "source", None) or getattr(taken, "__module__", "")
            raise InvalidInputError(
                f"a {self.what} called {name!r} is registered already"
                f"{f', by {source}' if source else ''}; choose another name"
            )
        self._entries[name] = entry
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
        before = self.all()
        self._entries = {} if empty else self.all()
        try:
            yield self
        finally:
            self._entries = before

    def _look(self) -> None:
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


@contextmanager
def registries_restored() -> Iterator[None]:
    """What is registered anywhere within the block is forgotten afterwards."""
    with ExitStack() as stack:
        for registry in list(Registry._all):
            stack.enter_context(registry.restored())
        yield
