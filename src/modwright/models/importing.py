"""Weights of a paper's authors, or of another library, into a model here, and back."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modwright.core.errors import CheckpointError, Refused, unknown_name
from modwright.core.reading import read_json
from modwright.models.key_maps import KeyMap
from modwright.models.picture_model import PictureModel
from modwright.models.source_configs import SourceConfig, read_source_config, same_value

__all__ = ["Imported", "import_weights", "layouts_of", "name_classes", "read_weights", "to_layout"]

# Fields that may differ from those of the weights: rates of training, and what `resize` is for.
_MAY_DIFFER = {"drop_rate", "drop_path_rate", "image_size"}
_CLASSIFIERS = ("head.fc.", "head.fc_distilled.")
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


@dataclass(frozen=True)
class Imported:
    """What came in.

    Attributes:
        layout: name of the layout that the file has.
        tensors: how many were taken.
        fresh: tensors of the model that the file does not have and that were left as they were.
    """

    layout: str
    tensors: int
    fresh: tuple[str, ...]


def layouts_of(model: PictureModel) -> dict[str, KeyMap]:
    """The layouts that a model's weights can be read from and written to, by name."""
    return model.key_maps(model.config)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors or torch file, out of the dicts that training scripts wrap them in.

    A directory is one that transformers wrote, in one file or in shards. Torch files are read with
    ``weights_only=True``: no code of theirs runs.

    Of several sets the averaged one is taken: published numbers come from it.

    Raises:
        CheckpointError: there is no such file, or it holds no tensors.
    """
    path = Path(path)
    if path.is_dir():
        return _read_directory(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            # Training scripts keep their arguments beside the weights; a Namespace runs no code.
            with torch.serialization.safe_globals([argparse.Namespace]):
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    for key in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no tensors by name")
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
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
    model: PictureModel,
    source: str | Path | Mapping[str, Tensor],
    layout: str = "auto",
    resize: bool | tuple[int, int] = False,
    new_classifier: bool = False,
) -> Imported:
    """Fills a model from a file, or a state dict, of another layout. All or nothing.

    The fields of a config.json beside the weights are compared with the model's; where the
    classifier is taken, its names are, too.

    Args:
        model: of the same architecture and sizes.
        source: a path, or tensors by name.
        layout: name of the layout; "auto" finds the one that knows most of the names.
        resize: positions of another grid are resized; they are refused otherwise. A pair (height,
            width) says the grid of the file where it is no square.
        new_classifier: a map to another number of classes is left as it is in the model.

    Raises:
        Refused: names that are missing, names that nothing knows, shapes that differ, or fields of
            config.json that the model does not compute by; the first of them is named.
    """
    told = None
    if isinstance(source, Mapping):
        tensors = dict(source)
    else:
        told = read_source_config(source, model.config_maps())
        tensors = read_weights(source)
    if told is not None:
        _check_fields(model, told)
    maps = layouts_of(model)
    if not maps:
        raise Refused(f"{type(model).__name__} has no layout of another library")
    if layout not in ("auto", *maps):
        raise unknown_name("layout", layout, ["auto", *maps])
    try:
        if layout == "auto":
            layout = min(maps, key=lambda name: len(maps[name].to_ours(tensors).unexpected))
        converted = maps[layout].to_ours(tensors)
    except ValueError as error:
        raise Refused(str(error)) from None
    own = model.state_dict()
    found = converted.tensors
    if new_classifier:
        for name in [n for n in found if n.startswith(_CLASSIFIERS)]:
            if name not in own or own[name].shape != found[name].shape:
                del found[name]
    if resize:
        old = None if isinstance(resize, bool) else resize
        known = [name for name in found if name in own]
        found |= {name: model.resize_positions(name, found[name], old) for name in known}
    unexpected = [*converted.unexpected, *sorted(set(found) - set(own))]
    if unexpected:
        raise Refused(
            f"{len(unexpected)} names of the {layout} layout have no place in "
            f"{type(model).__name__} of this config, {unexpected[0]} for one"
        )
    missing = [name for name in own if name not in found and not _may_miss(name, new_classifier)]
    if missing:
        raise Refused(f"{len(missing)} tensors are missing from the file, {missing[0]} for one")
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            more = "" if resize else "; resize=True would resize positions"
            raise Refused(
                f"{name} is {tuple(own[name].shape)} here and {tuple(tensor.shape)} in the file"
                f"{more if 'position' in name else ''}"
            )
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    if told is not None and any(name.startswith(_CLASSIFIERS) for name in found):
        name_classes(model, told)
    return Imported(layout, len(found), tuple(sorted(set(own) - set(found))))


def _check_fields(model: PictureModel, told: SourceConfig) -> None:
    """Refuses a model that computes by other fields than those of the weights' config.json."""
    for name, value in told.fields.items():
        own = getattr(model.config, name)
        if name not in _MAY_DIFFER and not same_value(value, own):
            raise Refused(
                f"{told.folder / 'config.json'} says {name} {value!r}, the model has {own!r}"
            )


def name_classes(model: PictureModel, told: SourceConfig) -> None:
    """Gives a model the class names of the config.json that its classifier came with.

    Raises:
        Refused: the config names another number of classes than the classifier has.
    """
    count = model.config.num_labels
    if told.id2label and len(told.id2label) != count:
        raise Refused(
            f"{told.folder / 'config.json'} names {len(told.id2label)} classes, the classifier "
            f"has {count}"
        )
    if told.id2label:
        model.config.id2label = dict(told.id2label)
        model.config.label2id = {name: index for index, name in told.id2label.items()}


def _may_miss(name: str, new_classifier: bool) -> bool:
    counter = name.endswith("num_batches_tracked")
    return counter or (new_classifier and name.startswith(_CLASSIFIERS))


def to_layout(model: PictureModel, layout: str) -> dict[str, Tensor]:
    """The model's tensors as another layout has them.

    Raises:
        Refused: an unknown layout, or tensors that it has no name for.
    """
    maps = layouts_of(model)
    if layout not in maps:
        raise unknown_name("layout", layout, maps)
    converted = maps[layout].to_theirs(model.state_dict())
    if converted.unexpected:
        raise Refused(
            f"the {layout} layout has no name for {len(converted.unexpected)} tensors, "
            f"{converted.unexpected[0]} for one"
        )
    return converted.tensors
