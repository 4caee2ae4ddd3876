"""Which neurons of nested MLPs a model uses: one width for each layer (arXiv 2310.07707)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError, refusing
from modwright.edits.edit import Remove, State
from modwright.edits.remodeled import edits_of

__all__ = ["NestedPart", "Widths", "granularity", "mix_and_match", "nested_parts"]
__all__ += ["set_granularity", "widths_of"]

Widths = int | str | Sequence[int | str]
"""One width for all nested MLPs, or one for each; by number or by the paper's S, M, L, XL."""


@dataclass(frozen=True)
class NestedPart:
    """A nested MLP of a model, and where it stands."""

    address: str
    module: Any

    def parameters_at(self, width: int) -> int:
        """Numbers of the MLP of the first ``width`` neurons."""
        return sum(view.numel() for view in self.module.prefix(width).values() if view is not None)


def nested_parts(model: Any) -> list[NestedPart]:
    """The nested MLPs of a model, first to last.

    Raises:
        InvalidInputError: there are none, or two layers share one.
    """
    anatomy = Anatomy.of(model)
    found: list[NestedPart] = []
    seen: set[int] = set()
    for block in anatomy.blocks:
        part: Any = block.at("mlp") if "mlp" in anatomy.family.block else None
        module: Any = getattr(part, "module", None)
        if not callable(getattr(module, "prefix", None)):
            continue
        own = {id(parameter) for parameter in module.parameters()}
        if own & seen:
            raise InvalidInputError(f"{part.address} shares its weights with another layer")
        seen |= own
        found.append(NestedPart(part.address, module))
    if not found:
        raise InvalidInputError("the model has no nested MLP; `nest` puts them in place")
    return found


def widths_of(model: Any, asked: Widths | None = None) -> list[int]:
    """One width for each nested MLP: those that are used, or those that are asked for.

    Raises:
        InvalidInputError: as :func:`nested_parts`; an unknown width; a list of another length.

    Example:
        >>> import modwright
        >>> nested = modwright.apply(modwright.open("preset:tiny-llama"), "nest").model
        >>> widths_of(nested), widths_of(nested, ["S", "S", 40, "L"])
        ([96, 96, 96, 96], [12, 12, 40, 48])
    """
    parts = nested_parts(model)
    if asked is None:
        return [part.module.width for part in parts]
    several = asked if isinstance(asked, Sequence) and not isinstance(asked, str) else None
    each = [asked] * len(parts) if several is None else list(several)
    if len(each) != len(parts):
        raise InvalidInputError(f"{len(each)} widths for {len(parts)} nested MLPs")
    found = []
    for part, width in zip(parts, each):
        with refusing(part.address):
            found.append(part.module.shape.width_of(width))
    return found


def set_granularity(model: Any, widths: Widths) -> list[int]:
    """Lets every nested MLP use so many neurons from now on, also once it is saved and reopened.

    Raises:
        InvalidInputError: as :func:`widths_of`; nothing is changed then.

    Example:
        >>> import modwright
        >>> nested = modwright.apply(modwright.open("preset:tiny-llama"), "nest").model
        >>> set_granularity(nested, "M")
        [24, 24, 24, 24]
    """
    own: Any = Anatomy.of(model).model
    found = widths_of(own, widths)
    told = {part.address: width for part, width in zip(nested_parts(own), found)}
    _set(own, found)
    own.config.edits = [_with_width(edit, told).to_dict() for edit in edits_of(own.config)]
    return found


@contextmanager
def granularity(model: Any, widths: Widths) -> Iterator[list[int]]:
    """Within the context, every nested MLP uses so many neurons; what is saved does not change.

    Raises:
        InvalidInputError: as :func:`widths_of`.

    Example:
        >>> import modwright
        >>> nested = modwright.apply(modwright.open("preset:tiny-llama"), "nest").model
        >>> with granularity(nested, ["S", "S", "M", "M"]) as widths:
        ...     widths
        [12, 12, 24, 24]
        >>> widths_of(nested)
        [96, 96, 96, 96]
    """
    before, found = widths_of(model), widths_of(model, widths)
    _set(model, found)
    try:
        yield found
    finally:
        _set(model, before)


def mix_and_match(
    widths: Sequence[int],
    num_layers: int,
    budget: float,
    cost: Callable[[int], float] = float,
) -> list[int]:
    """A width for each layer, as large as a budget allows.

    Two neighboring widths are mixed: the first layers take the smaller one, the others the larger,
    as the paper advises. Of all such mixtures the dearest one that the budget pays for is taken.

    Args:
        widths: increasing.
        budget: for all layers together.
        cost: of a layer of a width; the number of its neurons unless it is said.

    Raises:
        InvalidInputError: widths that do not increase, no layer, or a budget below the smallest.

    Example:
        >>> mix_and_match([12, 24, 48, 96], 4, 120)
        [24, 24, 24, 48]
    """
    sizes = list(widths)
    if not sizes or sizes[0] < 1 or any(a >= b for a, b in itertools.pairwise(sizes)):
        raise InvalidInputError(f"widths increase from at least 1 on; {sizes} do not")
    if num_layers < 1:
        raise InvalidInputError(f"num_layers must be at least 1, not {num_layers}")
    mixtures = [
        [low] * few + [high] * (num_layers - few)
        for low, high in zip(sizes, sizes[1:] or sizes)
        for few in range(num_layers + 1)
    ]
    paid = [(sum(map(cost, mixture)), mixture) for mixture in mixtures]
    least = min(paid)[0]
    if budget < least:
        raise InvalidInputError(f"a budget of {budget:,} is below the smallest model's {least:,}")
    return max(one for one in paid if one[0] <= budget)[1]


def _set(model: Any, widths: Sequence[int]) -> None:
    for part, width in zip(nested_parts(model), widths, strict=True):
        part.module.width = width


def _with_width(edit: State, told: Mapping[str, int]) -> State:
    if edit.path not in told or isinstance(edit, Remove):
        return edit
    return replace(edit, kwargs={**edit.kwargs, "width": told[edit.path]})
