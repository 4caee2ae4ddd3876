"""What of a model learns: all, its norms, parts of it, or adapters. What learns is its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from modwright.anatomy import Anatomy
from modwright.anatomy.projection import linear_layer
from modwright.core.compat.transformers import has_adapters
from modwright.core.errors import InvalidInputError, UnsupportedArchitecture
from modwright.edits.apply import own_tensors
from modwright.training.lora import Lora, inject_lora
from modwright.training.parametrization import matching_parameters

__all__ = ["ALL", "NORMS", "Learned", "Learns", "check_learns", "learn"]

ALL, NORMS = "all", "norms"

Learns = str | Mapping[str, Any]
"""``all``, ``norms``, selectors and patterns of names, or ``{"lora": {...}}``."""


@dataclass(frozen=True)
class Learned:
    """What learns.

    Attributes:
        names: of the parameters that do.
        num_parameters: numbers in them.
        notes: what was left out, in sentences.
        finish: to be called once when the training has ended: writes adapters into the weights,
            and lets that learn which did before.
    """

    names: tuple[str, ...]
    num_parameters: int
    notes: tuple[str, ...] = ()
    finish: Callable[[], None] = lambda: None


def learn(
    model: Any,
    learns: Learns | None = None,
    apart_from: Sequence[nn.Module] = (),
    *,
    seed: int = 0,
) -> Learned:
    """Makes a model ready to be trained: what learns is its own, and something learns.

    A model that was edited shares unchanged tensors with its source, and so does a student with the
    teacher that it was made of. What learns is copied, and so are buffers; what does not learn goes
    on sharing memory, by parameters of its own. Tables that the model never trains never learn.

    Args:
        model: changed in place. Parameters that it shared are new objects afterwards, so optimizers
            and masks are made later.
        learns: "all"; "norms"; selectors and patterns of names, ``block[2:]; norms; *.bias``;
            ``{"lora": {"r": 16, "target": "all-linear"}}`` for adapters, with what learns whole
            beside them as ``modules_to_save``. None leaves it as the model has it: parameters that
            a teacher shares were frozen for the teacher's sake, and learn; where all are frozen,
            all learn.
        apart_from: teachers, which keep their tensors; the model itself is refused.
        seed: of the first values of adapters.

    Raises:
        InvalidInputError: nothing matches, or the model is its own teacher.

    Warns:
        UserWarning: factor pairs or stacked experts stay frozen beside PEFT adapters that the model
            came with.

    Example:
        >>> import modwright
        >>> from modwright.edits import Plan, apply, remove
        >>> teacher = modwright.open("preset:tiny-llama").model.requires_grad_(False)
        >>> anatomy = modwright.Anatomy.of(teacher)
        >>> plan = Plan.of(anatomy, "by hand", remove(anatomy.blocks[0].attention))
        >>> student = apply(teacher, plan).model
        >>> _ = learn(student, apart_from=[teacher])
        >>> all(p.requires_grad for p in student.parameters())
        True
        >>> any(p.requires_grad for p in teacher.parameters())
        False
        >>> learn(student, "norms").num_parameters
        384
    """
    if any(teacher is model for teacher in apart_from):
        raise InvalidInputError("the model is its own teacher; give the objective a copy of it")
    if isinstance(learns, Mapping):
        return _learn_adapters(model, Lora.of(_lora_of(learns)), apart_from, seed)
    chosen = _chosen(model, learns, apart_from)
    own_tensors(model, *apart_from, names=chosen)
    flags = {} if learns is None else _flags(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    left = _frozen_beside_adapters(model) if learns is None and has_adapters(model) else []
    if left:
        warnings.warn(
            "PEFT has no adapters for parts that are no linear layers, so these stay frozen: "
            f"{_some(left)}",
            stacklevel=2,
        )
    return replace(_learned(model), finish=partial(_set_flags, model, flags))


def check_learns(learns: Learns | None) -> None:
    """Refuses what cannot be read, before a model is there."""
    if isinstance(learns, Mapping):
        Lora.of(_lora_of(learns))
    elif learns is not None and not (isinstance(learns, str) and learns.strip(" ;")):
        raise InvalidInputError(
            f"learns is {learns!r}; valid values: all, norms, a selector such as block[2:], or "
            "{lora: {r: 16}}"
        )


def _lora_of(learns: Mapping[str, Any]) -> Any:
    if list(learns) != ["lora"]:
        raise InvalidInputError(
            f"learns: the one mapping there is has the key lora, not {', '.join(map(str, learns))}"
        )
    return learns["lora"]


def _learned(model: nn.Module) -> Learned:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return Learned(tuple(name for name, _ in named), sum(p.numel() for _, p in named))


def _flags(model: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def _set_flags(model: nn.Module, flags: Mapping[str, bool]) -> None:
    for name, flag in flags.items():
        model.get_parameter(name).requires_grad_(flag)


def _chosen(model: nn.Module, learns: str | None, teachers: Sequence[nn.Module]) -> set[str]:
    """Names of the parameters that are to learn."""
    check_learns(learns)
    never = set(getattr(model, "frozen", ()))
    named = {
        name: p
        for name, p in model.named_parameters()
        if name not in never and p.is_floating_point()
    }
    if learns is None:
        of_teachers = {id(p) for teacher in teachers for p in teacher.parameters()}
        all_frozen = not any(p.requires_grad for p in named.values())
        return {
            name
            for name, p in named.items()
            if p.requires_grad or all_frozen or id(p) in of_teachers
        }
    if learns.strip() == ALL:
        return set(named)
    wanted: set[int] = set()
    for clause in filter(None, map(str.strip, learns.split(";"))):
        found = _norms(model) if clause == NORMS else matching_parameters(model, clause)
        if not any(id(p) in {id(q) for q in named.values()} for p in found):
            raise InvalidInputError(
                f"learns: {clause!r} matches no parameter; write all, norms, a selector, as mlp[*] "
                "or block[0:2], a pattern of names, as *.bias, or {lora: {r: 16}}"
            )
        wanted |= {id(p) for p in found}
    return {name for name, p in named.items() if id(p) in wanted}


def _norms(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of its normalizations; by the names of classes where no family knows it."""
    try:
        parts = [part for _, part in Anatomy.of(model).parts()]
    except UnsupportedArchitecture:
        modules = [m for m in model.modules() if "Norm" in type(m).__name__]
        return [p for m in modules for p in m.parameters(recurse=False)]
    members = [m for part in parts for m in getattr(part, "members", dict)().values()]
    norms = [m.module for m in (*parts, *members) if getattr(m, "normalizes", False)]
    return [p for module in norms for p in module.parameters(recurse=False)]


