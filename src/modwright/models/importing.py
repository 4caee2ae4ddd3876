"""Weights of a paper's authors, or of another library, into a model here, and back."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from modwright.core.errors import (
    CheckpointError,
    InvalidInputError,
    first_line,
    refusing,
    unknown_name,
)
from modwright.core.reading import read_json, refuse_no_weights
from modwright.models.source_configs import SourceConfig, read_source_config, same_value
from modwright.models.state_dict_converter import Converted, StateDictConverter
from modwright.models.vision_model import VisionModel

__all__ = [
    "Imported",
    "checkpoint_formats",
    "differences",
    "import_weights",
    "name_classes",
    "read_weights",
    "to_checkpoint_format",
]

# Fields that may differ from those of the weights: rates of training, and what `resize` is for.
_MAY_DIFFER = {"drop_rate", "drop_path_rate", "image_size"}
_CLASSIFIERS = ("head.fc.", "head.fc_distilled.")
_WRAPPERS = ("params_ema", "state_dict_ema", "model_ema", "params", "state_dict", "model")
_UNKNOWN_CLASS = re.compile(r"Unsupported global: GLOBAL ([\w.]+) was not an allowed global")
_FILLED_CLASS = re.compile(r"Can only (SETITEM|append|extend) .*but got <class 'inert\.([\w.]+)'>")
_MOST_CLASSES = 100
MISSING, ODD = "missing from the file", "without a place in the model"
OTHER_SHAPE = "of another shape"


def read_weights(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors or torch file, out of the dicts that training scripts wrap them in.

    A directory is one that transformers wrote, in one file or in shards. No code of a torch file
    runs: configs and counters beside the weights, of whatever class, become empty objects. Of
    several sets the averaged one is taken: published numbers come from it.

    ``key`` says which of the dicts of a file, "params_ema" say, with dots for those inside others;
    it is found by default where there is one, or one of a usual name.

    Raises:
        CheckpointError: there is no such file, or it holds no tensors.
        InvalidInputError: an unknown key.
    """
    path = Path(path)
    if path.is_dir():
        return _read_directory(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    refuse_no_weights(path)
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else _load_inert(path)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {_torch_says(error)}") from None
    found = _chosen(found, key, path)
    items = found.items() if isinstance(found, dict) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name")
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


class _Inert(dict[Any, Any]):
    """Stands for an object of a class that is not loaded: it takes anything and does nothing."""

    def __new__(cls, *arguments: Any, **named: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


def _load_inert(path: Path) -> Any:
    """A torch file's content, with `_Inert` for every class that torch does not allow by itself."""
    stand_ins: dict[str, type] = {}
    while True:
        allowed: list[Any] = [(stand_in, name) for name, stand_in in stand_ins.items()]
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            filled = _FILLED_CLASS.search(str(error))
            if filled is not None and issubclass(stand_ins[filled[2]], _Inert):
                # Torch fills plain containers only.
                stand_ins[filled[2]] = OrderedDict if filled[1] == "SETITEM" else list
                continue
            unknown = _UNKNOWN_CLASS.search(str(error))
            if unknown is None or len(stand_ins) >= _MOST_CLASSES:
                raise
            name = unknown[1] if "." in unknown[1] else f"builtins.{unknown[1]}"
            if name in stand_ins:
                raise
            # A type of its own: torch finds allowed objects by what they are.
            stand_ins[name] = type(name, (_Inert,), {"__module__": "inert"})


def _torch_says(error: Exception) -> str:
    """Torch's message without its advice, which is to run the code of the file."""
    if blocked := re.search(r"GLOBAL ([\w.]+) whose module", str(error)):
        return f"it would run {blocked[1]} when read"
    if isinstance(error, OSError):
        return error.strerror or first_line(error)
    return "it is damaged, or no file of torch or safetensors"


def _chosen(found: Any, key: str | None, path: Path) -> Any:
    """The dict of tensors inside what a file holds."""
    if key is not None:
        for piece in key.split("."):
            if not isinstance(found, dict) or piece not in found:
                names = [str(name) for name in found] if isinstance(found, dict) else []
                raise unknown_name(f"key of {path.name}", key, names[:20])
            found = found[piece]
        return found
    for name in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or _holds_tensors(found):
        return found
    holders = [str(name) for name, value in found.items() if _holds_tensors(value)]
    if len(holders) > 1:
        raise InvalidInputError(
            f"{path} holds several sets of tensors; choose a key: {', '.join(holders)}"
        )
    return found[holders[0]] if holders else found


def _holds_tensors(found: Any) -> bool:
    return isinstance(found, dict) and any(isinstance(one, Tensor) for one in found.values())


def _read_directory(path: Path) -> dict[str, Tensor]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{name}.index.json"
        if (path / name).is_file():
            return read_weights(path / name)
        if index.is_file():
            stored = read_json(index)
            named = stored.get("weight_map") if isinstance(stored, dict) else None
            if not isinstance(named, dict) or not all(isinstance(n, str) for n in named.values()):
                raise CheckpointError(f"{index} is no shard index")
            shards = sorted(set(named.values()))
            return {n: t for shard in shards for n, t in read_weights(path / shard).items()}
    raise CheckpointError(f"{path} holds no model.safetensors or pytorch_model.bin")


def checkpoint_formats(
    model: VisionModel, checkpoint_format: str = "auto"
) -> dict[str, StateDictConverter]:
    """The layouts that a model's weights can be read from, by name: all, or the one said."""
    maps = model.state_dict_converters(model.config)
    if not maps:
        raise InvalidInputError(f"{type(model).__name__} has no layout of another library")
    if checkpoint_format == "auto":
        return maps
    if checkpoint_format not in maps:
        raise unknown_name("format", checkpoint_format, ["auto", *maps])
    return {checkpoint_format: maps[checkpoint_format]}


@dataclass(frozen=True)
class Imported:
    """What came in: the layout of the file, how many tensors, and the names of those that it does
    not have and that were left as they were."""

    checkpoint_format: str
    tensors: int
    fresh: tuple[str, ...]


def import_weights(
    model: VisionModel,
    source: str | Path | Mapping[str, Tensor],
    checkpoint_format: str = "auto",
    resize: bool | tuple[int, int] = False,
    new_classifier: bool = False,
) -> Imported:
    """Fills a model from a file, or a state dict, of another layout. All or nothing.

    The fields of a config.json beside the weights are compared with the model's; where the
    classifier is taken, its names are, too.

    Args:
        model: of the same architecture and sizes.
        source: a path, or tensors by name.
        checkpoint_format: name of the layout; "auto" finds the one that knows most of the names.
        resize: positions of another grid are resized; they are refused otherwise. A pair (height,
            width) says the grid of the file where it is no square.
        new_classifier: a map to another number of classes is left as it is in the model.

    Raises:
        InvalidInputError: names or shapes do not fit, or the model does not compute by a field of
            config.json; the first of them is named.
    """
    told = None
    if not isinstance(source, Mapping):
        told, source = read_source_config(source, model.config_maps()), read_weights(source)
    if told is not None:
        for field, value in told.fields.items():
            had = getattr(model.config, field)
            if field not in _MAY_DIFFER and not same_value(value, had):
                raise InvalidInputError(
                    f"{told.file} says {field} {value!r}, the model has {had!r}"
                )
    with refusing():
        converted = {
            chosen: converter.to_ours(source)
            for chosen, converter in checkpoint_formats(model, checkpoint_format).items()
        }
    chosen = min(converted, key=lambda name: len(converted[name].unexpected))
    own, found = model.state_dict(), converted[chosen].tensors
    if new_classifier:
        for name in [n for n in found if n.startswith(_CLASSIFIERS)]:
            if name not in own or own[name].shape != found[name].shape:
                del found[name]
    if resize:
        old = None if isinstance(resize, bool) else resize
        known = [name for name in found if name in own]
        found |= {name: model.interpolate_pos_embed(name, found[name], old) for name in known}
    missing, unexpected, other_shapes = differences(own, converted[chosen]).values()
    if unexpected:
        raise InvalidInputError(
            f"{len(unexpected)} names of the {chosen} layout have no place in "
            f"{type(model).__name__} of this config, {unexpected[0]} for one"
        )
    if missing := [n for n in missing if not (new_classifier and n.startswith(_CLASSIFIERS))]:
        raise InvalidInputError(
            f"{len(missing)} tensors are missing from the file, {missing[0]} for one"
        )
    for name in other_shapes:
        more = "" if resize or "position" not in name else "; resize=True would resize positions"
        raise InvalidInputError(
            f"{name} is {tuple(own[name].shape)} here and {tuple(found[name].shape)} in the file"
            f"{more}"
        )
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    if told is not None and any(name.startswith(_CLASSIFIERS) for name in found):
        name_classes(model, told)
    return Imported(chosen, len(found), tuple(sorted(set(own) - set(found))))


def differences(own: Mapping[str, Tensor], converted: Converted) -> dict[str, list[str]]:
    """Names of tensors by what is wrong with them."""
    found = converted.tensors
    return {
        MISSING: [n for n in own if n not in found and not n.endswith("num_batches_tracked")],
        ODD: [*converted.unexpected, *sorted(set(found) - set(own))],
        OTHER_SHAPE: [n for n in found if n in own and found[n].shape != own[n].shape],
    }


def name_classes(model: VisionModel, told: SourceConfig) -> None:
    """Gives a model the class names of the config.json that its classifier came with."""
    names, count = dict(told.id2label), model.config.num_labels
    if names and len(names) != count:
        raise InvalidInputError(
            f"{told.file} names {len(names)} classes, the classifier has {count}"
        )
    if names:
        model.config.id2label = names
        model.config.label2id = {name: index for index, name in names.items()}


def to_checkpoint_format(model: VisionModel, checkpoint_format: str) -> dict[str, Tensor]:
    """The model's tensors as another layout has them."""
    maps = model.state_dict_converters(model.config)
    if checkpoint_format not in maps:
        raise unknown_name("format", checkpoint_format, maps)
    tensors, unexpected = maps[checkpoint_format].to_theirs(model.state_dict())
    if unexpected:
        raise InvalidInputError(
            f"the {checkpoint_format} layout has no name for {len(unexpected)} tensors, "
            f"{unexpected[0]} for one"
        )
    return tensors
