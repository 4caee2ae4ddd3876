"""The one place that writes structure: a plan becomes a new model.

The source model is left as it is. The result is built from its config exactly as a reload would
build it; tensors that do not change are shared with the source, not copied. That costs no memory,
and is harmless as long as nobody writes; whoever trains a model separates it first.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from modwright.anatomy import Anatomy
from modwright.core.compat.torch import tensor_tables
from modwright.core.errors import InvalidInputError, ModwrightError, VerificationError
from modwright.core.modes import copy_modes
from modwright.edits.canonical import Target, target_of
from modwright.edits.change import Change
from modwright.edits.configured import check_as_configured
from modwright.edits.edit import split_address
from modwright.edits.masks import carry_masks, write_masks
from modwright.edits.plan import Plan
from modwright.edits.precision import kept_in_float32, wide_enough
from modwright.edits.remodeled import is_plain
from modwright.edits.verify import Verification, verify

__all__ = ["Applied", "TensorDiff", "apply", "own_tensors", "sharing_with"]

_GROUPS: WeakKeyDictionary[nn.Module, WeakSet[nn.Module]] = WeakKeyDictionary()
"""Models that share tensors with each other, for as long as they live."""


@dataclass(frozen=True)
class TensorDiff:
    """Where every tensor of the source went and every tensor of the result came from (by name).

    Those that were ``masked`` have zeros that later trainings keep; ``changed`` are others.
    """

    kept: tuple[str, ...]
    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    masked: tuple[str, ...] = ()

    def __str__(self) -> str:
        kept, changed, added, removed = map(
            len, (self.kept, self.changed, self.added, self.removed)
        )
        masked = f", {len(self.masked)} masked" if self.masked else ""
        return f"{kept} tensors kept, {changed} changed, {added} added, {removed} removed{masked}"


@dataclass(frozen=True)
class Applied:
    """A new model, and what became of the old one's tensors.

    Attributes:
        model: the edited model, in eval mode if the source was.
        plain: stock transformers loads its checkpoint.
        verification: what was checked; None if it was not asked for.
    """

    model: PreTrainedModel
    plain: bool
    tensor_diff: TensorDiff
    verification: Verification | None

    def __repr__(self) -> str:
        checked = "not verified" if self.verification is None else "verified"
        kind = type(self.model).__name__
        return f"Applied({kind}, {'plain, ' if self.plain else ''}{self.tensor_diff}, {checked})"


def apply(model: Any, plan: Plan | Change, *, check: bool = True) -> Applied:
    """Builds the edited model; all or nothing.

    Args:
        model: stays as it is and shares its unchanged tensors with the result; an opened
            checkpoint or an earlier result will do.
        plan: made for a model of this structure; or a change.
        check: verify decoding, causality and finiteness of the result.

    Raises:
        InvalidInputError: the plan does not fit, the model is offloaded or is not what its config
            says, or a new value is missing or NaN.
        VerificationError: the result breaks a promise.

    Example:
        >>> import modwright
        >>> from modwright.edits import remove
        >>> edited = apply(modwright.open("preset:tiny-llama"), remove("blocks.0.attention"))
        >>> modwright.Anatomy.of(edited).blocks[0]
        Block(0, pre-norm, holds mlp)
    """
    anatomy = Anatomy.of(model)
    plan = Plan.from_given(anatomy, plan)
    model = anatomy.model  # a model of another library is wrapped there
    _refuse_unready(model)
    check_as_configured(model)
    plan.check_fits(anatomy)
    for address, value in plan.tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InvalidInputError(f"the plan holds NaN or infinite values at {address}")
    target = target_of(anatomy, plan.edits)
    if anatomy.is_tied and target.tied and "head.weight" in plan.tensors:
        raise InvalidInputError(
            "head.weight is tied to embed.weight; write embed.weight, or untie them first"
        )
    built = target.skeleton()
    paths = _source_paths(anatomy, built, target)
    shared, copies, empty = _fill(model, built, paths)
    _write(anatomy, Anatomy.of(built), target.blocks, plan.tensors, shared, empty)
    masks = {_moved(address, target.blocks): keep for address, keep in plan.masks.items()}
    masked = write_masks(Anatomy.of(built), masks, shared)
    carry_masks(model, Anatomy.of(built), target.blocks, masks)
    _finish(model, built, paths, empty)
    group = _GROUPS.get(model, WeakSet([model])) | WeakSet([built])
    for one in group:
        _GROUPS[one] = group
    tensor_diff = _account(model, built, paths, copies, masked)
    verification = None
    if check:
        try:
            verification = verify(built)
        except ModwrightError:
            raise
        except Exception as error:  # whatever a part of someone else raises when it runs
            told = str(error).partition("\n")[0] or type(error).__name__
            raise VerificationError(f"after {plan.method}: it does not run: {told}") from error
        if not verification.ok:
            raise VerificationError(f"after {plan.method}: {verification.failure}")
    return Applied(built, is_plain(built), tensor_diff, verification)


def _refuse_unready(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise InvalidInputError(
                f"{name} is on the meta device (offloaded or not loaded); load it first"
            )
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        raise InvalidInputError(
            "the model is spread over devices; open it on one device to edit it"
        )


def _source_paths(anatomy: Anatomy, built: nn.Module, target: Target) -> dict[str, str]:
    """Path of each module of the result -> path of the module of the source that it continues."""
    before = anatomy.family.layer_paths(anatomy.model)
    after = anatomy.family.layer_paths(built)
    moved = {path: before[source] for path, source in zip(after, target.blocks, strict=True)}
    paths = {}
    for path, _ in built.named_modules():
        block = path
        while block and block not in moved:
            block = block.rpartition(".")[0]
        paths[path] = moved[block] + path[len(block) :] if block else path
    return paths


def _fill(source: nn.Module, built: nn.Module, paths: Mapping[str, str]) -> tuple[set[int], ...]:
    """Shares what is the same module in both, and makes room for the rest.

    Returns the ids of the result's tensors that are the source's own, copies of them, or empty.
    """
    modules = dict(source.named_modules())
    shared: set[int] = set()
    copies: set[int] = set()
    empty: set[int] = set()
    placed: set[str] = set()
    fallback = next(source.parameters())
    in_float32 = kept_in_float32(built)
    for path, module in built.named_modules():
        before = modules.get(paths[path])
        near = fallback if before is None else next(before.parameters(), fallback)
        copied = paths[path] in placed  # a block that stands twice
        placed.add(paths[path])
        olds: Any = ({}, {})
        # One is the other with another forward, so both store their parameters alike.
        if before is not None and (
            isinstance(module, type(before)) or isinstance(before, type(module))
        ):
            olds = tensor_tables(before)
        for slots, there in zip(tensor_tables(module), olds):
            for name, slot in [(n, s) for n, s in slots.items() if s is not None]:
                old = there.get(name)
                dtype = near.dtype if old is None or old.shape != slot.shape else old.dtype
                wide = wide_enough(dtype) if f"{path}.{name}" in in_float32 else dtype
                if old is None or old.shape != slot.shape:
                    slots[name] = _room(slot, near, wide)
                    empty.add(id(slots[name]))
                elif copied or wide != dtype:
                    slots[name] = copy.deepcopy(old)
                    slots[name].data = slots[name].data.to(wide)
                    copies.add(id(slots[name]))
                else:
                    slots[name] = old
                    shared.add(id(old))
    return shared, copies, empty


def _room(slot: Tensor, near: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of the shape of ``slot`` on the device of ``near``; NaN where floats go."""
    floats = slot.is_floating_point()
    dtype, blank = (dtype, torch.nan) if floats else (slot.dtype, 0)
    room = torch.full(slot.shape, blank, dtype=dtype, device=near.device)
    return nn.Parameter(room, near.requires_grad) if isinstance(slot, nn.Parameter) else room


