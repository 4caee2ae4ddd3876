"""Edits that the stock class of a model fulfills, and those that it may overlook.

A component that is registered with ``is_stock`` says when it is what the stock class builds: the
edit then means nothing. One with ``stock_tensors`` says when a file of it is right for the stock
class, though another module computes what that one does: the edit stays, for the speed or the
further abilities of the component, and stock transformers opens the weights without it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError, refusing
from modwright.edits.edit import Edit, State, split_address
from modwright.edits.registry import KIND_AT, component_named, is_registered
from modwright.nn.component import Component

__all__ = ["check_stock_tensors", "has_stock_tensors", "is_fulfilled", "may_be_stock"]
__all__ += ["keeps_keys", "shape_of", "tensor_shapes"]


def may_be_stock(edit: Edit) -> bool:
    """A stock model may have what the edit says, with other numbers in its config."""
    return _claim(edit, "is_stock") is not None


def is_fulfilled(edit: State, stock: Anatomy) -> bool:
    """A stock model has what the edit says."""
    claim = _claim(edit, "is_stock")
    part = None if claim is None else _part_at(stock, edit.path)
    return part is not None and bool(claim(part))


def has_stock_tensors(edit: Edit, config: Any) -> bool:
    """What stands there has the tensors of what the stock class of a config builds, and computes
    the same from them.

    Example:
        >>> from modwright.edits import Replace
        >>> has_stock_tensors(Replace("blocks.0.mlp", "absent"), None)
        False
    """
    claim = _claim(edit, "stock_tensors")
    return claim is not None and bool(claim(config))


def shape_of(edit: Edit) -> Any:
    """The shape of what an edit names; None where it has none, or none is registered."""
    if (component := _component(edit)) is None or component.shape is None:
        return None
    with refusing(f"part {component.name!r}", (TypeError, ValueError)):
        return component.told(getattr(edit, "kwargs", {}))["shape"]


def keeps_keys(edit: Edit) -> bool:
    """What stands there keeps keys and values, in a slot of the cache."""
    return (component := _component(edit)) is not None and component.state == "keys"


def _component(edit: Edit) -> Component | None:
    part = getattr(edit, "part", "")
    if not part or not is_registered(part):
        return None
    return component_named(part, KIND_AT.get(split_address(edit.path)[1]))


def _claim(edit: Edit, word: str) -> Any:
    """The question that the component of an edit answers, with the edit's arguments."""
    component, arguments = _component(edit), getattr(edit, "kwargs", {})
    ask = None if component is None else getattr(component, word)
    if component is None or ask is None:
        return None

    def claim(of: Any) -> Any:
        with refusing(f"part {component.name!r}", (TypeError, ValueError)):
            return ask(of, **component.told(arguments))

    return claim


def _part_at(anatomy: Anatomy, address: str) -> Any:
    """A part, or a linear layer in one; None where there is none, as of a backbone's head."""
    index, role = split_address(address)
    if index is None:
        return anatomy.outer.get(role)
    outer, _, inner = role.partition(".")
    block = anatomy.blocks[index]
    part: Any = block.at(outer) if outer in ("attention", "mlp") else block.norms.get(role)
    return part if part is None or not inner else part.projections().get(inner)


def tensor_shapes(block: nn.Module) -> dict[str, tuple[int, ...]]:
    """What a file holds of a module: shapes by name."""
    return {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()}


def check_stock_tensors(
    edit: State, before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]]
) -> None:
    """Refuses a component that says it has the stock tensors and has others.

    Args:
        edit: what was carried out.
        before: see :func:`tensor_shapes`, of the stock block.
        after: of the edited one.
    """
    if before == after:
        return
    odd = sorted(before.items() ^ after.items())[0][0]
    raise InvalidInputError(
        f"{edit.path}: {getattr(edit, 'part', '')} says that it has the tensors of the stock part, "
        f"and {odd} is {after.get(odd, 'missing')} where {before.get(odd, 'nothing')} stands there"
    )
