"""Fields of another library's config.json in ours: each is mapped, harmless, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedConfig

from modwright.core.errors import CheckpointError, InvalidInputError, UnsupportedArchitecture

__all__ = ["ConfigMap", "SourceConfig", "config_beside", "read_source_config", "same_value"]

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# What old versions of transformers wrote, and what changes training, names or return values only.
_HARMLESS = {
    *PreTrainedConfig().to_dict(),
    *("_name_or_path", "torch_dtype", "torchscript", "use_bfloat16", "tf_legacy_loss"),
    *("initializer_range", "finetuning_task", "use_cache", "out_features", "out_indices"),
    *("stage_names", "encoder_stride", "_attn_implementation_autoset"),
    *("id2label", "label2id", "num_labels"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),
}
_TIMM = {"architecture", "num_classes", "num_features", "pretrained_cfg", "label_descriptions"}
_TIMM |= {"model_args", "global_pool", "label_names"}


@dataclass(frozen=True)
class ConfigMap:
    """What the fields of one ``model_type`` of transformers are here.

    Attributes:
        architecture: their class whose tensors have a place here.
        same: their fields that mean the same here.
        renamed: their field -> ours.
        only: their field -> the one value that the architecture here computes.
        made: fields of ours that are made of several of theirs: called with all of theirs.
        read: their fields that ``made`` reads.
        harmless: their fields that do not change what is computed.
    """

    architecture: str
    same: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    made: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda theirs: {}
    read: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()

    def fields(self, theirs: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of ours, from the whole config, defaults included, and from what the file says.

        Raises:
            InvalidInputError: a value that is not computed here, or an unknown field.
        """
        renamed = {**{name: name for name in self.same}, **self.renamed}
        known = {*renamed, *self.only, *self.read, *self.harmless, *_HARMLESS}
        for key, value in stored.items():
            if key not in known:
                raise InvalidInputError(f"{key} has no counterpart here: {value!r:.60}")
        built = theirs.get("architectures") or [self.architecture]
        if self.architecture not in built:
            raise InvalidInputError(
                f"architectures is {', '.join(built)}; {self.architecture} is read"
            )
        for key, value in self.only.items():
            if theirs.get(key) != value:
                raise InvalidInputError(
                    f"{key} is {theirs.get(key)!r}; only {value!r} is computed here"
                )
        return {
            **{ours: theirs[key] for key, ours in renamed.items() if key in theirs},
            **self.made(theirs),
        }


class SourceConfig(NamedTuple):
    """What a config.json says of a model here: fields of our config, and class names by index."""

    file: Path
    fields: Mapping[str, Any]
    id2label: Mapping[int, str]


def config_beside(path: str | Path) -> Path | None:
    """The folder whose config.json goes with weights: a directory, or that of its weight file."""
    path = Path(path)
    folder = path.parent if path.name in _WEIGHTS else path
    return folder if (folder / "config.json").is_file() else None


def read_source_config(path: str | Path, maps: Mapping[str, ConfigMap]) -> SourceConfig | None:
    """The config in a directory, or beside a weight file; None where there is none.

    Raises:
        CheckpointError: config.json cannot be read.
        UnsupportedArchitecture: it is of another architecture.
        InvalidInputError: a field is not known here, or has a value that is not computed here.
    """
    folder = config_beside(path)
    if folder is None:
        return None
    file = folder / "config.json"
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        kind, named = stored.get("model_type"), stored.get("architecture")
    except (OSError, ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{file} is no JSON object that can be read") from None
    if kind is None and isinstance(named, str):
        return _of_timm(file, stored)
    if kind not in maps:
        valid = ", ".join(maps) or "none"
        raise UnsupportedArchitecture(
            f"{file}: model_type {kind!r} does not go with this model; valid values: {valid}"
        )
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        theirs = CONFIG_MAPPING[kind].from_dict(stored)
        found = maps[kind].fields(theirs.to_dict(), stored)
    except InvalidInputError as error:
        raise InvalidInputError(f"{file}: {error}") from None
    except Exception as error:  # what the config's class makes of values that are none
        told = " ".join(str(error).split())
        raise CheckpointError(f"{file} is no config of {kind}: {told}") from None
    return SourceConfig(file, found, dict(theirs.id2label))


def _of_timm(file: Path, stored: Mapping[str, Any]) -> SourceConfig:
    """timm's config.json, which names an architecture and how its default model was changed."""
    changed = [f"model_args.{key}" for key in stored.get("model_args") or {}]
    for key in [*changed, *(key for key in stored if key not in _TIMM)]:
        raise InvalidInputError(f"{file}: {key} has no counterpart here")
    fields = {"global_pool": stored["global_pool"]} if "global_pool" in stored else {}
    return SourceConfig(file, fields, dict(enumerate(stored.get("label_names") or ())))


def same_value(value: Any, own: Any) -> bool:
    """Whether a field has a value; one number stands for a list that has it in each stage.

    Example:
        >>> same_value(4.0, [4, 4]), same_value((1, 2), [1, 2]), same_value(3, 4)
        (True, True, False)
    """
    if isinstance(own, list | tuple):
        given = value if isinstance(value, list | tuple) else [value] * len(own)
        return list(given) == list(own)
    return bool(value == own)
