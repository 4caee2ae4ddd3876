"""A model's weights shared by several processes, block by block (FSDP2 of torch)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from modwright.core.compat.torch import BATCH_NORMS, on_tensors_of, undoable
from modwright.core.compat.transformers import blocks_in_one_piece
from modwright.core.distributed import shard_modules_, sharded_like, size, whole
from modwright.core.errors import InvalidInputError
from modwright.nn.block import blocks_in

__all__ = ["Sharded", "asks_sharding", "blocks_of", "check_sharding", "shard_blocks"]
__all__ += ["sharding_note"]

# What stands beside fsdp, whose way of the same is not the one here.
_BESIDE = ("auto_find_batch_size", "deepspeed", "fp16", "torch_compile")


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


def asks_sharding(arguments: Mapping[str, Any]) -> bool:
    """Whether arguments of transformers' Trainer ask for FSDP2.

    Raises:
        InvalidInputError: another kind of FSDP, or an argument that does not go with it.

    Example:
        >>> asks_sharding({"fsdp": True, "fsdp_config": {"version": 2}}), asks_sharding({})
        (True, False)
    """
    asked, options = arguments.get("fsdp"), arguments.get("fsdp_config") or {}
    if asked not in (None, False, "", [], True, "full_shard", "full_shard auto_wrap"):
        raise InvalidInputError(f"fsdp is true, full_shard or false, not {asked!r}")
    if options not in ({}, {"version": 2}):
        raise InvalidInputError(f"fsdp_config is {{version: 2}}, not {options!r}")
    for name in _BESIDE if asked else ():
        if arguments.get(name):
            raise InvalidInputError(f"{name} does not go with fsdp")
    return bool(asked)


def check_sharding(model: nn.Module, parts: Any) -> None:
    """Refuses a model that cannot be trained in parts, and an objective with parameters."""
    if parts is not None:
        raise InvalidInputError("fsdp: an objective with parameters of its own is not sharded")
    if any(isinstance(module, BATCH_NORMS) for module in model.modules()):
        raise InvalidInputError("fsdp: a BatchNorm counts in each process for itself")
    if not blocks_of(model):
        raise InvalidInputError(f"fsdp: {type(model).__name__} has no blocks that are known here")


def sharding_note(shared: bool) -> str:
    """What is said where it was asked for."""
    if shared:
        return f"fsdp: {size()} processes share the weights, gradients and moments of the optimizer"
    return "fsdp: one process has nobody to share with, so it is a plain training"


class Sharded:
    """A model that is in parts while it is trained: :func:`shard_blocks`, with a way back.

    Its own parameters wait in the memory of the host meanwhile, as they were.

    Args:
        model: changed in place, before its optimizer is made.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.own = model, dict(model.named_parameters())
        self.device = next(iter(self.own.values())).device
        self._undo = undoable(model, lambda: shard_blocks(model))
        self._move("cpu")

    def _move(self, device: Any) -> None:
        for parameter in self.own.values():
            parameter.data = parameter.data.to(device)

    def share_state(self, optimizer: Any) -> None:
        """Its state is written whole, by one process with all others, and read by each."""
        optimizer.register_state_dict_post_hook(lambda _, state: on_tensors_of(state, whole))
        optimizer.register_load_state_dict_pre_hook(_shared_state)

    def end(self, *, gather: bool) -> None:
        """The model is in one piece again: as it has become, or, without the others, as it was."""
        if gather:
            with torch.no_grad():
                for name, part in self.model.named_parameters():
                    self.own[name].data = whole(part.detach())
        self._undo()
        self._move(self.device)


def _shared_state(optimizer: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """A whole state of an optimizer as this process's share of it."""
    owners = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))

    def share(index: int, tensor: Any) -> Any:
        same = getattr(tensor, "shape", None) == owners[index].shape
        return sharded_like(tensor, owners[index]) if same else tensor

    shared = {
        index: {name: share(index, value) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": shared}
