"""Datasets by name, each of a kind, and how a recipe's key ``data`` becomes one.

A kind ("text", "images", ...) is a file that says how what its datasets make becomes rows of
tensors. A dataset is a function that makes something of its kind from options. Both register
themselves where they are defined, in this package or outside of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from inspect import getsourcefile, signature
from pathlib import Path
from typing import Any, TypeVar

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.core.options import checked_options
from modwright.core.registry import Origin, Registry
from modwright.data.dataset import Data

__all__ = ["KINDS", "DataKind", "DatasetInfo", "data_kind", "dataset", "dataset_info", "datasets"]
__all__ += ["datasets_of", "make_data", "make_source", "parameters_of", "plain"]
__all__ += ["resolve_data"]

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGE = "modwright.data"
# What make_data hands to a kind, beside the options of a recipe.
_HANDED = ("made", "tokenizer", "name")


@dataclass(frozen=True)
class DatasetInfo:
    """What a name in the registry stands for.

    Args:
        name: what recipes call it, unique within its kind.
        kind: what it is made of: "text", "images", ...
        make: makes it; its keyword arguments are the options of a recipe.
        license: of the data, by its SPDX identifier where it has one.
        source: where the data comes from, in a few words.
    """

    name: str
    kind: str
    make: Callable[..., Any]
    license: str = ""
    source: str = ""


@dataclass(frozen=True)
class DataKind:
    """A kind of data.

    Args:
        name: the key of a recipe whose value is a dataset of this kind.
        finish: makes :class:`Data` of what a dataset made; its other keyword arguments are options
            that all datasets of the kind have, ``tokenizer`` is the model's where it takes one.
        path: reads a user's own file or folder, given as its first argument; None where there is
            no such thing.
        paths: what ``path`` takes, in words for messages.
        measured_by: the metric that tells most about a model on such data, by its name.
    """

    name: str
    finish: Callable[..., Data]
    path: Callable[..., Any] | None = None
    paths: str = ""
    measured_by: str = ""

    @property
    def needs_tokenizer(self) -> bool:
        """Whether it cannot be made without one."""
        return "tokenizer" in signature(self.finish).parameters


KINDS: Registry[DataKind] = Registry("kind of data", _PACKAGE)


@cache
def _of(kind: str) -> Registry[DatasetInfo]:
    return Registry(f"{kind} dataset".replace("_", " "), _PACKAGE)


def datasets_of(kind: str) -> Registry[DatasetInfo]:
    """The datasets of a kind, by name.

    Raises:
        InvalidInputError: there is no such kind.

    Example:
        >>> "digits" in datasets_of("images")
        True
    """
    return _of(KINDS[kind].name)


def datasets() -> list[DatasetInfo]:
    """Every dataset that there is, by kind and name."""
    return [info for kind in KINDS.names() for _, info in sorted(datasets_of(kind).all().items())]


def dataset_info(kind: str, name: str) -> DatasetInfo:
    """A dataset by kind and name; others are refused with the nearest name."""
    return datasets_of(kind)[name]


def data_kind(
    name: str,
    *,
    path: Callable[..., Any] | None = None,
    paths: str = "",
    measured_by: str = "",
) -> Callable[[F], F]:
    """Decorator that registers a kind of data by the function that finishes its datasets.

    The function is called with what a dataset made, with the ``tokenizer`` of the model if it has
    such a parameter, and with options; it returns :class:`Data`. Arguments are those of
    :class:`DataKind`.
    """

    def register(finish: F) -> F:
        KINDS.add(name, DataKind(name, finish, path, paths, measured_by), again=_same(finish))
        return finish

    return register


def dataset(name: str, kind: str, *, license: str = "", source: str = "") -> Callable[[F], F]:
    """Decorator that registers a dataset: a function that makes it from keyword arguments.

    What it returns is what its kind takes: a "text" a string, a list of documents or a
    :class:`~modwright.data.text_sources.Text`; "images" a training and a test set; and so on. The
    arguments are options of a recipe, so they are numbers, strings, booleans, None and lists.

    Raises:
        InvalidInputError: the name is taken, or there is no such kind.

    Example:
        >>> from modwright.core.registry import registries_restored
        >>> with registries_restored():
        ...     @dataset("counting", kind="text", license="CC0-1.0", source="written by a loop")
        ...     def counting(to: int = 3) -> str:
        ...         return " ".join(map(str, range(to)))
        ...     resolve_data({"text": "counting", "to": 5})["to"]
        5
    """
    if not Origin.of_caller().is_own:
        _ = KINDS[kind]

    def register(make: F) -> F:
        info = DatasetInfo(name, kind, make, license, source)
        _of(kind).add(name, info, again=lambda known: _same(make)(known))
        return make

    return register


def _same(function: Callable[..., Any]) -> Callable[[Any], bool]:
    """Whether an entry was made of the same function, defined once more."""

    def again(known: Any) -> bool:
        made = getattr(known, "make", None) or known.finish
        names = ("__module__", "__qualname__")
        same = all(getattr(made, n, None) == getattr(function, n, "") for n in names)
        return same and getsourcefile(made) == getsourcefile(function)

    return again


@dataclass(frozen=True)
class _Asked:
    """One entry of a key ``data``: which dataset, and its options, checked."""

    kind: DataKind
    name: str
    info: DatasetInfo | None
    make: dict[str, Any]
    finish: dict[str, Any]

    def resolved(self) -> dict[str, Any]:
        options = {**self.make, **self.finish}
        return {self.kind.name: self.name, **{key: plain(one) for key, one in options.items()}}

    def made(self) -> Any:
        """What the dataset's function makes, or what is read from a path."""
        if self.info is not None:
            return self.info.make(**self.make)
        assert self.kind.path is not None
        return self.kind.path(self.name, **self.make)

    def build(self, tokenizer: Any) -> Data:
        given = dict(self.finish)
        if "name" in signature(self.kind.finish).parameters:
            given["name"] = self.name
        if self.kind.needs_tokenizer:
            if tokenizer is None:
                raise InvalidInputError(
                    f"data of the kind {self.kind.name!r} needs a tokenizer, and there is none; "
                    "give a model that has one"
                )
            given["tokenizer"] = tokenizer
        found = self.kind.finish(self.made(), **given)
        about = self.info or DatasetInfo(self.name, self.kind.name, self.kind.finish)
        return replace(
            found,
            kind=self.kind.name,
            name=self.name,
            options=self.resolved(),
            license=about.license,
            source=about.source,
        )


