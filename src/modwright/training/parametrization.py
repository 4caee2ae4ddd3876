"""Which parameters an optimizer takes together, and what multiplies their learning rate and decay.

Schedules multiply the learning rate of every group, so the ratios between groups last as long as
the training. A parametrization of a paper is a file of this package whose name begins with
``parametrization`` and which registers a class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from modwright.anatomy import Anatomy
from modwright.anatomy.selectors import KINDS, select
from modwright.core.errors import InvalidInputError, refusing
from modwright.core.registry import Registry
from modwright.nn.component import component_of, listed_tensors, said_by

__all__ = ["PARAMETRIZATIONS", "Parametrization", "Rates", "Standard", "check_groups"]
__all__ += ["decayed_names", "grouped", "matching_modules", "matching_parameters"]
__all__ += ["parametrization_of", "register_parametrization"]

_SELECTOR = re.compile(rf"\s*(?:{'|'.join(KINDS)})\s*\[")


class Parametrization(Protocol):
    """Makes the groups of an optimizer."""

    def groups(
        self, model: nn.Module, learning_rate: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Groups of the parameters that learn, each with its ``lr`` and ``weight_decay``."""


PARAMETRIZATIONS: Registry[Callable[..., Parametrization]] = Registry(
    "parametrization", "modwright.training", prefix="parametrization"
)

register_parametrization = PARAMETRIZATIONS.register
"""Decorator that makes a parametrization known by name."""


class Rates(NamedTuple):
    """What multiplies the learning rate and the weight decay of a parameter."""

    learning_rate: float = 1.0
    weight_decay: float = 1.0


