"""What torch has no public name for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.distributed import _composable_state
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["BATCH_NORMS", "DROPOUTS", "child_modules", "has_forward_hooks", "hooks_of"]
__all__ += ["on_tensors_of", "tensor_tables", "tensors_of", "undoable"]

BATCH_NORMS: tuple[type[nn.Module], ...] = (nn.modules.batchnorm._BatchNorm,)
"""What all kinds of batch norm derive from; no public class has them all below it."""

DROPOUTS: tuple[type[nn.Module], ...] = (nn.modules.dropout._DropoutNd,)
"""What all kinds of dropout derive from; no public class has them all below it."""


def tensor_tables(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """The module's own parameters and buffers by name; what is written there is what it has.

    ``named_parameters`` leaves out what is None and what has two names, and cannot be written.
    """
    return module._parameters, module._buffers


def child_modules(module: nn.Module) -> dict[str, nn.Module]:
    """The module's own children by name; ``named_children`` leaves out one that has two names."""
    return {name: child for name, child in module._modules.items() if child is not None}


def hooks_of(module: nn.Module) -> dict[str, list[Any]]:
    """What is hung onto a module, by kind. Hooks can be registered in public, but not seen."""
    kinds = {
        "forward hook": module._forward_hooks,
        "forward pre-hook": module._forward_pre_hooks,
        "backward hook": module._backward_hooks,
        "backward pre-hook": module._backward_pre_hooks,
    }
    return {kind: list(hooks.values()) for kind, hooks in kinds.items()}


def has_forward_hooks(module: nn.Module) -> bool:
    """Someone looks at what the module reads or gives, so it must really be called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors in a tree of tuples, lists and dictionaries, in its order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def on_tensors_of(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same tree with a function applied to each of its tensors; what else it holds stays."""
    return tree_map_only(Tensor, function, tree)


def undoable(model: nn.Module, change: Callable[[], Any]) -> Callable[[], None]:
    """Changes the modules of a model, and gives what takes that back.

    Classes, hooks and parameters are then the objects that they were; ``fully_shard``, which
    replaces all three, has no way back of its own.
    """
    before = [
        (
            module,
            type(module),
            set(vars(module)),
            {k: dict(vars(module)[k]) for k in _tables(module)},
        )
        for module in model.modules()
    ]
    change()
    added = [set(vars(module)) - names for module, _, names, _ in before]

    def undo() -> None:
        for (module, kind, _, tables), names in zip(before, added, strict=True):
            module.__class__ = kind
            _composable_state._module_state_mapping.pop(module, None)
            for name in names:
                vars(module).pop(name, None)
            for name, entries in tables.items():
                table = vars(module)[name]  # handles of hooks hold the table itself
                table.clear()
                table.update(entries)

    return undo


def _tables(module: nn.Module) -> list[str]:
    found = {name for name, value in vars(module).items() if isinstance(value, dict)}
    return [name for name in found if name == "_parameters" or "_hooks" in name]
