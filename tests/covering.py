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
    ``families`` runs on these families alone. With ``few`` all families run so many cases.
    """
    cases: dict[Any, list[tuple[Any, ...]]] = {}
    families: dict[Any, list[str]] = {}
    found = [(item, _split(item, presets)) for item in items]
    for _, split in found:
        if split is not None:
            function, preset, case = split
            for known, value in ((cases, case), (families, preset)):
                listed: list[Any] = known.setdefault(function, [])  # type: ignore[attr-defined]
                if value not in listed and (few or value not in LAYOUT_CLASSES):
                    listed.append(value)

    def runs(item: Any, split: Any) -> bool:
        if split is None:
            return True
        function, preset, case = split
        only, mark = item.get_closest_marker("families"), item.get_closest_marker("covering")
        if only is not None:
            return preset in only.args
        if few is None and preset in LAYOUT_CLASSES:
            return True
        if few is None and mark is not None:
            return bool(mark.args[0](item.callspec.params))
        share, number = few or FEW, len(cases[function])
        first = families[function].index(preset) * share
        return (cases[function].index(case) - first) % number < share

    return [item for item, split in found if runs(item, split)]


def _split(item: Any, presets: Container[str]) -> tuple[Any, str, tuple[Any, ...]] | None:
    """The function of a test, its family and the rest of its parameters; None without a family."""
    spec = getattr(item, "callspec", None)
    names = [name for name in FAMILY_ARGUMENTS if spec is not None and name in spec.params]
    family = spec.params[names[0]] if names else None
    if not isinstance(family, str) or family not in presets:
        return None
    rest = tuple(sorted((n, i) for n, i in spec.indices.items() if n != names[0]))
    return (item.path, item.originalname), family, rest
