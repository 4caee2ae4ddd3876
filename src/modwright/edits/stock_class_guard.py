"""What a stored config says of layers that differ, so that no stock class overlooks an edit.

A stock class that meets a checkpoint with a part missing starts that part from random numbers and
only warns. It stops where a field of its config is no number. So a field that differs between
layers is stored as the list of what it is in each layer; older transformers stops there as newer
does. Newer transformers also reads such fields from ``per_layer_config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["add_stock_class_guard", "strip_stock_class_guard", "with_layers"]

_STOCK = "modwright_stock"

Overrides = Mapping[int, Mapping[str, Any]]
"""Layer -> what differs there, by the name of the config's field; "skip" lists absent parts.

"a.b" names the field b of the dictionary a, where a config has such a one.
"""


def with_layers(stored: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """Adds the entry of every layer that differs, in the form that transformers reads since 5.14.

    Example:
        >>> with_layers({}, {11: {"intermediate_size": 0}})
        {'per_layer_config': {'11': {'intermediate_size': 0}}}
    """
    # A field inside a dictionary is none that transformers looks for in a layer.
    told = {i: dict(e) for i, e in overrides.items() if not any("." in name for name in e)}
    if not told:
        return stored
    digits = len(str(max(told)))
    entries = {str(index).zfill(digits): entry for index, entry in told.items()}
    return {**stored, "per_layer_config": entries}


def add_stock_class_guard(
    stored: dict[str, Any], overrides: Overrides, config: Any, num_layers: int
) -> dict[str, Any]:
    """Stores each field that differs as one value for each layer, and the stock value beside it.

    Example:
        >>> from types import SimpleNamespace
        >>> stock = SimpleNamespace(intermediate_size=96)
        >>> add_stock_class_guard({}, {1: {"intermediate_size": 0, "skip": ["mlp"]}}, stock, 3)
        {'intermediate_size': [96, 0, 96], 'modwright_stock': {'intermediate_size': 96}}
    """
    told = {name for entry in overrides.values() for name in entry} - {"skip"}
    stock = {n: value for name in sorted(told) for n, value in _read(config, name).items()}
    if not stock:
        return stored
    for name, usual in stock.items():
        each = [overrides.get(index, {}).get(name, usual) for index in range(num_layers)]
        stored = _written(stored, name, each)
    return {**stored, _STOCK: stock}


def strip_stock_class_guard(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The stored config with the values that its stock class is built with.

    A field that is no list any more was changed since, and stays as it is.

    Example:
        >>> strip_stock_class_guard({"ffn_dim": [96, 0], "modwright_stock": {"ffn_dim": 96}})
        {'ffn_dim': 96}
    """
    kept = {name: value for name, value in stored.items() if name != _STOCK}
    for name, usual in (stored.get(_STOCK) or {}).items():
        outer, _, inner = name.partition(".")
        held = stored.get(outer)
        held = held.get(inner) if inner and isinstance(held, dict) else held
        kept = _written(kept, name, usual) if isinstance(held, list) else kept
    return kept


def _read(config: Any, name: str) -> dict[str, Any]:
    """A field with its name; nothing where the config has none."""
    outer, _, inner = name.partition(".")
    if not inner:
        return {name: getattr(config, name)} if hasattr(config, name) else {}
    held = getattr(config, outer, {})
    return {name: held[inner]} if inner in held else {}


def _written(stored: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """``stored`` with a field replaced; "a.b" is the field b of the dictionary a."""
    outer, _, inner = name.partition(".")
    return {**stored, outer: {**stored[outer], inner: value} if inner else value}