def _write(
    source: Anatomy,
    edited: Anatomy,
    blocks: tuple[int, ...],
    tensors: Mapping[str, Tensor],
    shared: set[int],
    empty: set[int],
) -> None:
    """Writes the plan's values, and carries over parts whose storage changed."""
    given = {_moved(address, blocks): value for address, value in tensors.items()}
    old_parts = dict(source.parts())
    written: set[int] = set()
    for address, part in edited.parts():
        index, role = split_address(address)
        origin = old_parts.get(address if index is None else f"blocks.{blocks[index]}.{role}")
        old_values = origin.parameters() if origin is not None else {}
        for own, name in part.aliases().items():
            if f"{address}.{own}" in given:  # by its name in the module, not by its role
                given.setdefault(f"{address}.{name}", given.pop(f"{address}.{own}"))
        for name, current in part.parameters().items():
            full = f"{address}.{name}"
            module, leaf = part.stored_at(name)
            if full in given:
                old: Any = getattr(module, leaf)
                if id(old) in shared:  # the source stays as it is
                    setattr(module, leaf, copy.deepcopy(old))
                part.write(name, given.pop(full).to(current.device, current.dtype))
            elif id(getattr(module, leaf)) in empty:
                old = old_values.get(name)
                if old is None or old.shape != current.shape:
                    raise InvalidInputError(
                        f"the plan gives no value for {full} {tuple(current.shape)}"
                    )
                part.write(name, old)
            written.add(id(getattr(module, leaf)))
    if given:
        raise InvalidInputError(f"the plan has a value for {sorted(given)[0]}, which is not there")
    empty -= written


