"""Start values of an edited model: the stock rule for stock modules, their own for components."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn
from transformers.initialization import guard_torch_init_functions

from modwright.core.compat.transformers import (
    is_initialized,
    is_loaded,
    is_wholly_loaded,
    mark_initialized,
)
from modwright.core.errors import InvalidInputError
from modwright.nn.component import component_of
from modwright.nn.placeholders import is_placed

__all__ = ["initialize", "outermost", "self_initialized", "takes_host_rule"]

_MIXERS = ("token_mixer", "channel_mixer")
_FOREIGN = ("torch", "transformers")


def self_initialized(model: nn.Module) -> list[nn.Module]:
    """The outermost components of a model that set their start values themselves.

    All of them do but those of torch and transformers, those that the host's rule is right for
    (``host_initialized = True``, for what stands for a stock module), and small ones, such as
    norms, that have no ``reset_parameters``.
    """
    return outermost(module for module in model.modules() if _sets_itself(module))


def outermost(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Those of some modules, outer ones first, that are in none of the others."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in modules:
        if module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found


def _sets_itself(module: nn.Module) -> bool:
    component = component_of(module)
    if component is None or takes_host_rule(module):
        return False
    placed = component.kind in _MIXERS and is_placed(module)
    return placed or _reset_of(module) is not None


def takes_host_rule(module: nn.Module) -> bool:
    """It is of torch or transformers, or stands for such a module."""
    return _is_foreign(module) or bool(getattr(module, "host_initialized", False))


def initialize(
    model: nn.Module, owners: Sequence[nn.Module], host_rule: Callable[[], None]
) -> None:
    """Sets what a checkpoint has not set: by the host's rule, and by what sets itself.

    Loaded values stay as they are, whatever a ``reset_parameters`` writes.

    Args:
        model: whose values.
        owners: modules that set all that is in them, which the host's rule leaves alone.
        host_rule: the stock class's own, for all modules that are not marked.

    Raises:
        InvalidInputError: a checkpoint lacks a tensor that nothing sets.
    """
    inside = {part for owner in owners for part in owner.modules()}
    begun = {owner for owner in owners if is_initialized(owner)}
    own = [
        reset
        for module in model.modules()
        if module not in inside and not _is_foreign(module) and not is_wholly_loaded(module)
        if (reset := _reset_of(module)) is not None
    ]
    for module in inside:
        mark_initialized(module)
    host_rule()
    with torch.no_grad(), guard_torch_init_functions():
        for reset in own:
            reset()
        from_checkpoint = any(map(is_loaded, model.parameters()))
        for owner in owners:
            if owner not in begun:
                _reset_whole(owner, from_checkpoint)


def _reset_whole(owner: nn.Module, from_checkpoint: bool) -> None:
    """All that is in a component, from the inside out; the component has the last word."""
    tensors = [*owner.parameters(), *owner.buffers()]
    loaded = [tensor for tensor in tensors if is_loaded(tensor)]
    if len(loaded) == len(tensors):
        return
    if from_checkpoint:
        for name in _set_by_nobody(owner):
            raise InvalidInputError(
                f"nothing sets {name} of a {type(owner).__name__}, which the checkpoint lacks; the "
                "component needs a reset_parameters"
            )
    kept = [tensor.detach().clone() for tensor in loaded]
    for module in reversed(list(owner.modules())):
        reset = _reset_of(module)
        if reset is not None:
            reset()
    for tensor, value in zip(loaded, kept, strict=True):
        if not torch.equal(tensor, value):  # memory that is mapped from a file stays so
            tensor.copy_(value)


def _set_by_nobody(owner: nn.Module) -> Iterator[str]:
    """Tensors that are not loaded, in modules that no ``reset_parameters`` answers for."""
    for path, module in owner.named_modules():
        around = [path[:end] for end, letter in enumerate(path) if letter == "."]
        if any(_reset_of(owner.get_submodule(one)) for one in ("", *around, path)):
            continue
        for name, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ):
            if not is_loaded(tensor):
                yield f"{path}.{name}".lstrip(".")


def _reset_of(module: nn.Module) -> Callable[[], None] | None:
    reset = getattr(module, "reset_parameters", None)
    return reset if callable(reset) else None


def _is_foreign(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] in _FOREIGN