def make_data(given: str | Mapping[str, Any] | Sequence[Any], tokenizer: Any = None) -> Data:
    """What the key ``data`` of a recipe asks for.

    Args:
        given: ``{text: lee-background, length: 256}``, ``{images: digits, image_size: 32}`` and so
            on: the kind with a name or a path, and options; a string means ``{text: STRING}``; a
            list of these, each with a ``weight`` if it likes, is mixed.
        tokenizer: of the model; text needs one.

    Raises:
        InvalidInputError: an unknown kind, name or option, an invalid value, or data that cannot be
            read; says which.

    Example:
        >>> data = make_data({"images": "digits", "image_size": 16})
        >>> len(data.train), len(data.labels), data.train[0]["pixel_values"].shape
        (1297, 10, torch.Size([3, 16, 16]))
    """
    if _is_list(given):
        from modwright.data.mixture import mixed

        entries, weights = _weighted(given)
        return mixed([_asked(entry).build(tokenizer) for entry in entries], weights)
    return _asked(given).build(tokenizer)


def resolve_data(given: str | Mapping[str, Any] | Sequence[Any]) -> Any:
    """The same key with every default written out; nothing is read but what is registered.

    Raises:
        InvalidInputError: as :func:`make_data`, but for what only shows when the data is read.

    Example:
        >>> resolve_data("lee")["length"]
        512
    """
    if _is_list(given):
        entries, weights = _weighted(given)
        return [
            {**_asked(entry).resolved(), "weight": weight}
            for entry, weight in zip(entries, weights)
        ]
    return _asked(given).resolved()


def make_source(kind: str, given: Mapping[str, Any]) -> tuple[str, Any]:
    """A name of a kind, and what its dataset makes, before the kind finishes it.

    Raises:
        InvalidInputError: the mapping is of another kind, or has options of the kind itself.

    Example:
        >>> name, made = make_source("text", {"text": "lee"})
        >>> name, type(made).__name__
        ('lee', 'Text')
    """
    asked = _asked(given)
    if asked.kind.name != kind:
        raise InvalidInputError(f"data of the kind {kind!r} is needed, not {asked.kind.name!r}")
    for key in given:
        if key != kind and key not in asked.make:
            valid = [kind, *asked.make]
            raise unknown_name(f"key of data.{kind} {asked.name!r} here", key, valid)
    return asked.name, asked.made()


