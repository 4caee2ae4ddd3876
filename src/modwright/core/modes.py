"""Training and evaluation mode of every module by itself: set, copied, and put back exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import nn

__all__ = ["copy_modes", "eval_mode", "kept_modes", "set_eval", "set_mode"]

M = TypeVar("M", bound="nn.Module")


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards every module has its own mode again.

    ``model.train(was_training)`` would put one mode on all of them, and a frozen batch norm would
    learn statistics again. No ``train`` method runs, so whatever a module does there is not done.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
        >>> with eval_mode(model):
        ...     [part.training for part in model.modules()]
        [False, False, False]
        >>> [part.training for part in model.modules()]
        [True, True, False]
    """
    with kept_modes(*models) as modules:
        for module in modules:
            module.training = False
        yield


@contextmanager
def kept_modes(*models: nn.Module) -> Iterator[list[nn.Module]]:
    """Whatever the block does to modes, afterwards every module has its own again."""
    before = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield [module for module, _ in before]
    finally:
        for module, training in before:
            module.training = training


def set_eval(model: M) -> M:
    """The model itself, in evaluation mode from now on: for models that are built here."""
    return set_mode(model, False)


def set_mode(model: M, training: bool) -> M:
    """The model itself, with one mode in all of its modules that do not decide for themselves."""
    return model.train(training)


def copy_modes(
    source: nn.Module, target: nn.Module, paths: Mapping[str, str] | None = None
) -> None:
    """Gives every module of ``target`` the mode that its counterpart in ``source`` has.

    What has no counterpart takes the mode of the nearest module around it that has one. ``paths``
    gives, for a name in the target, the name in the source where it differs.
    """
    modes = {name: module.training for name, module in source.named_modules()}
    for name, module in target.named_modules():
        origin = name if paths is None else paths.get(name, name)
        while origin not in modes:
            origin = origin.rpartition(".")[0]
        module.training = modes[origin]
