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
from torch import Tensor

from modwright.core.errors import (
    CheckpointError,
    InvalidInputError,
    ModwrightError,
    first_line,
    refusing,
    unknown_name,
)
from modwright.core.reading import read_json, refuse_no_weights
from modwright.models.source_configs import SourceConfig, read_source_config, same_value
from modwright.models.state_dict_converter import StateDictConverter
from modwright.models.vision_model import VisionModel

__all__ = [
    "Imported",
    "checkpoint_formats",
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


@dataclass(frozen=True)
class Imported:
    """What came in.

    Attributes:
        checkpoint_format: name of the layout that the file has.
        tensors: how many were taken.
        fresh: tensors of the model that the file does not have and that were left as they were.
    """

    checkpoint_format: str
    tensors: int
    fresh: tuple[str, ...]


def checkpoint_formats(model: VisionModel) -> dict[str, StateDictConverter]:
    """The layouts that a model's weights can be read from and written to, by name."""
    return model.state_dict_converters(model.config)


def read_weights(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors or torch file, out of the dicts that training scripts wrap them in.

    A directory is one that transformers wrote, in one file or in shards. Torch files are read with
    ``weights_only=True``: no code of theirs runs. Configs and counters beside the weights, of
    whatever class, become empty objects.

    Of several sets the averaged one is taken: published numbers come from it.

    Args:
        path: the file or directory.
        key: which of the dicts of a file, "params_ema" say, with dots for those inside others;
            found by default where there is one, or one of a usual name.

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
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = _load_inert(path)
    except ModwrightError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {_torch_says(error)}") from None
    tensors = _tensors(_chosen(found, key, path), path)
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
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
            unknown = _UNKNOWN_CLASS.search(str(error))
            filled = _FILLED_CLASS.search(str(error))
            if filled is not None and issubclass(stand_ins[filled[2]], _Inert):
                # Torch fills plain containers only.
                stand_ins[filled[2]] = {"SETITEM": OrderedDict}.get(filled[1], list)
                continue
            if unknown is None or len(stand_ins) >= _MOST_CLASSES:
                raise
            name = unknown[1] if "." in unknown[1] else f"builtins.{unknown[1]}"
            if name in stand_ins:
                raise
            # A type of its own: torch finds allowed objects by what they are.
            stand_ins[name] = type(name, (_Inert,), {"__module__": "inert"})


def _torch_says(error: Exception) -> str:
    """Torch's message without its advice, which is to run the code of the file."""
    blocked = re.search(r"GLOBAL ([\w.]+) whose module", str(error))
    if blocked:
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
    if not isinstance(found, dict) or any(isinstance(v, Tensor) for v in found.values()):
        return found
    holders = [
        str(name)
        for name, value in found.items()
        if isinstance(value, dict) and any(isinstance(one, Tensor) for one in value.values())
    ]
    if len(holders) > 1:
        raise InvalidInputError(
            f"{path} holds several sets of tensors; choose a key: {', '.join(holders)}"
        )
    return found[holders[0]] if holders else found


def _tensors(found: Any, path: Path) -> dict[str, Tensor]:
    items = found.items() if isinstance(found, dict) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name")
    return tensors


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
        InvalidInputError: names that are missing, names that nothing knows, shapes that differ, or
            fields of config.json that the model does not compute by; the first of them is named.
    """
    told = None
    if isinstance(source, Mapping):
        tensors = dict(source)
    else:
        told = read_source_config(source, model.config_maps())
        tensors = read_weights(source)
    if told is not None:
        _check_fields(model, told)
    maps = checkpoint_formats(model)
    if not maps:
        raise InvalidInputError(f"{type(model).__name__} has no layout of another library")
    if checkpoint_format not in ("auto", *maps):
        raise unknown_name("format", checkpoint_format, ["auto", *maps])
    with refusing():
        if checkpoint_format == "auto":
            checkpoint_format = min(
                maps, key=lambda name: len(maps[name].to_ours(tensors).unexpected)
            )
        converted = maps[checkpoint_format].to_ours(tensors)
    own = model.state_dict()
    found = converted.tensors
    if new_classifier:
        for name in [n for n in found if n.startswith(_CLASSIFIERS)]:
            if name not in own or own[name].shape != found[name].shape:
                del found[name]
    if resize:
        old = None if isinstance(resize, bool) else resize
        known = [name for name in found if name in own]
        found |= {name: model.interpolate_pos_embed(name, found[name], old) for name in known}
    unexpected = [*converted.unexpected, *sorted(set(found) - set(own))]
    if unexpected:
        raise InvalidInputError(
            f"{len(unexpected)} names of the {checkpoint_format} layout have no place in "
            f"{type(model).__name__} of this config, {unexpected[0]} for one"
        )
    missing = [name for name in own if name not in found and not _may_miss(name, new_classifier)]
    if missing:
        raise InvalidInputError(
            f"{len(missing)} tensors are missing from the file, {missing[0]} for one"
        )
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            more = "" if resize else "; resize=True would resize positions"
            raise InvalidInputError(
                f"{name} is {tuple(own[name].shape)} here and {tuple(tensor.shape)} in the file"
                f"{more if 'position' in name else ''}"
            )
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    if told is not None and any(name.startswith(_CLASSIFIERS) for name in found):
        name_classes(model, told)
    return Imported(checkpoint_format, len(found), tuple(sorted(set(own) - set(found))))


def _check_fields(model: VisionModel, told: SourceConfig) -> None:
    """Refuses a model that computes by other fields than those of the weights' config.json."""
    for name, value in told.fields.items():
        own = getattr(model.config, name)
        if name not in _MAY_DIFFER and not same_value(value, own):
            raise InvalidInputError(
                f"{told.folder / 'config.json'} says {name} {value!r}, the model has {own!r}"
            )


def name_classes(model: VisionModel, told: SourceConfig) -> None:
    """Gives a model the class names of the config.json that its classifier came with.

    Raises:
        InvalidInputError: the config names another number of classes than the classifier has.
    """
    count = model.config.num_labels
    if told.id2label and len(told.id2label) != count:
        raise InvalidInputError(
            f"{told.folder / 'config.json'} names {len(told.id2label)} classes, the classifier "
            f"has {count}"
        )
    if told.id2label:
        model.config.id2label = dict(told.id2label)
        model.config.label2id = {name: index for index, name in told.id2label.items()}


def _may_miss(name: str, new_classifier: bool) -> bool:
    counter = name.endswith("num_batches_tracked")
    return counter or (new_classifier and name.startswith(_CLASSIFIERS))


def to_checkpoint_format(model: VisionModel, checkpoint_format: str) -> dict[str, Tensor]:
    """The model's tensors as another layout has them.

    Raises:
        InvalidInputError: an unknown format, or tensors that it has no name for.
    """
    maps = checkpoint_formats(model)
    if checkpoint_format not in maps:
        raise unknown_name("format", checkpoint_format, maps)
    converted = maps[checkpoint_format].to_theirs(model.state_dict())
    if converted.unexpected:
        raise InvalidInputError(
            f"the {checkpoint_format} layout has no name for {len(converted.unexpected)} tensors, "
            f"{converted.unexpected[0]} for one"
        )
    return converted.tensors