def _is_list(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str)


def _weighted(given: Any) -> tuple[list[Any], list[float]]:
    """The entries of a mixture without their weights, and these."""
    if not given:
        raise InvalidInputError("data: the list is empty; give at least one dataset")
    entries, weights = [], []
    for entry in given:
        entry = dict(entry) if isinstance(entry, Mapping) else entry
        weight = entry.pop("weight", 1.0) if isinstance(entry, dict) else 1.0
        known = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not known or not 0 < weight < float("inf"):
            raise InvalidInputError(f"data: weight is a number above 0, not {weight!r}")
        entries.append(entry)
        weights.append(float(weight))
    return entries, weights


def _asked(given: Any) -> _Asked:
    if isinstance(given, str):
        given = {"text": given}
    if not isinstance(given, Mapping):
        raise InvalidInputError(
            f"data must be a name, a mapping such as {{text: lee}}, or a list of these, not "
            f"{type(given).__name__}"
        )
    kinds = [key for key in given if key in KINDS]
    if len(kinds) != 1:
        valid = ", ".join(KINDS.names())
        if kinds:
            raise InvalidInputError(f"data is of one kind, not of {' and '.join(kinds)}")
        near = unknown_name("kind of data", next(iter(given), ""), KINDS.names())
        raise InvalidInputError(f"data: {near}" if given else f"data needs one of the keys {valid}")
    kind = KINDS[kinds[0]]
    name = given[kind.name]
    if isinstance(name, os.PathLike):
        name = os.fspath(name)
    if not isinstance(name, str):
        raise InvalidInputError(f"data.{kind.name} is a name or a path, not {name!r}")
    options = {key: value for key, value in given.items() if key != kind.name}
    if name in datasets_of(kind.name):
        return _checked(kind, name, dataset_info(kind.name, name), options)
    if kind.path is None or not _may_be_path(name):
        raise _no_such(kind, name)
    return _checked(kind, name, None, options)


def plain(value: Any) -> Any:
    """A value as JSON has it: tuples are lists.

    Example:
        >>> plain((1, {"a": (2,)}))
        [1, {'a': [2]}]
    """
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def _may_be_path(name: str) -> bool:
    return ":" in name or (bool(name) and Path(name).expanduser().exists())


def _no_such(kind: DataKind, name: str) -> InvalidInputError:
    known = datasets_of(kind.name)
    told = unknown_name(known.what, name, known.names())
    return InvalidInputError(f"{told}; or {kind.paths}" if kind.paths else str(told))


def _checked(
    kind: DataKind, name: str, info: DatasetInfo | None, options: Mapping[str, Any]
) -> _Asked:
    """Options go to what makes the dataset, to what finishes it, or to both, by their names."""
    make = kind.path if info is None else info.make
    assert make is not None
    own, shared = parameters_of(make, is_path=info is None), parameters_of(kind.finish)
    for key in options:
        if key not in {**own, **shared}:
            raise unknown_name(f"key of data.{kind.name} {name!r}", key, {**own, **shared})
    where = f"data.{kind.name} {name!r}"
    found = []
    for function, parameters in ((make, own), (kind.finish, shared)):
        given = {key: value for key, value in options.items() if key in parameters}
        left_out = [key for key in signature(function).parameters if key not in parameters]
        checked = checked_options(function, where, given, word="key", left_out=left_out)
        found.append({key: checked.get(key, default) for key, default in parameters.items()})
    # Of an option of both, the default is that of the dataset.
    return _Asked(
        kind, name, info, found[0], {k: found[0].get(k, value) for k, value in found[1].items()}
    )


def parameters_of(function: Callable[..., Any], *, is_path: bool = False) -> dict[str, Any]:
    """The options that a kind, a dataset or what reads a path takes, and their defaults."""
    taken = list(signature(function).parameters.values())[is_path:]
    return {one.name: one.default for one in taken if one.name not in _HANDED}
