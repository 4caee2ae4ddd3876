"""A model's weights shared by several processes, block by block (FSDP2 of torch)."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from modwright.core import distributed
from modwright.core.compat.torch import forget_sharding
from modwright.core.compat.transformers import blocks_in_one_piece
from modwright.core.distributed import shard_modules_
from modwright.core.errors import InvalidInputError
from modwright.nn.block import blocks_in
from modwright.training.options import Training

__all__ = ["WholeAfterwards", "blocks_of", "check_sharding", "kept_environment", "shard_blocks"]
__all__ += ["use_plugin"]

# What accelerate writes into the environment, where the next training would find it.
_WRITTEN = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")


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


def check_sharding(training: Training, *, chooses: bool = False) -> None:
    """Refuses the argument ``fsdp`` of a training where it cannot be done, in one line.

    Args:
        training: that is asked for.
        chooses: it keeps its best state.
    """
    arguments = training.arguments
    if not arguments.get("fsdp"):
        return
    if distributed.size() == 1:
        raise InvalidInputError(
            "fsdp: shards a model over several processes, and there is one; start it with "
            "torchrun or accelerate launch"
        )
    if chooses or training.ema_decay is not None:
        raise InvalidInputError(
            "fsdp: a sharded training keeps no running mean and no best state; leave fsdp out, or "
            "ema_decay"
        )
    config = arguments.get("fsdp_config") or {}
    if not isinstance(config, Mapping):
        raise InvalidInputError("fsdp_config: must be a mapping of options")
    given = {key.removeprefix("fsdp_"): value for key, value in config.items()}
    if str(given.get("version", 2)) != "2":
        raise InvalidInputError("fsdp_config: models are sharded by version 2 alone")
    if given.get("activation_checkpointing"):
        raise InvalidInputError(
            "fsdp_config: write gradient_checkpointing in place of activation_checkpointing"
        )


@contextmanager
def kept_environment() -> Iterator[None]:
    """What accelerate notes of sharding in the environment ends with the block."""
    before = {name: os.environ.get(name) for name in _WRITTEN}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def use_plugin(accelerator: Any, options: Mapping[str, Any], model: nn.Module) -> None:
    """Lets accelerate shard a model block by block, on CPUs, too, where it passes the plugin over.

    Args:
        accelerator: of a training.
        options: of its FullyShardedDataParallelPlugin.
        model: whose blocks are one group of parameters each.
    """
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = accelerator.state
    if state.distributed_type != DistributedType.FSDP:
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**options)
    plugin = state.fsdp_plugin
    if not plugin.transformer_cls_names_to_wrap:
        plugin.transformer_cls_names_to_wrap = sorted({type(b).__name__ for b in blocks_of(model)})


class WholeAfterwards(TrainerCallback):
    """A model that is sharded while it is trained, and in one piece in every process afterwards.

    It takes up what its modules are before they are sharded; :meth:`restore` gives them their
    classes, hooks and parameters back, these with what was learned.

    Args:
        model: that is to be sharded.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = [
            (module, type(module), {name: _copied(one) for name, one in vars(module).items()})
            for module in model.modules()
        ]
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.buffers = dict(model.named_buffers(remove_duplicate=False))
        self.dtypes = {name: p.dtype for name, p in self.parameters.items()}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The whole of what learns is not needed until the end."""
        for parameter in self.parameters.values():
            if parameter.requires_grad:
                parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the parameters together, in all processes at once."""
        for module in self.model.modules():
            reshard = getattr(module, "reshard", None)
            if callable(reshard):
                reshard()
        learned = dict(self.model.named_parameters(remove_duplicate=False))
        for name, parameter in self.parameters.items():
            if parameter.requires_grad and not parameter.numel():
                parameter.data = distributed.whole(learned[name].detach()).to(self.dtypes[name])
            parameter.grad = None
        current = dict(self.model.named_buffers(remove_duplicate=False))
        for name, buffer in self.buffers.items():
            buffer.data = current[name].data
        for module, kind, kept in self.modules:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(kept)
            forget_sharding(module)
        self.model.to(next(p.device for p in self.parameters.values() if p.requires_grad))


def _copied(value: Any) -> Any:
    """A table of a module, as sharding would write into it; what else it has is kept as it is."""
    return copy.copy(value) if isinstance(value, dict | list | set) else value
