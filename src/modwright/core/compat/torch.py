"""What torch has no public name for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["BATCH_NORMS", "DROPOUTS", "child_modules", "has_forward_hooks", "hooks_of"]
__all__ += ["on_tensors_of", "tensor_tables", "tensors_of"]

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
