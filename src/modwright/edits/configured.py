"""Whether a live model is what its config says.

An edited model is built from a config, exactly as a reload would build it. What was changed on the
live model alone, such as a bias that was added by hand, a forward hook or a module that two layers
share, stands in no config and would be lost; so it is found first and refused by name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Set
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
    """Refuses a model that differs from what its config builds."""
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
    state = _STATE | set(family_of(config, model).state)
    live, expected = (dict(m.named_modules(remove_duplicate=False)) for m in (model, built))
    others = [path for path, module in live.items() if type(module) is not type(expected.get(path))]
    for path, module in live.items():
        name = type(module).__name__
        if any(path.startswith(f"{outer}.") for outer in others):
            continue  # it belongs to a module that is named already
        if path not in expected:
            yield f"{path} ({name}) is not in the config's model"
        elif path in others:
            yield f"{path} is a {name}, not a {type(expected[path]).__name__}"
        else:
            yield from _inside(path, module, expected[path], state)
    for path, module in expected.items():
        if path not in live and path.rpartition(".")[0] in live:
            yield f"{path} ({type(module).__name__}) is missing"
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied, wanted = _tied_names(model), _tied_names(built)
    for names in tied - wanted:
        yield f"{' and '.join(sorted(names))} are one tensor"
    for names in wanted - tied:
        if names <= known:
            yield f"{' and '.join(sorted(names))} are not one tensor"


def _inside(path: str, module: nn.Module, expected: nn.Module, state: Set[str]) -> Iterator[str]:
    """Differences of one module of the right class: what it stores, and what is hung onto it."""
    for tables in zip(tensor_tables(module), tensor_tables(expected)):
        stored, wanted = (
            {name: tuple(t.shape) for name, t in table.items() if t is not None} for table in tables
        )
        for name in sorted(stored.keys() | wanted.keys()):
            full = f"{path}.{name}" if path else name
            if name not in wanted:
                yield f"{full} {stored[name]} is not in the config's model"
            elif name not in stored:
                yield f"{full} is missing"
            elif stored[name] != wanted[name]:
                yield f"{full} has the shape {stored[name]}, not {wanted[name]}"
    here = path or "the model"
    for word, hooks in hooks_of(module).items():
        for hook in hooks:
            if not str(getattr(hook, "__module__", "")).startswith(_LIBRARIES):
                yield f"{here} has a {word} ({getattr(hook, '__name__', type(hook).__name__)})"
    own: dict[str, Any] = vars(module)
    if "forward" in own and not own.keys() & {"_hf_hook", "_original_forward"}:
        yield f"{here} has another forward than its class"
    for name, usual in vars(expected).items() if path else ():
        plain = isinstance(usual, int | float | str) and not name.startswith("_")
        if plain and name in own.keys() - state and own[name] != usual:
            yield f"{path}.{name} is {own[name]!r}, not {usual!r}"


def _tied_names(model: nn.Module) -> set[frozenset[str]]:
    """Names of parameters that are one tensor."""
    named: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        named.setdefault(id(parameter), set()).add(name)
    return {frozenset(names) for names in named.values() if len(names) > 1}
