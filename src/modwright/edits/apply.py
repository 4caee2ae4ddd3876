"""The one place that writes structure: a plan becomes a new model.

The source model is left as it is. The result is built from its config exactly as a reload would
build it; tensors that do not change are shared with the source, not copied.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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
from modwright.edits.plan import Plan
from modwright.edits.remodeled import is_plain
from modwright.edits.sharing import note_sharing
from modwright.edits.verify import Verification, verify

__all__ = ["Applied", "TensorDiff", "apply"]


@dataclass(frozen=True)
class TensorDiff:
    """Where every tensor of the source went and every tensor of the result came from (by name)."""

    kept: tuple[str, ...]
    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.kept)} tensors kept, {len(self.changed)} changed, {len(self.added)} added, "
            f"{len(self.removed)} removed"
        )


@dataclass(frozen=True)
class Applied:
    """A new model, and what became of the old one's tensors.

    Attributes:
        model: the edited model, in eval mode if the source was.
        plain: stock transformers loads its checkpoint.
        tensor_diff: every tensor, kept, changed, added or removed.
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
        >>> opened = modwright.open("preset:tiny-llama")
        >>> edited = apply(opened, remove(opened.anatomy.blocks[0].attention))
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
    stored = _fill(model, built, paths)
    _write(anatomy, Anatomy.of(built), target, plan.tensors, stored)
    _finish(model, built, paths, stored)
    note_sharing(model, built)
    tensor_diff = _account(model, built, paths, stored.copies)
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
    if getattr(model, "hf_device_map", None) and len(set(model.hf_device_map.values())) > 1:
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
        block = next((p for p in _enclosing(path) if p in moved), None)
        paths[path] = path if block is None else moved[block] + path[len(block) :]
    return paths


def _enclosing(path: str) -> Iterator[str]:
    """A path and those of the modules around it, the innermost first."""
    while path:
        yield path
        path = path.rpartition(".")[0]


@dataclass
class _Stored:
    """Which tensors of the result are the source's own, copies of them, or not written yet.

    Tensors are known by their ids, which stay theirs as long as the result or the source lives.
    """

    shared: set[int] = field(default_factory=set)
    copies: set[int] = field(default_factory=set)
    empty: set[int] = field(default_factory=set)

    def own(self, module: nn.Module, name: str) -> None:
        """Gives a module a copy of what it shares with the source, before it is written."""
        old: Any = getattr(module, name)
        if id(old) not in self.shared:
            return
        if isinstance(old, nn.Parameter):
            own: Any = nn.Parameter(old.detach().clone(), old.requires_grad)
        else:
            own = old.clone()
        setattr(module, name, own)


def _fill(source: nn.Module, built: nn.Module, paths: Mapping[str, str]) -> _Stored:
    """Shares what is the same module in both, and makes room for the rest."""
    modules = dict(source.named_modules())
    stored = _Stored()
    placed: set[str] = set()
    fallback = next(source.parameters())
    for path, module in built.named_modules():
        before = modules.get(paths[path])
        near = fallback if before is None else next(before.parameters(), fallback)
        origin = before if before is not None and _continues(module, before) else None
        copied = paths[path] in placed  # a block that stands twice
        placed.add(paths[path])
        olds = ({}, {}) if origin is None else tensor_tables(origin)
        for slots, there in zip(tensor_tables(module), olds):
            for name, slot in [(n, s) for n, s in slots.items() if s is not None]:
                old = there.get(name)
                if old is None or old.shape != slot.shape:
                    slots[name] = _room(slot, near)
                    stored.empty.add(id(slots[name]))
                elif copied:
                    slots[name] = copy.deepcopy(old)
                    stored.copies.add(id(slots[name]))
                else:
                    slots[name] = old
                    stored.shared.add(id(old))
    return stored