def grouped(
    model: nn.Module,
    rates: Callable[[str, nn.Parameter], Rates],
    learning_rate: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """One group for each pair of rates that the parameters of a model have.

    Those of the plain learning rate come first, with decay and without, even if they are empty; the
    others follow in the order of the model. What does not learn is in no group.

    Args:
        model: whose parameters.
        rates: called with a name and a parameter.
        learning_rate: of rate 1.
        weight_decay: of rate 1.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> halved = grouped(layer, lambda name, p: Rates(0.5 if name == "bias" else 1.0), 0.1, 0.0)
        >>> [(len(group["params"]), group["lr"]) for group in halved]
        [(1, 0.1), (0, 0.1), (1, 0.05)]
    """
    found: dict[Rates, list[nn.Parameter]] = {Rates(): [], Rates(weight_decay=0.0): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(rates(name, parameter), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * own.learning_rate,
            "weight_decay": weight_decay * own.weight_decay,
        }
        for own, parameters in found.items()
    ]


@register_parametrization("standard")
@dataclass(frozen=True)
class Standard:
    """Weights of more than one axis decay, and parts of the model may learn at another rate.

    What the model, or a component in it, names in ``no_weight_decay`` does not decay; what a
    component names in ``force_weight_decay`` decays although it has one axis, unless somebody
    spares it. A component may have ``learning_rate_multipliers``, by names of its own parameters.

    Attributes:
        multipliers: pattern -> what multiplies the learning rate of the parameters that it matches.
            A pattern is a selector (``mlp[*]``, ``block[0:2]``), or one of names of parameters
            (``*.bias``, ``model.layers.*.up_proj.weight``). The first that matches counts, and
            each of them before what components say.
        decay_norm_and_bias: parameters of one axis decay, too, as in OLMo's recipes.

    Raises:
        InvalidInputError: a multiplier that is not above 0; later, a pattern that matches nothing,
            or a name that a component does not have.

    Example:
        >>> import modwright
        >>> model = modwright.open("preset:tiny-llama").model
        >>> made = Standard({"mlp[*]": 0.25}).groups(model, 0.1, 0.01)
        >>> [(len(group["params"]), group["lr"], group["weight_decay"]) for group in made]
        [(17, 0.1, 0.01), (9, 0.1, 0.0), (12, 0.025, 0.01)]
    """

    multipliers: Mapping[str, float] = field(default_factory=dict)
    decay_norm_and_bias: bool = False

    def __post_init__(self) -> None:
        for pattern, value in self.multipliers.items():
            _check_multiplier(value, f"multiplier of {pattern!r}")

    def groups(
        self, model: nn.Module, learning_rate: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Two groups of the plain learning rate, and one more for each other rate and decay."""
        decayed = set(decayed_names(model, self.decay_norm_and_bias))
        factors = _multipliers(model, self.multipliers)

        def rates(name: str, parameter: nn.Parameter) -> Rates:
            return Rates(factors.get(id(parameter), 1.0), float(name in decayed))

        return grouped(model, rates, learning_rate, weight_decay)


def decayed_names(model: nn.Module, decay_norm_and_bias: bool = False) -> list[str]:
    """Names of the parameters that decay: of more than one axis, or of any axes where that is
    asked for or a component asks for it; and spared by nobody.

    Raises:
        InvalidInputError: a component spares a parameter that it does not have.

    Example:
        >>> decayed_names(nn.Linear(2, 2)), decayed_names(nn.Linear(2, 2), True)
        (['weight'], ['weight', 'bias'])
    """
    of_model = said_by(model, "no_weight_decay")
    spared, forced = (
        {id(tensor) for tensor, _ in _named_by_components(model, word)}
        for word in ("no_weight_decay", "force_weight_decay")
    )
    return [
        name
        for name, parameter in model.named_parameters()
        if (parameter.dim() > 1 or decay_norm_and_bias or id(parameter) in forced)
        and name not in of_model
        and id(parameter) not in spared
    ]


def parametrization_of(given: Parametrization | str | None, objective: Any = None) -> Any:
    """A parametrization given as itself or by its name, else the objective's, else the standard.

    Example:
        >>> parametrization_of("standard")
        Standard(multipliers={}, decay_norm_and_bias=False)
        >>> parametrization_of("sandard")
        Traceback (most recent call last):
        ...
        modwright.core.errors.InvalidInputError: unknown parametrization 'sandard'; valid values: \
standard (did you mean 'standard'?)
    """
    chosen = getattr(objective, "parametrization", None) if given is None else given
    if isinstance(chosen, str):
        return PARAMETRIZATIONS[chosen]()
    return Standard() if chosen is None else chosen


def check_groups(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Refuses groups that leave out a parameter that learns, or have one twice.

    Raises:
        InvalidInputError: names the parameter.
    """
    counts: dict[int, int] = {}
    for group in groups:
        for parameter in group["params"]:
            counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    for name, parameter in model.named_parameters():
        count = counts.get(id(parameter), 0)
        if parameter.requires_grad and count != 1:
            raise InvalidInputError(
                f"the parametrization has {name} in {count} groups; a parameter that learns is in "
                "one"
            )


def _multipliers(model: nn.Module, patterns: Mapping[str, float]) -> dict[int, float]:
    """Id of a parameter -> what multiplies its learning rate, where something does."""
    found: dict[int, float] = {}
    for pattern, value in patterns.items():
        matched = matching_parameters(model, pattern)
        if not matched:
            raise InvalidInputError(
                f"{pattern!r} matches no parameter; write a selector, as mlp[*] or block[0:2], or "
                "a pattern of names, as *.bias"
            )
        for parameter in matched:
            found.setdefault(id(parameter), float(value))
    for tensor, value in _named_by_components(model, "learning_rate_multipliers"):
        found.setdefault(id(tensor), float(value))
    return found


def matching_parameters(model: nn.Module, pattern: str) -> list[nn.Parameter]:
    """The parameters that a selector means, or whose names a pattern matches.

    Example:
        >>> import modwright
        >>> model = modwright.open("preset:tiny-llama").model
        >>> [len(matching_parameters(model, pattern)) for pattern in ("mlp[0]", "*norm.weight")]
        [3, 9]
    """
    if not _SELECTOR.match(pattern):
        return [p for name, p in model.named_parameters() if fnmatchcase(name, pattern)]
    modules = matching_modules(model, pattern)
    return [parameter for module in modules for parameter in module.parameters(recurse=False)]


def matching_modules(model: nn.Module, selector: str) -> list[nn.Module]:
    """The modules that hold tensors of the parts that a selector means, each once."""
    found = (module for part in select(Anatomy.of(model), selector) for module in part.modules())
    return list(dict.fromkeys(found))


def _named_by_components(model: nn.Module, word: str) -> Iterator[tuple[Tensor, Any]]:
    """The tensors that components list under a word, and what they say of each."""
    for path, module in model.named_modules():
        component = component_of(module)
        if component is None:
            continue
        where, said = path or component.name, said_by(module, word)
        with refusing(where):
            listed = listed_tensors(module, word)
        for name, tensor in listed.items():
            value = said[name] if isinstance(said, Mapping) else None
            if value is not None:
                _check_multiplier(value, f"{where}: {word} of {name!r}")
            yield tensor, value


def _check_multiplier(value: Any, what: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise InvalidInputError(f"{what}: must be a number above 0, not {value!r}")
