"""What an objective is: a loss, and whatever else a training asks of it; known by its name.

Axes: B rows of a batch, T tokens of a row, K classes or tokens of a vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from modwright.core.errors import InvalidInputError
from modwright.core.options import checked_options, make_options
from modwright.core.registry import Registry
from modwright.training.batches import Batch

__all__ = ["OBJECTIVES", "Backward", "Losses", "Objective", "as_objective"]
__all__ += ["check_share", "make_objective", "objective", "resolve_objective"]

Losses = tuple[Tensor, dict[str, Tensor]]
Backward = Callable[[Tensor], None]
_C = TypeVar("_C", bound=Callable[..., Any])

OBJECTIVES: Registry[Callable[..., Any]] = Registry("objective", "modwright.training.objectives")


def objective(name: str) -> Callable[[_C], _C]:
    """Decorator that makes a dataclass known as an objective; its fields are the options.

    Example:
        >>> @objective("mean_of_squares")
        ... @dataclasses.dataclass(frozen=True)
        ... class MeanOfSquares(Objective):
        ...     def __call__(self, model, batch):
        ...         return model(**batch).logits.pow(2).mean(), {}
        >>> make_objective("mean_of_squares")
        MeanOfSquares()
    """
    return OBJECTIVES.register(name)


class Objective:
    """What is minimized. All but the loss has a default; a plain function is one, too.

    The model that is handed over may be wrapped, for several processes;
    :func:`~modwright.training.batches.unwrapped` is what it wraps.

    Attributes:
        parts: parameters of its own, which learn with the model. They are stored with the
            checkpoints of the training and are no part of the model that comes out. An objective
            makes them in :meth:`prepare`.
        parametrization: of the optimizer's groups, or the name of one; None leaves it to others.
    """

    parts: ClassVar[nn.Module | None] = None
    parametrization: ClassVar[Any] = None

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        """The loss, a mean over what the batch asks for, and named numbers to log beside it."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def teachers(self) -> tuple[nn.Module, ...]:
        """Models that stay bit-equal while another learns from them."""
        return ()

    def prepare(self, model: Any) -> None:
        """Once, before anything is frozen or replaced in the model; refuses one that it cannot
        teach."""

    def at(self, progress: float) -> None:
        """Before every optimizer step: the share of the steps that are done, and nothing else, so
        that a training which was stopped goes on the same."""

    def step(self, model: nn.Module, batch: Batch, backward: Backward) -> Losses:
        """Forward and backward pass of one batch; ``backward`` is called with every loss."""
        loss, named = self(model, batch)
        backward(loss)
        return loss, named

    def groups(
        self, model: nn.Module, learning_rate: float, weight_decay: float
    ) -> list[dict[str, Any]] | None:
        """Groups of the optimizer, each with its ``lr`` and ``weight_decay``; None takes those of
        the parametrization."""
        return None

    def after_step(self, model: Any) -> None:
        """Behind every optimizer step, before anything averages or measures the model: masks,
        tied values."""

    def finished(self) -> bool:
        """Ends the training; asked after every step, and answered alike by all processes."""
        return False

    def result(self, model: Any) -> Any:
        """What is to be done with the trained model: a plan, or None."""
        return None


@dataclasses.dataclass(frozen=True)
class _Called(Objective):
    """A function as an objective."""

    function: Callable[[nn.Module, Batch], Losses]

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        return self.function(model, batch)

    def teachers(self) -> tuple[nn.Module, ...]:
        teacher = getattr(self.function, "teacher", None)
        return (teacher,) if isinstance(teacher, nn.Module) else ()

    @property
    def parametrization(self) -> Any:
        return getattr(self.function, "parametrization", None)


def as_objective(given: Any) -> Objective:
    """An objective, or a function ``(model, batch) -> (loss, named numbers)`` as one.

    Raises:
        InvalidInputError: neither; a name and options go to :func:`make_objective`.
    """
    if isinstance(given, Objective):
        return given
    if callable(given) and not isinstance(given, type):
        return _Called(given)
    raise InvalidInputError(f"an objective is called with a model and a batch; {given!r} cannot be")


def make_objective(
    given: str | Mapping[str, Any] | Objective, options: Mapping[str, Any] | None = None
) -> Objective:
    """An objective of its name and options, ``"cross_entropy"`` or ``{"cross_entropy": {...}}``.

    Raises:
        InvalidInputError: an unknown name, an unknown option, or an invalid value.

    Example:
        >>> make_objective({"cross_entropy": {"label_smoothing": 0.1}}).label_smoothing
        0.1
        >>> make_objective("cross_entropi")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        modwright.core.errors.InvalidInputError: unknown objective 'cross_entropi'; valid values: \
attention_maps, ... (did you mean 'cross_entropy'?)
    """
    if not isinstance(given, str | Mapping):
        return as_objective(given)
    name, own = _named(given)
    return as_objective(make_options(OBJECTIVES[name], name, {**own, **(options or {})}))


def resolve_objective(given: str | Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The same name with every option written out; no teacher is opened.

    Raises:
        InvalidInputError: as :func:`make_objective`.

    Example:
        >>> resolve_objective("next_token")
        {'next_token': {'label_smoothing': 0.0}}
    """
    name, own = _named(given)
    checked = checked_options(OBJECTIVES[name], name, own)
    taken = signature(OBJECTIVES[name]).parameters
    return {name: {key: checked.get(key, one.default) for key, one in taken.items()}}


def _named(given: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(given, str):
        return given, {}
    if len(given) != 1:
        raise InvalidInputError(
            f"an objective is one name with its options, not {len(given)} names"
        )
    ((name, own),) = given.items()
    return name, dict(own or {})


def check_share(**numbers: float) -> None:
    """Refuses numbers that are no shares of 1."""
    for name, value in numbers.items():
        if not 0 <= value <= 1:
            raise InvalidInputError(f"{name} lies between 0 and 1, not {value}")