def _room(slot: Tensor, near: Tensor) -> Tensor:
    """A tensor of the shape of ``slot`` on the device of ``near``; NaN where floats go."""
    floats = slot.is_floating_point()
    dtype, blank = (near.dtype, torch.nan) if floats else (slot.dtype, 0)
    room = torch.full(slot.shape, blank, dtype=dtype, device=near.device)
    return nn.Parameter(room, near.requires_grad) if isinstance(slot, nn.Parameter) else room


def _continues(new: nn.Module, old: nn.Module) -> bool:
    """One is the other with another forward, so both store their parameters alike."""
    return isinstance(new, type(old)) or isinstance(old, type(new))


def _write(
    source: Anatomy,
    edited: Anatomy,
    target: Target,
    tensors: Mapping[str, Tensor],
    stored: _Stored,
) -> None:
    """Writes the plan's values, and carries over parts whose storage changed."""
    given = {_moved(address, target.blocks): value for address, value in tensors.items()}
    old_parts = dict(source.parts())
    written: set[int] = set()
    for address, part in edited.parts():
        origin = old_parts.get(_origin(address, target.blocks))
        old_values = origin.parameters() if origin is not None else {}
        for name, current in part.parameters().items():
            full = f"{address}.{name}"
            module, leaf = part.stored_at(name)
            if full in given:
                stored.own(module, leaf)
                part.write(name, given.pop(full).to(current.device, current.dtype))
            elif id(getattr(module, leaf)) in stored.empty:
                old = old_values.get(name)
                if old is None or old.shape != current.shape:
                    raise InvalidInputError(
                        f"the plan gives no value for {full} {tuple(current.shape)}"
                    )
                part.write(name, old)
            written.add(id(getattr(module, leaf)))
    if given:
        raise InvalidInputError(f"the plan has a value for {sorted(given)[0]}, which is not there")
    stored.empty -= written


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


def _origin(address: str, blocks: tuple[int, ...]) -> str:
    index, role = split_address(address)
    return address if index is None else f"blocks.{blocks[index]}.{role}"


def _finish(
    source: PreTrainedModel, built: PreTrainedModel, paths: Mapping[str, str], stored: _Stored
) -> None:
    built.tie_weights()
    for name, tensor in [*built.named_parameters(), *built.named_buffers()]:
        if id(tensor) in stored.empty or tensor.is_meta or _has_nan(tensor):
            origin = _origin_name(name, paths)
            original = dict(source.named_parameters()).get(origin)
            if original is not None and torch.isnan(original).any():
                raise InvalidInputError(f"the source weights hold NaN at {origin}")
            raise ModwrightError(f"no value reached {name} {tuple(tensor.shape)}")
    if getattr(source, "generation_config", None) is not None:
        built.generation_config = copy.deepcopy(source.generation_config)
    built.name_or_path = source.name_or_path
    copy_modes(source, built, paths)


def _has_nan(value: Tensor) -> bool:
    # One NaN makes the sum NaN: a finite sum spares a mask of the tensor's size.
    if not value.is_floating_point() or bool(torch.isfinite(value.sum())):
        return False
    return bool(torch.isnan(value).any())


def _origin_name(name: str, paths: Mapping[str, str]) -> str:
    """Name in the source of a tensor of the result."""
    module, _, leaf = name.rpartition(".")
    return f"{paths[module]}.{leaf}" if module else leaf


def _account(
    source: nn.Module, built: nn.Module, paths: Mapping[str, str], copies: set[int]
) -> TensorDiff:
    old = dict([*source.named_parameters(), *source.named_buffers()])
    kept: list[str] = []
    changed: list[str] = []
    added: list[str] = []
    continued: set[str] = set()
    for name, tensor in [*built.named_parameters(), *built.named_buffers()]:
        origin = _origin_name(name, paths)
        if origin not in old:
            added.append(name)
            continue
        continued.add(origin)
        same = old[origin] is tensor or id(tensor) in copies
        (kept if same else changed).append(name)
    removed = [name for name in old if name not in continued]
    return TensorDiff(tuple(kept), tuple(changed), tuple(added), tuple(removed))
