"""Models from scratch: a stock config, components in place of stock parts, and start values."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import fields as fields_of
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from modwright.anatomy import Anatomy
from modwright.anatomy.families import families, family_of
from modwright.anatomy.selectors import select
from modwright.anatomy.views import Block, Sublayer
from modwright.core.compat.torch import tensor_tables
from modwright.core.compat.transformers import build
from modwright.core.errors import (
    InvalidInputError,
    VerificationError,
    did_you_mean,
    refusing,
    unknown_name,
)
from modwright.core.modes import set_eval
from modwright.core.options import shown
from modwright.edits.canonical import Target, target_of
from modwright.edits.edit import MOST_BLOCKS, Edit, Remove, Replace, split_address
from modwright.edits.placeable import arguments_of
from modwright.edits.remodeled import edits_of
from modwright.edits.replay import placements
from modwright.edits.stock_classes import model_class
from modwright.edits.verify import verify

__all__ = ["Part", "base_config", "compose", "compose_target", "edits_at", "field_names"]

Part = str | tuple[str, Mapping[str, Any]] | None
"""The name of a component, or its name and arguments; None takes out what stands there."""

_PREFIX = "preset:"
_WRONG: tuple[type[Exception], ...] = (ValueError, TypeError, KeyError, AttributeError)
_WRONG += (RuntimeError, ArithmeticError, AssertionError, MemoryError, StrictDataclassError)


def compose(
    base: str | PreTrainedConfig,
    parts: Mapping[str, Part] | None = None,
    *,
    seed: int = 0,
    head: str | None = None,
    check: bool = True,
    **fields: Any,
) -> PreTrainedModel:
    """A model with start values: a stock architecture in which other components stand.

    Stock modules start with the values that the stock model of this seed has, whatever stands
    beside them; components start as their ``reset_parameters`` says. The same arguments give the
    same bits. What the stock config can say is said there, so a result may be plain.

    Args:
        base: a model type of transformers (``llama``), a preset (``tiny-llama``), or a config.
        parts: selector, as ``mlp[*]`` or ``attention[0, 2:4]``, -> a component's name, alone or
            with its arguments, or None. Arguments that are not given and that the stock part
            answers, as ``hidden_size`` or ``d_model``, are filled; so is ``out_proj_scale``, 1 over
            the square root of the number of sublayers that write to the residual stream.
        seed: of the start values.
        head: which of the architecture's models, as in :func:`modwright.open`.
        check: verify decoding, causality and finiteness of the result.
        fields: of the config, in place of those that the base has.

    Returns:
        The model, in evaluation mode, on the CPU.

    Raises:
        InvalidInputError: an unknown base, field, selector, component or argument, or values with
            which no model can be built.
        VerificationError: the result breaks a promise.

    Example:
        >>> relu = ("feed_forward", {"activation": "relu", "gated": False})
        >>> model = compose("tiny-llama", {"mlp[1:]": relu}, num_hidden_layers=2)
        >>> [block.mlp.activation for block in Anatomy.of(model).blocks]
        ['silu', 'relu']
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise InvalidInputError(f"seed is a whole number from 0 on, not {seed!r}")
    if parts is not None and not isinstance(parts, Mapping):
        raise InvalidInputError(
            f"parts is a mapping of selectors to components, not {shown(parts)}"
        )
    config = base_config(base, fields)
    stock, target = compose_target(config, parts or {}, head)
    model = _start(target.model_class, target.config, seed)
    if edits_of(target.config):
        _take_stock_values(model, _start(stock, config, seed))
    if check:
        verification = verify(model)
        if not verification.ok:
            raise VerificationError(f"composed: {verification.failure}")
    return model


def compose_target(
    config: PreTrainedConfig, parts: Mapping[str, Part], head: str | None = None
) -> tuple[type[PreTrainedModel], Target]:
    """The stock class of a config, and what a model of it becomes with parts in place: no values.

    Raises:
        InvalidInputError: as :func:`compose`.
    """
    stock = model_class(config, head)
    if not parts:
        target = Target(stock, config, ())
        with _building(config):
            target.skeleton()
        return stock, target
    with _building(config), torch.device("meta"):
        hollow = stock(copy.deepcopy(config))
    anatomy = Anatomy.of(hollow)
    edits: list[Edit] = []
    for selector, part in parts.items():
        edits += edits_at(anatomy, selector, part)
    edits = _with_depth(anatomy, edits)
    with _building(config):
        return stock, target_of(anatomy, edits)


