"""Covering tests in place of products: which cases run without ``--full``."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import pytest

__all__ = ["FAMILY_ARGUMENTS", "FEW", "LAYOUT_CLASSES", "covering"]

FAMILY_ARGUMENTS = ("preset", "decoder", "reader", "dense_mlps", "plain_heads", "dense")
LAYOUT_CLASSES = {
    "tiny-llama": "maps apart, rotary positions, key/value heads in groups, gates",
    "tiny-gpt2": "one transposed map for queries, keys and values, learned positions",
    "tiny-gpt-neox": "queries, keys and values interleaved, parallel sublayers, partial rotation",
    "tiny-bert": "an encoder with its norms behind the sublayers",
    "tiny-mixtral": "mixtures of experts",
    "tiny-qwen2-mixed": "windows in some layers, biases",
}
"""One family of each memory layout: every case of every test runs on these."""
FEW = 3
"""Cases that run on each other family, where a test does not say which."""


def covering(
    items: list[pytest.Item], presets: Container[str], few: int | None = None
) -> list[pytest.Item]:
    """The tests that are run without ``--full``, in their order.

    A test over families and other parameters runs all its cases on the families of
    ``LAYOUT_CLASSES``. On the others it runs the cases for which the predicate of its ``covering``
    mark holds, or ``FEW`` cases, from one family to the next in turn. A test with the mark
    ``families`` runs on these families alone. With ``few`` all families run so many cases. A case
    that nothing stands for, because it is one of a family alone, is always run.
    """
    found = [(item, _split(item, presets)) for item in items]
    runs_on: dict[Any, dict[Any, list[str]]] = {}  # function -> case -> families
    for _, split in found:
        if split is not None:
            function, preset, case = split
            runs_on.setdefault(function, {}).setdefault(case, []).append(preset)

    def runs(item: Any, split: Any) -> bool:
        if split is None:
            return True
        function, preset, case = split
        only, mark = item.get_closest_marker("families"), item.get_closest_marker("covering")
        if only is not None:
            return preset in only.args
        full = () if few else LAYOUT_CLASSES
        stands_for = full or runs_on[function][case][1:]
        if preset in full or not set(stands_for) & set(runs_on[function][case]):
            return True
        if few is None and mark is not None:
            return bool(mark.args[0](item.callspec.params))
        cases, share = list(runs_on[function]), few or FEW
        others = {
            name: None for on in runs_on[function].values() for name in on if name not in full
        }
        first = list(others).index(preset) * share
        return (cases.index(case) - first) % len(cases) < share

    return [item for item, split in found if runs(item, split)]


def _split(item: Any, presets: Container[str]) -> tuple[Any, str, tuple[Any, ...]] | None:
    """The function of a test, its family and the rest of its parameters; None without a family."""
    spec = getattr(item, "callspec", None)
    names = [name for name in FAMILY_ARGUMENTS if spec is not None and name in spec.params]
    family = spec.params[names[0]] if names else None
    if not isinstance(family, str) or family not in presets:
        return None
    # The values of a product are the same objects for every family; pytest's indices are not.
    rest = tuple(sorted((n, id(value)) for n, value in spec.params.items() if n != names[0]))
    return (item.path, item.originalname), family, rest
