"""Whether a live model is what its config says.

An edited model is built from a config, exactly as a reload would build it. What was changed on the
live model alone, such as a bias that was added by hand, a forward hook or a module that two layers
share, stands in no config and would be lost; so it is found first and refused by name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from modwright.anatomy.families import family_of
from modwright.core.compat.torch import hooks_of, tensor_tables
from modwright.core.errors import InvalidInputError

__all__ = ["check_as_configured", "differences_from_config"]

_LIBRARIES = ("transformers.", "accelerate.")
"""Whose hooks do no more than record, move to a device or change a precision."""

_STATE = {
    "training",
    "gradient_checkpointing",
    "inplace",
    "name_or_path",  # where it was opened from
    "p",  # of a dropout
    "drop_prob",
    "max_seq_len_cached",  # grows while a rotary embedding runs
    "original_max_seq_len",
}
"""Numbers and flags of modules that change while a model is used, and not what it computes."""


def check_as_configured(model: PreTrainedModel) -> None:
    """Refuses a model that differs from what its config builds.

    Raises:
        InvalidInputError: names up to three differences.

    Example:
        >>> import modwright, torch
        >>> model = modwright.open("preset:tiny-llama").model
        >>> check_as_configured(model)
        >>> model.lm_head.bias = torch.nn.Parameter(torch.zeros(128))
        >>> check_as_configured(model)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        modwright.core.errors.InvalidInputError: the model is not what its config says, ...
    """
    found = list(islice(differences_from_config(model), 3))
    if found:
        raise InvalidInputError(
            "the model is not what its config says, and an edit would lose the difference: "
            + "; ".join(found)
        )


def differences_from_config(model: PreTrainedModel) -> Iterator[str]:
    """Each difference between a live model and one that its config builds, in words."""
    config = copy.deepcopy(model.config)
    family_of(config, model).write_live_fields(config)
    with torch.device("meta"):
        built = type(model)(config)
    live, expected = _modules(model), _modules(built)
    inside_of_other = [path for path in live if not _same_class(live[path], expected.get(path))]
    for path, module in live.items():
        if any(path.startswith(f"{outer}.") for outer in inside_of_other):
            continue  # it belongs to a module that is named already
        if path not in expected:
            yield f"{path} ({type(module).__name__}) is not in the config's model"
        elif path in inside_of_other:
            yield f"{path} is a {_class_name(module)}, not a {_class_name(expected[path])}"
        else:
            yield from _inside(path, module, expected[path])
    for path, module in expected.items():
        if path not in live and path.rpartition(".")[0] in live:
            yield f"{path} ({type(module).__name__}) is missing"
    yield from _ties(model, built)


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    return dict(model.named_modules(remove_duplicate=False))


def _same_class(module: nn.Module, expected: nn.Module | None) -> bool:
    return type(module) is type(expected)


def _class_name(module: nn.Module) -> str:
    return type(module).__name__


def _inside(path: str, module: nn.Module, expected: nn.Module) -> Iterator[str]:
    """Differences of one module of the right class: what it stores, and what is hung onto it."""
    for tables in zip(tensor_tables(module), tensor_tables(expected)):
        stored, wanted = map(_shapes, tables)
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) == wanted.get(name):
                continue
            full = f"{path}.{name}" if path else name
            if name not in wanted:
                yield f"{full} {stored[name]} is not in the config's model"
            elif name not in stored:
                yield f"{full} is missing"
            else:
                yield f"{full} has the shape {stored[name]}, not {wanted[name]}"
    here = path or "the model"
    for word, hooks in hooks_of(module).items():
        for hook in hooks:
            if not str(getattr(hook, "__module__", "")).startswith(_LIBRARIES):
                yield f"{here} has a {word} ({getattr(hook, '__name__', type(hook).__name__)})"
    own = vars(module)
    if "forward" in own and not own.keys() & {"_hf_hook", "_original_forward"}:
        yield f"{here} has another forward than its class"
    if path:
        yield from _numbers(path, own, vars(expected))


def _shapes(table: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in table.items() if t is not None}


def _numbers(path: str, own: dict[str, Any], expected: dict[str, Any]) -> Iterator[str]:
    for name, wanted in expected.items():
        if name.startswith("_") or name in _STATE or not isinstance(wanted, int | float | str):
            continue
        if name in own and own[name] != wanted:
            yield f"{path}.{name} is {own[name]!r}, not {wanted!r}"


def _ties(model: nn.Module, built: nn.Module) -> Iterator[str]:
    """Parameters that are one tensor in the live model alone, or in the config's model alone."""
    live, expected = _tied_names(model), _tied_names(built)
    for names in live - expected:
        yield f"{' and '.join(sorted(names))} are one tensor"
    for names in expected - live:
        if names <= _parameter_names(model):
            yield f"{' and '.join(sorted(names))} are not one tensor"


def _tied_names(model: nn.Module) -> set[frozenset[str]]:
    named: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        named.setdefault(id(parameter), set()).add(name)
    return {frozenset(names) for names in named.values() if len(names) > 1}


def _parameter_names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}