def base_config(base: str | PreTrainedConfig, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """A fresh config of a model type or a preset, or a copy of one, with other values of fields.

    Raises:
        InvalidInputError: an unknown name or field, or values that do not go together.

    Example:
        >>> base_config("llama", {"hidden_size": 64}).hidden_size
        64
    """
    valid = field_names(base)
    named = base if isinstance(base, str) else type(base).__name__
    for name in fields:
        if name not in valid:
            raise InvalidInputError(f"{named} has no field {name!r}{did_you_mean(name, valid)}")
    with refusing(named, _WRONG):
        if isinstance(base, str):
            model_type, settings = _named(base)
            alias = CONFIG_MAPPING[model_type].attribute_map
            spoken = {alias.get(name, name): value for name, value in settings.items()}
            changed = {alias.get(name, name): value for name, value in fields.items()}
            config = AutoConfig.for_model(model_type, **{**spoken, **changed})
        else:
            config = type(base).from_dict({**base.to_dict(), **fields})
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and not 1 <= layers <= MOST_BLOCKS:
        raise InvalidInputError(f"{named}: a model has 1 to {MOST_BLOCKS} layers, not {layers:,}")
    return config


def field_names(base: str | PreTrainedConfig) -> list[str]:
    """The names of the fields that a base's config has, sorted; also those of older versions.

    Raises:
        InvalidInputError: an unknown base.
    """
    kind: Any = CONFIG_MAPPING[_named(base)[0]] if isinstance(base, str) else type(base)
    names = {field.name for field in fields_of(kind)} | {*kind.attribute_map, "num_labels"}
    if "rope_parameters" in names:
        names |= {"rope_theta", "rope_scaling"}
    hidden = {"architectures", "edits", "modwright_format", "transformers_version"}
    return sorted(name for name in names - hidden if not name.startswith("_"))


def edits_at(anatomy: Anatomy, selector: str, part: Part) -> list[Edit]:
    """What puts a component in place of each part that a selector names, its arguments filled.

    Raises:
        InvalidInputError: the selector names nothing or whole blocks; the component is not known,
            is of another kind, or takes other arguments.

    Example:
        >>> import modwright
        >>> anatomy = modwright.open("preset:tiny-llama").anatomy
        >>> (edit,) = edits_at(anatomy, "mlp[0]", ("feed_forward", {"intermediate_size": 8}))
        >>> edit.path, edit.kwargs["hidden_size"], edit.kwargs["intermediate_size"]
        ('blocks.0.mlp', 48, 8)
    """
    edits: list[Edit] = []
    for stands in select(anatomy, selector):
        if not split_address(stands.address)[1]:
            raise InvalidInputError(
                f"{selector!r} names whole blocks; parts stand at attention[...] and mlp[...]"
            )
        if part is None:
            edits.append(Remove(stands.address))
            continue
        name, given = _named_part(selector, part)
        arguments = _filled(anatomy, stands, name, given)
        edits.append(Replace(stands.address, name, arguments))
    return edits


def _named_part(selector: str, part: Any) -> tuple[str, Mapping[str, Any]]:
    """A component's name and its arguments, however they are given."""
    name, given = (
        (part, {}) if isinstance(part, str) else (part if _is_pair(part) else (None, None))
    )
    if not isinstance(name, str) or not isinstance(given, Mapping):
        raise InvalidInputError(
            f"{selector!r}: a component is given by its name, by (name, arguments), or by None for "
            f"nothing, not by {shown(part)}"
        )
    return name, given


def _is_pair(part: Any) -> bool:
    return isinstance(part, tuple | list) and len(part) == 2


def _named(base: str) -> tuple[str, dict[str, Any]]:
    """The model type of a name, and the fields of the preset that it is."""
    presets: dict[str, tuple[str, dict[str, Any]]] = {}
    for model_type, family in families().items():
        for name, settings in family.presets.items():
            presets.setdefault(name, (model_type, settings))  # a family's first type, as opened
    if base.removeprefix(_PREFIX) in presets:
        return presets[base.removeprefix(_PREFIX)]
    if base in CONFIG_MAPPING and not base.startswith("modwright_"):
        return base, {}
    near = did_you_mean(base, [*presets, *CONFIG_MAPPING])
    raise InvalidInputError(
        f"unknown base {base!r}; valid are model types of transformers ({', '.join(families())} "
        f"take other parts) and presets ({', '.join(sorted(presets))}){near}"
    )


def _filled(
    anatomy: Anatomy, stands: Block | Sublayer, name: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a component at a place: those that are given, and what is known there."""
    place = split_address(stands.address)[1]
    arguments = arguments_of(name, place)
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(given)))
    except (TypeError, ValueError):
        raise InvalidInputError(
            f"{name}: arguments are numbers, words, booleans and lists of them, as a config holds "
            f"them, not {dict(given)!r}"
        ) from None
    for argument in plain:
        if argument not in arguments and not arguments.others:
            raise unknown_name(f"argument of {name}", argument, arguments)
    known = _known(anatomy, stands, plain)
    filled = {
        argument: known[argument]
        for argument, taken in arguments.items()
        if argument in known and (taken.needed or taken.of_stock)
    }
    filled |= plain
    if filled.get("gated") is False and "biases" not in plain and "biases" in filled:
        filled["biases"] = filled["biases"].replace("g", "")
    missing = [argument for argument, taken in arguments.items() if taken.needed]
    missing = [argument for argument in missing if argument not in filled]
    if missing:
        raise InvalidInputError(f"{name} at {stands.address} needs {', '.join(missing)}")
    if "out_proj_scale" in arguments:
        filled.setdefault("out_proj_scale", None)  # known when all parts are
    return filled


def _known(anatomy: Anatomy, stands: Block | Sublayer, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the stock part answers, by the names that components give to it."""
    words = ("num_heads", "num_kv_heads", "head_dim", "intermediate_size", "activation")
    known = {word: anatomy.family.get(word) for word in words}
    known |= dict.fromkeys(("hidden_size", "d_model"), anatomy.hidden_size)
    shape = getattr(stands, "shape", None)
    if shape is not None:
        known |= {field.name: getattr(shape, field.name) for field in fields_of(shape)}
    if "qk_head_dim" in given:  # of other heads the scale is not that of the stock ones
        for word in ("scaling", "rotary_dim"):
            known.pop(word, None)
    return {word: value for word, value in known.items() if value is not None}


def _with_depth(anatomy: Anatomy, edits: Iterable[Edit]) -> list[Edit]:
    """The edits with what depends on the depth of the whole model."""
    edits = list(edits)
    gone = {edit.path for edit in edits if isinstance(edit, Remove)}
    there = [sub.address for block in anatomy.blocks for _, sub in block.sublayers()]
    writers = sum(address not in gone for address in there)
    for edit in edits:
        if isinstance(edit, Replace) and edit.kwargs.get("out_proj_scale", 0) is None:
            edit.kwargs["out_proj_scale"] = writers**-0.5
    return edits


def _start(kind: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]), _building(config):
        torch.manual_seed(seed)
        model: PreTrainedModel = set_eval(build(kind, copy.deepcopy(config)))
        return model


def _take_stock_values(model: PreTrainedModel, stock: PreTrainedModel) -> None:
    """Gives the modules that are the stock model's own its tensors; the stock model is given up."""
    placed = set(_placed(model, stock))
    theirs = dict(stock.named_modules())
    for path, module in model.named_modules():
        around = [path[:end] for end, letter in enumerate(path) if letter == "."]
        before = theirs.get(path)
        if before is None or type(before) is not type(module) or placed & {path, *around}:
            continue
        for slots, there in zip(tensor_tables(module), tensor_tables(before)):
            for name, tensor in slots.items():
                found = there.get(name)
                if tensor is not None and found is not None and found.shape == tensor.shape:
                    slots[name] = found
    model.tie_weights()


def _placed(model: PreTrainedModel, stock: nn.Module) -> Iterator[str]:
    """Paths of what edits put in place."""
    family = family_of(model.config, stock)
    paths, layers = family.layer_paths(stock), family.layers(stock)
    for edit in edits_of(model.config):
        index, _ = split_address(edit.path)
        holder, prefix = (stock, "") if index is None else (layers[index], f"{paths[index]}.")
        for path, _, _ in placements(family, holder, edit):
            yield prefix + path


def _building(config: PreTrainedConfig) -> AbstractContextManager[None]:
    """Says in one line what a config of odd numbers ends in while a model of it is built."""
    return refusing(f"{config.model_type.removeprefix('modwright_')} cannot be built so", _WRONG)
