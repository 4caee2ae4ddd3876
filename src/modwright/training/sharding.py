"""A model's weights shared by several processes, block by block (FSDP2 of torch)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from modwright.core.compat.transformers import blocks_in_one_piece
from modwright.core.distributed import shard_modules_
from modwright.core.errors import InvalidInputError
from modwright.nn.block import blocks_in

__all__ = ["blocks_of", "shard_blocks"]


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The modules that a model is repeated of, in order; not those inside of others.

    They are what stands in a ``BlockSequence``; in a model of transformers, what its
    ``_no_split_modules`` name.

    Example:
        >>> from modwright.models import create_model
        >>> len(blocks_of(create_model("poolformer_s12", depths=[1, 2], hidden_sizes=[8, 16])))
        3
    """
    names = blocks_in_one_piece(model)
    found = {
        block: None
        for module in model.modules()
        for block in blocks_in(module) or _named(module, names)
    }
    inner = {part for block in found for part in block.modules() if part is not block}
    return [block for block in found if block not in inner]


def _named(module: nn.Module, names: Collection[str]) -> list[nn.Module]:
    """The children of a module whose classes have one of these names."""
    return [child for child in module.children() if type(child).__name__ in names]


def shard_blocks(model: Any, mesh: Any = None) -> Any:
    """Shards a model in place, and gives it back: each process keeps its part of every parameter.

    The parameters of one block at a time are put together for its forward and backward pass; what
    stands outside of blocks, stem and head, is one group more. Losses are means: gradients are
    those of the mean over all processes, as with one process and the joint batch.

    Make the optimizer after this. Parameters and gradients are DTensors; ``full_tensor()`` puts one
    together. The model is the same in all processes, before any has trained; ``mesh`` is of
    torch.distributed's devices, all processes in one row by default.

    Raises:
        InvalidInputError: torch.distributed is not set up, or the model has no blocks.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise InvalidInputError(f"{type(model).__name__} has no blocks that are known here")
    shard_modules_([*blocks, model], mesh)
    return model
