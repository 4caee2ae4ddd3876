"""What a recipe of training says: a model, images, an objective, settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache, wraps
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import Field
from transformers import TrainingArguments

from modwright.checkpoint import open as open_checkpoint
from modwright.core.errors import (
    InvalidInputError,
    ModwrightError,
    did_you_mean,
    first_line,
    unknown_name,
)
from modwright.data.images import Pictures, digits, folder_pictures, idx_pictures
from modwright.models import create_model, list_models
from modwright.models.registry import variant_config
from modwright.recipes.load import load_named, of_file
from modwright.recipes.options import RegistryOption, options_of, validated
from modwright.recipes.reading import Lines, Positions, read_changed
from modwright.recipes.schema import Strict
from modwright.training import Settings
from modwright.training.objectives import OBJECTIVES
from modwright.training.teachers import with_teacher

__all__ = ["CHOICES", "TrainingRecipe", "load_training", "make_model", "parse_training"]
__all__ += ["training_schema"]


class _OfImages(Mapping[str, Callable[..., Any]]):
    """The objectives by name, as a recipe of images makes them; a teacher is a path there."""

    def __getitem__(self, name: str) -> Callable[..., Any]:
        kind = OBJECTIVES[name]
        return _with_path(kind) if "teacher" in inspect.signature(kind).parameters else kind

    def __iter__(self) -> Iterator[str]:
        return iter(OBJECTIVES.names())

    def __len__(self) -> int:
        return len(OBJECTIVES.names())

    def __contains__(self, name: object) -> bool:
        return name in OBJECTIVES


@cache
def _with_path(kind: Callable[..., Any]) -> Callable[..., Any]:
    """An objective whose teacher must be given, as the directory of a checkpoint."""

    @wraps(kind, updated=())
    def made(**options: Any) -> Any:
        return with_teacher(kind(**options))

    taken = inspect.signature(kind).parameters.values()
    path = {"annotation": str, "default": inspect.Parameter.empty}
    given = [p.replace(**path) if p.name == "teacher" else p for p in taken]
    told: Any = made
    told.__signature__ = inspect.Signature(given)
    told.__annotations__ = {**get_type_hints(kind), "teacher": str}
    del told.__wrapped__
    return made


CHOICES = {
    "data": RegistryOption(
        "data", "pictures", {"digits": digits, "idx": idx_pictures, "folder": folder_pictures}
    ),
    "objective": RegistryOption("objective", "loss", _OfImages()),
}
_SettingsOf: Any = options_of(Settings)

# Arguments of transformers' Trainer that have a key of their own in a recipe.
_OWN_KEYS = {
    "output_dir": "output",
    "report_to": "tensorboard",
    "num_train_epochs": "settings.epochs",
    "per_device_train_batch_size": "settings.batch_size",
    "learning_rate": "settings.learning_rate",
    "weight_decay": "settings.weight_decay",
    "max_grad_norm": "settings.clip",
    "seed": "settings.seed",
    "lr_scheduler_type": "settings.schedule",
    "warmup_steps": "settings.warmup",
    "save_strategy": "checkpoint_every",
    "save_steps": "checkpoint_every",
}


class TrainingRecipe(Strict):
    """A model, the images that it learns from, and how."""

    model: dict[str, Any] = Field(
        description="{name: poolformer_s12, depths: [1, 1]}: a named model with fields of its "
        "config; or {checkpoint: DIR}"
    )
    data: dict[str, Any] = Field(
        description="{pictures: digits, side: 32}; `pictures` is one of "
        f"{', '.join(CHOICES['data'].makers)}"
    )
    objective: dict[str, Any] = Field(
        default={"loss": "cross_entropy"},
        description="{loss: cross_entropy, label_smoothing: 0.1}; loss is the name of an objective",
    )
    settings: _SettingsOf = Field(default=_SettingsOf(), description="how long and how fast")
    output: str = Field(default="", description="directory to write; the command line may give it")
    title: str = ""
    plugins: list[str] = Field(
        default=[],
        description="files, relative to the recipe, or modules that register parts, methods, "
        "families and so on",
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads; null: torch chooses")
    checkpoint_every: int | None = Field(
        default=None, ge=1, description="steps between checkpoints; null: one after every epoch"
    )
    measure_epochs: bool = Field(
        default=True, description="accuracy on the test images after every epoch, too"
    )
    tensorboard: bool = Field(default=False, description="event files beside the checkpoint")

    @property
    def seed(self) -> int:
        """Of the first weights, and of everything random in training."""
        seed: int = self.settings.seed
        return seed


def load_training(
    path: str | Path, overrides: Iterable[str] = (), plugins: Sequence[str] = ()
) -> TrainingRecipe:
    """A recipe of training from a YAML file, as ``load_recipe`` reads others.

    Raises:
        CheckpointError: the file cannot be read.
        InvalidInputError: names file, line, value and the valid values.
    """
    return parse_training(*read_changed(path, overrides), plugins=plugins)


def parse_training(
    tree: Any,
    positions: Positions | None = None,
    name: str = "recipe",
    plugins: Sequence[str] = (),
) -> TrainingRecipe:
    """A recipe of training from plain values, with every default written out.

    Raises:
        InvalidInputError: names the place, the value and what is valid.

    Example:
        >>> given = {"model": {"name": "poolformer_s12"}, "data": {"pictures": "digits"}}
        >>> parse_training(given).data["side"]
        32
    """
    lines = Lines(positions or {}, name)
    recipe = validated(TrainingRecipe, tree, lines, keys="model and data")
    recipe = recipe.model_copy(update={"plugins": load_named(recipe.plugins, lines, plugins)})
    _check_model(recipe.model, lines)
    found = {at: one.resolved(getattr(recipe, at), lines) for at, one in CHOICES.items()}
    arguments = [field.name for field in fields(TrainingArguments)]
    for key in recipe.settings.more:
        where = f"{lines.of(('settings', 'more', key))}, settings.more.{key}"
        if key in _OWN_KEYS:
            raise InvalidInputError(f"{where}: say it with the key {_OWN_KEYS[key]}")
        if key not in arguments:
            raise InvalidInputError(
                f"{where}: is no argument of transformers.TrainingArguments"
                f"{did_you_mean(key, arguments)}"
            )
    try:
        Settings(**recipe.settings.model_dump())
    except ModwrightError as error:
        where = lines.of(("settings", str(error).split()[0]))
        raise InvalidInputError(f"{where}, settings: {error}") from None
    return recipe.model_copy(update=found)


def _check_model(given: Mapping[str, Any], lines: Lines) -> None:
    """Refuses what names no model, or a field that it has not."""

    def refuse(problem: object, *key: str) -> InvalidInputError:
        at = ("model", *key)
        return InvalidInputError(f"{lines.of(at)}, {'.'.join(at)}: {problem}")

    aliases: Mapping[str, str] = {}  # a paper's words for fields
    valid = ["checkpoint", "num_classes"]
    if ("name" in given) == ("checkpoint" in given):
        raise refuse("has one of the keys name and checkpoint; see list_models()")
    if "name" in given:
        name = given["name"]
        if name not in list_models():
            raise refuse(unknown_name("model", name, list_models()), "name")
        config = type(variant_config(name))
        if "id2label" not in config.field_names():
            raise refuse(f"{name} is no classifier of images", "name")
        # Arguments that make no model to train, and names of the config for other arguments.
        own = set(inspect.signature(create_model).parameters)
        own -= {"name", "pretrained", "features_only", "out_indices", "fields"}
        of_config = set(config.field_names()) - {"num_labels", "num_channels"}
        valid = ["name", *sorted(own | of_config)]
        aliases = config.attribute_map
    for key in given:
        if aliases.get(key, key) not in valid:
            raise refuse(unknown_name("key", key, valid), key)


def make_model(given: Mapping[str, Any], images: Pictures) -> Any:
    """The model of a recipe, made for these images: their classes, their size unless it is said."""
    if "checkpoint" in given:
        model: Any = open_checkpoint(given["checkpoint"]).model
        num_classes = given.get("num_classes")
        if num_classes is not None and num_classes != model.config.num_labels:
            if not hasattr(model, "reset_classifier"):
                raise InvalidInputError(
                    f"model: {type(model).__name__} cannot be given other classes"
                )
            model.reset_classifier(num_classes)
        return model
    options = {"num_classes": len(images.classes), "image_size": images.pixels.shape[-1], **given}
    for named in ("id2label", "label2id"):  # training names the classes
        options.pop(named, None)
    try:
        return create_model(**options)
    except ModwrightError as error:
        raise InvalidInputError(f"model: {error}") from None
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        name, info = given["name"], first_line(error)
        raise InvalidInputError(f"model: {name} cannot be built so: {info}") from None


def training_schema() -> dict[str, Any]:
    """The JSON Schema of recipes of training; a model's own fields are not listed.

    Example:
        >>> training_schema()["properties"]["data"]["oneOf"][0]["properties"]["side"]["default"]
        32
    """
    schema = TrainingRecipe.model_json_schema()
    for at, choice in CHOICES.items():
        schema["properties"][at].update(choice.schema())
    named = {
        "type": "object",
        "properties": {"name": {"enum": list_models()}},
        "required": ["name"],
    }
    stored = {
        "type": "object",
        "properties": {"checkpoint": {"type": "string"}, "num_classes": {"type": "integer"}},
        "required": ["checkpoint"],
        "additionalProperties": False,
    }
    schema["properties"]["model"]["oneOf"] = [named, stored]
    return of_file(schema)
