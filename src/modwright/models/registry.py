"""Named models: what ``create_model`` makes and ``list_models`` lists."""

from __future__ import annotations

import dataclasses
import fnmatch
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig

from modwright.core.errors import InvalidInputError, unknown_name
from modwright.core.registry import Registry
from modwright.models.classifier import FeatureMaps
from modwright.models.importing import import_weights, read_weights
from modwright.models.source_configs import read_source_config
from modwright.models.vision_model import VisionConfig, VisionModel, check_count

__all__ = [
    "MODELS",
    "create_model",
    "list_models",
    "model_class",
    "register_architecture",
    "register_model",
    "variant_config",
]


# Name -> what makes its config from keyword arguments.
MODELS: Registry[Callable[..., PreTrainedConfig]] = Registry(
    "model", "modwright.models.architectures"
)
_CLASSES: dict[type[PreTrainedConfig], type[VisionModel]] = {}


def register_model(function: Callable[..., PreTrainedConfig]) -> Callable[..., PreTrainedConfig]:
    """Registers a model under the name of a function that makes its config. A decorator.

    Example:
        >>> from modwright.models.architectures.metaformer import MetaFormerConfig
        >>> @register_model
        ... def poolformer_x4(**overrides):
        ...     return MetaFormerConfig(depths=[1, 1], hidden_sizes=[8, 16], **overrides)
        >>> create_model("poolformer_x4", num_classes=10).num_features
        16
    """
    return MODELS.add(function.__name__, function)


def register_architecture(
    config_class: type[VisionConfig],
    model: type[VisionModel],
    variants: Mapping[str, Mapping[str, Any]],
    auto: Any = AutoModelForImageClassification,
) -> None:
    """Makes an architecture known to transformers' Auto classes, and its variants by name.

    The config's ``model_type`` is the name of the file that it stands in. ``variants`` are fields
    that differ from the defaults, by name; ``auto`` is the Auto class for what the model does.
    """
    model.config_class = config_class
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for opener in (AutoModel, auto):  # there is one class: it holds all that is in a checkpoint
        opener.register(config_class, model, exist_ok=True)
    _CLASSES[config_class] = model
    for name, fields in variants.items():
        MODELS.add(name, _maker(config_class, fields))


def _maker(config_class: Any, fields: Mapping[str, Any]) -> Callable[..., Any]:
    def make(**overrides: Any) -> PreTrainedConfig:
        overrides = config_class.canonical_fields(overrides)
        valid = config_class.field_names()
        for name in sorted(overrides):
            if name not in valid:
                raise unknown_name(f"field of {config_class.__name__}", name, valid)
        types = _types_of(config_class)
        for name in (name for name in overrides if name in types):
            written, wanted = types[name]
            if not _fits(wanted, name, overrides[name]):
                raise InvalidInputError(f"{name} is {written}, not {overrides[name]!r}")
        return config_class(**{**fields, **overrides})

    make.__module__ = config_class.__module__
    return make


@cache
def _types_of(config_class: Any) -> dict[str, tuple[Any, TypeAdapter[Any]]]:
    """How each field is written, and what checks it; transformers checks its own fields."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    names = {"Any": Any, **vars(sys.modules[config_class.__module__])}
    return {
        field.name: (
            field.type,
            TypeAdapter(eval(field.type, names) if isinstance(field.type, str) else field.type),
        )
        for field in dataclasses.fields(config_class)
        if field.name not in inherited
    }


def _fits(wanted: TypeAdapter[Any], name: str, value: Any) -> bool:
    """Whether a value, or a list of it for all stages, is of a field's type."""
    alone = name == "depths" or isinstance(value, list | tuple | dict | None)
    for given in [value] if alone else [value, [value]]:
        with suppress(ValidationError):
            wanted.validate_python(given, strict=True)
            return True
    return False


def list_models(pattern: str = "*") -> list[str]:
    """Names of models that match a pattern, sorted.

    Example:
        >>> list_models("poolformer_s*")
        ['poolformer_s12', 'poolformer_s24', 'poolformer_s36']
    """
    return fnmatch.filter(MODELS.names(), pattern)


def variant_config(name: str, **overrides: Any) -> PreTrainedConfig:
    """The config of a named model, some of its fields replaced."""
    return MODELS[name](**overrides)


def model_class(config: PreTrainedConfig) -> type[VisionModel]:
    """The class that a config builds."""
    return _CLASSES[type(config)]


def create_model(
    name: str,
    pretrained: bool = False,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float | None = None,
    global_pool: str | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    checkpoint_path: str | Path | None = None,
    **fields: Any,
) -> Any:
    """Builds a named model with random weights, or with those of a checkpoint file.

    Args:
        name: see :func:`list_models`.
        pretrained: refused: no weights come with this library.
        num_classes: or ``num_labels``; 0 has no classifier: pooled features come out.
        in_chans: or ``num_channels``; of the image.
        drop_rate: dropout before the classifier.
        drop_path_rate, global_pool: the variant's own unless they are said.
        features_only: gives a :class:`FeatureMaps` instead: a list of maps.
        out_indices: which maps: the last n, or those listed; all unless it is said.
        checkpoint_path: a file of the paper's authors or of another library; its layout is found
            from its names. Fields of a config.json beside it are those of the model.
        fields: of the architecture's config, ``image_size`` for one.

    Raises:
        InvalidInputError: an unknown name or field, a wrong value, or a file that does not fit.

    Example:
        >>> import torch
        >>> model = create_model("poolformer_s12", num_classes=10, depths=[1, 1, 1, 1])
        >>> model(torch.zeros(1, 3, 64, 64)).logits.shape
        torch.Size([1, 10])
    """
    if pretrained:
        raise InvalidInputError(
            "pretrained weights are not shipped; name a file with checkpoint_path=..."
        )
    # The config's own words for two of the arguments
    num_classes = fields.pop("num_labels", num_classes)
    in_chans = fields.pop("num_channels", in_chans)
    check_count("num_classes", num_classes, least=0)
    check_count("in_chans", in_chans)
    for said, rate in {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}.items():
        number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if rate is not None and not (number and 0 <= rate <= 1):
            raise InvalidInputError(f"{said} lies between 0 and 1, not {rate!r}")
    chosen = {"drop_path_rate": drop_path_rate, "global_pool": global_pool}
    fields |= {key: value for key, value in chosen.items() if value is not None}
    kind: Any = type(variant_config(name))
    classifies = "num_labels" in kind.field_names()
    if classifies or drop_rate:
        fields["drop_rate"] = drop_rate
    if classifies:
        fields["num_labels"] = num_classes
    elif features_only:
        raise InvalidInputError(f"{name} is no classifier: it has no feature maps to give")
    if checkpoint_path is not None:
        beside = read_source_config(checkpoint_path, _CLASSES[kind].config_maps())
        told = _CLASSES[kind].config_from_state_dict(read_weights(checkpoint_path))
        fields = kind.canonical_fields(fields)
        told = {} if told.keys() & fields.keys() else told
        fields = {**({} if beside is None else beside.fields), **told, **fields}
    config = variant_config(name, **{"num_channels": in_chans, **fields})
    model: Any = model_class(config)(config)
    if checkpoint_path is not None:
        import_weights(model, checkpoint_path)
    return FeatureMaps(model, out_indices) if features_only else model