def _learn_adapters(
    model: nn.Module, lora: Lora, teachers: Sequence[nn.Module], seed: int
) -> Learned:
    if has_adapters(model):
        raise InvalidInputError("the model has PEFT adapters; merge them before it gets others")
    whole = _chosen(model, lora.modules_to_save, teachers) if lora.modules_to_save else set()
    own_tensors(model, *teachers, names=whole)
    flags = _flags(model)
    adapters = inject_lora(model, lora, seed=seed, whole=whole)

    def finish() -> None:
        adapters.merge()
        _set_flags(model, flags)

    notes = []
    if adapters.left:
        notes.append(f"no adapters for {_some(list(adapters.left))}, which are no matrices")
    found = _learned(model)
    return replace(found, notes=tuple(notes), finish=finish)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" * (len(names) > 3)
    return f"{', '.join(names[:3])}{more}"


def _frozen_beside_adapters(model: nn.Module) -> list[str]:
    """Factor pairs and stacked experts that do not learn in a model that has PEFT adapters."""
    left = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        stacked = any(p.dim() == 3 and len(p) > 1 for p in own)
        frozen = not any(p.requires_grad for p in own) and ".base_layer" not in name
        layer = linear_layer(module, name)
        if frozen and (stacked or (layer is not None and layer.is_factored)):
            left.append(name)
    return left
