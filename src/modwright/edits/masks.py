"""Masks: numbers of a weight that are zero and stay zero, stored and computed as before.

Which weights are masked stands in the config, as ``modwright_masked``: addresses of parameters.
Stock classes carry the key along, so a masked model stays plain.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.edits.change import Change

__all__ = ["carry_masks", "mask", "masked_addresses", "masked_parameters", "pack", "unpack"]
__all__ += ["write_masks"]

_KEY = "modwright_masked"


def mask(address: str, keep: Tensor) -> Change:
    """Sets numbers of a parameter to zero, and keeps them zero in later trainings.

    Args:
        address: of a parameter, such as "blocks.3.mlp.up.weight".
        keep: true where a number stays, of the parameter's shape.

    Raises:
        InvalidInputError: ``keep`` holds no truth values.

    Example:
        >>> import modwright
        >>> opened = modwright.open("preset:tiny-llama")
        >>> weight = opened.anatomy.part("blocks.0.mlp.up").weight
        >>> small = weight.abs() < weight.abs().median()
        >>> masked = modwright.apply(opened, mask("blocks.0.mlp.up.weight", ~small))
        >>> str(masked.tensor_diff), masked.plain
        ('39 tensors kept, 0 changed, 0 added, 0 removed, 1 masked', True)
    """
    if keep.dtype != torch.bool:
        raise InvalidInputError(f"{address}: a mask holds truth values, not {keep.dtype}")
    return Change(masks={address: keep})


def masked_addresses(model: Any) -> list[str]:
    """Addresses of the parameters in which zeros stay zero."""
    stored = getattr(getattr(model, "config", None), _KEY, None)
    return [one for one in stored if isinstance(one, str)] if isinstance(stored, list) else []


def masked_parameters(model: Any) -> dict[str, Tensor]:
    """Name of a parameter in the model -> the parameter, of those in which zeros stay zero."""
    addresses = masked_addresses(model)
    if not addresses:
        return {}
    anatomy = Anatomy.of(model)
    stored, parts = _stored(anatomy), dict(anatomy.parts())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = (stored[address] for address in addresses if address in stored)
    tensors = (getattr(*parts[part].stored_at(name)) for part, name in found)
    return {names[id(tensor)]: tensor for tensor in tensors if id(tensor) in names}


def write_masks(edited: Anatomy, masks: Mapping[str, Tensor], shared: set[int]) -> set[int]:
    """Sets what masks leave out to zero, in copies of tensors that are ``shared`` with a source.

    Gives the ids of the tensors that were masked.
    """
    stored, parts, masked = _stored(edited) if masks else {}, dict(edited.parts()), set()
    for address, keep in masks.items():
        part, name = stored.get(address, ("", ""))
        current = parts[part].parameters()[name] if part else None
        if current is None or current.shape != keep.shape or not current.is_floating_point():
            there = "is not there" if current is None else f"has shape {tuple(current.shape)}"
            raise InvalidInputError(f"a mask {tuple(keep.shape)} is for {address}, which {there}")
        module, leaf = parts[part].stored_at(name)
        old: Any = getattr(module, leaf)
        if id(old) in shared:
            setattr(module, leaf, copy.deepcopy(old))
            current = parts[part].parameters()[name]
        parts[part].write(name, current.masked_fill(~keep.to(current.device), 0))
        masked.add(id(getattr(module, leaf)))
    return masked


def carry_masks(source: Any, edited: Anatomy, blocks: Sequence[int], masks: Iterable[str]) -> None:
    """Notes in the config where zeros stay: in new masks, and in those that the source has.

    ``blocks`` are the source's numbers of the blocks of the result.
    """
    addresses = set(masks)
    for address in masked_addresses(source):
        head, _, rest = address.partition(".")
        index, _, role = rest.partition(".")
        new = {f"{head}.{i}.{role}" for i, origin in enumerate(blocks) if str(origin) == index}
        addresses |= new if head == "blocks" else {address}
    there = sorted(addresses & _stored(edited).keys()) if addresses else []
    if there or masked_addresses(edited.model):
        setattr(edited.model.config, _KEY, there)


def _stored(anatomy: Anatomy) -> dict[str, tuple[str, str]]:
    """Address of a parameter -> that of its part, and its name there."""
    named = ((address, name) for address, part in anatomy.parts() for name in part.parameters())
    return {f"{address}.{name}": (address, name) for address, name in named}


def pack(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks as a file holds them: a bit for each number."""
    flat = {name: keep.cpu().numpy().ravel() for name, keep in masks.items()}
    return {f"mask:{name}": torch.from_numpy(np.packbits(bits)) for name, bits in flat.items()}


def unpack(
    stored: dict[str, Tensor], shapes: Mapping[str, list[int]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Masks of what a file holds, and all else in it."""
    packed = {name: stored.pop(f"mask:{name}") for name in shapes}
    masks = {
        name: torch.from_numpy(np.unpackbits(bits.numpy(), count=int(np.prod(shapes[name]))))
        .bool()
        .reshape(shapes[name])
        for name, bits in packed.items()
    }
    return masks, stored
