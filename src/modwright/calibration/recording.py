"""How a model calls its blocks: recorded from its own forward, replayed one block at a time."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from modwright.anatomy import Anatomy
from modwright.core.capture import StopForward
from modwright.core.compat.torch import tensor_tables

__all__ = ["Call", "ModelInput", "moved", "on_device", "record"]

Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a block, without the stream


class ModelInput(Protocol):
    """One batch of whatever a model reads."""

    @property
    def attention_mask(self) -> Tensor | None:
        """(B, T): ones at real tokens; None if all are real."""

    def tensors(self) -> dict[str, Tensor]:
        """What the model is called with, by keyword."""


def record(
    anatomy: Anatomy, batches: Sequence[ModelInput]
) -> tuple[list[Tensor], list[list[Call]]]:
    """The stream (b, t, d) that enters block 0 for every batch, and ``calls[block][batch]``.

    The model runs with blocks that pass their input on, so only what stands before them computes.

    Raises:
        InvalidInputError: batches of something that the model does not read.
    """
    modules = [block.module for block in anatomy.blocks]
    backbone = anatomy.family.backbone(anatomy.model)
    device = next(anatomy.model.parameters()).device
    first: list[Tensor] = []
    calls: list[list[Call]] = [[] for _ in modules]

    def stand_in(index: int) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            hidden: Tensor = args[0] if args else kwargs.pop("hidden_states")
            if index == 0:
                first.append(hidden)
            previous = calls[index][-1] if calls[index] else ((), {})
            calls[index].append(_shared((args[1:], kwargs), previous))
            if index == len(modules) - 1:
                raise StopForward
            return hidden

        return forward

    for batch in batches:
        anatomy.family.inputs().check(batch.tensors())
    own = [module.__dict__.get("forward") for module in modules]
    try:
        for index, module in enumerate(modules):
            module.forward = stand_in(index)
        for batch in batches:
            with suppress(StopForward):
                backbone(**_inputs(backbone, batch, device))
    finally:
        for module, forward in zip(modules, own):
            del module.forward
            if forward is not None:  # a forward of its own, as accelerate's hooks give it
                module.forward = forward
    return first, calls


def _inputs(backbone: nn.Module, batch: ModelInput, device: torch.device) -> dict[str, Any]:
    """What the model is called with; a padded row counts positions from its first real token."""
    takes = inspect.signature(backbone.forward).parameters
    inputs: dict[str, Any] = {name: t.to(device) for name, t in batch.tensors().items()}
    mask = batch.attention_mask
    if mask is not None and "position_ids" in takes:
        inputs["position_ids"] = (mask.to(device).cumsum(-1) - 1).clamp(min=0)
    if "use_cache" in takes:
        inputs["use_cache"] = False
    return inputs


def _shared(call: Call, previous: Call) -> Call:
    """Tensors that are the same as in the batch before are held once."""

    def one(value: Any, old: Any) -> Any:
        if isinstance(value, Tensor) and isinstance(old, Tensor):
            same = value.shape == old.shape and value.dtype == old.dtype and torch.equal(value, old)
            return old if same else value
        if isinstance(value, tuple) and isinstance(old, tuple) and len(value) == len(old):
            return tuple(map(one, value, old))
        return value

    (args, kwargs), (old_args, old_kwargs) = call, previous
    return one(args, old_args), {name: one(v, old_kwargs.get(name)) for name, v in kwargs.items()}


def moved(value: Any, device: torch.device) -> Any:
    """The arguments of a call with their tensors on ``device``; what is there stays as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(moved(part, device) for part in value)
    if type(value) is dict:
        return {name: moved(part, device) for name, part in value.items()}
    return value


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """A block's weights on ``device`` for a while; then the very tensors as before."""
    held: list[tuple[dict[str, Any], str, Tensor]] = []
    there: dict[int, Tensor] = {}
    try:
        for part in module.modules():
            for table in tensor_tables(part):
                for name, own in table.items():
                    if own is None or own.device == device:
                        continue
                    if id(own) not in there:
                        copied = own.detach().to(device)
                        is_weight = isinstance(own, nn.Parameter)
                        there[id(own)] = nn.Parameter(copied, False) if is_weight else copied
                    held.append((table, name, own))
                    table[name] = there[id(own)]
        yield
    finally:
        for table, name, own in held:
            table[name] = own