def _moved(address: str, blocks: tuple[int, ...]) -> str:
    """The address in the result of what the plan calls by the source's number of its block."""
    head, _, rest = address.partition(".")
    if head != "blocks":
        return address
    index, _, leaf = rest.partition(".")
    times = blocks.count(int(index)) if index.isdigit() else 0
    if not times:
        raise InvalidInputError(f"the plan has a value for {address}, which is not there")
    if times > 1:
        raise InvalidInputError(
            f"the plan has one value for {address}, and {times} copies of blocks.{index} will "
            "stand; arrange the blocks first, then write each copy by a plan of its own"
        )
    return f"blocks.{blocks.index(int(index))}.{leaf}"


def _finish(
    source: PreTrainedModel, built: PreTrainedModel, paths: Mapping[str, str], empty: set[int]
) -> None:
    built.tie_weights()
    for name, tensor in _tensors(built).items():
        missing = id(tensor) in empty or tensor.is_meta
        # One NaN makes the sum NaN: a finite sum spares a mask of the tensor's size.
        if not missing and tensor.is_floating_point() and not torch.isfinite(tensor.sum()):
            missing = bool(tensor.isnan().any())
        if missing:
            origin = _origin_name(name, paths)
            original = dict(source.named_parameters()).get(origin)
            if original is not None and torch.isnan(original).any():
                raise InvalidInputError(f"the source weights hold NaN at {origin}")
            raise ModwrightError(f"no value reached {name} {tuple(tensor.shape)}")
    if getattr(source, "generation_config", None) is not None:
        built.generation_config = copy.deepcopy(source.generation_config)
    built.name_or_path = source.name_or_path
    copy_modes(source, built, paths)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def _origin_name(name: str, paths: Mapping[str, str]) -> str:
    """Name in the source of a tensor of the result."""
    module, _, leaf = name.rpartition(".")
    return f"{paths[module]}.{leaf}" if module else leaf


def _account(
    source: nn.Module,
    built: nn.Module,
    paths: Mapping[str, str],
    copies: set[int],
    masked: set[int],
) -> TensorDiff:
    old, new = _tensors(source), _tensors(built)
    origins = {name: _origin_name(name, paths) for name in new}
    found: dict[str, list[str]] = {"kept": [], "changed": [], "added": [], "masked": []}
    for name, tensor in new.items():
        before = old.get(origins[name])
        same = before is tensor or id(tensor) in copies
        how = "masked" if id(tensor) in masked else "kept" if same else "changed"
        found["added" if before is None else how].append(name)
    continued = set(origins.values())
    found["removed"] = [name for name in old if name not in continued]
    return TensorDiff(**{kind: tuple(names) for kind, names in found.items()})


def sharing_with(model: nn.Module) -> list[nn.Module]:
    """The other live models that were made of this one, or that it was made of."""
    return [other for other in _GROUPS.get(model, ()) if other is not model]


def own_tensors(model: nn.Module, *others: nn.Module, names: Collection[str] | None = None) -> int:
    """Copies, in place, what a model has in one memory with others; its own ties stay.

    ``others`` come beside those that the model is known to share with. Where ``names`` are given,
    of parameters that will change, the others go on sharing memory, by objects of their own;
    buffers are always copied. Says how many were copied.

    Example:
        >>> import modwright
        >>> source = modwright.open("preset:tiny-llama")
        >>> result = modwright.apply(source, modwright.edits.remove("blocks.0")).model
        >>> own_tensors(result) > 0, own_tensors(result)
        (True, 0)
    """
    taken = {
        _memory(tensor)
        for other in (*others, *sharing_with(model))
        for tensor in (*other.parameters(), *other.buffers())
    }
    changing = None if names is None else {id(model.get_parameter(name)) for name in names}
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old one stays alive, so its id is its own
    count = 0
    for module in model.modules():
        for slots in tensor_tables(module):
            for name, tensor in slots.items():
                if tensor is None or not _memory(tensor) or _memory(tensor) not in taken:
                    continue
                if id(tensor) not in made:
                    stays = changing is not None and id(tensor) not in changing
                    if stays and isinstance(tensor, nn.Parameter):
                        own: Tensor = nn.Parameter(tensor.detach(), tensor.requires_grad)
                    else:
                        own, count = copy.deepcopy(tensor), count + 1
                    made[id(tensor)] = tensor, own
                slots[name] = made[id(tensor)][1]
    return count


def _memory(tensor: Tensor) -> int:
    """Where the tensor's memory begins; 0 where it has none."""
    return 0 if tensor.is_meta else tensor.untyped_storage().data_ptr()
