"""What a recipe of training says: a model, images, an objective, settings."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import Field
from transformers import TrainingArguments

from modwright.checkpoint import open as open_checkpoint
from modwright.checkpoint import with_classes
from modwright.core.errors import (
    InvalidInputError,
    ModwrightError,
    did_you_mean,
    first_line,
    unknown_name,
)
from modwright.data import Data, resolve_data
from modwright.data.schema import data_schema
from modwright.models import create_model, list_models
from modwright.models.registry import variant_config
from modwright.recipes.load import load_named, of_file
from modwright.recipes.options import option_help, options_of, validated
from modwright.recipes.reading import Lines, Positions, read_changed
from modwright.recipes.schema import Strict
from modwright.training import Settings
from modwright.training.objectives.base import OBJECTIVES, resolve_objective
from modwright.training.teachers import SOURCE

__all__ = ["TrainingRecipe", "load_training", "make_model", "parse_training"]
__all__ += ["training_schema"]


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
    data: Any = Field(
        description="{images: digits, image_size: 32}: a dataset by kind and name, or a path; or a "
        "list of these, which are mixed"
    )
    objective: Any = Field(
        default="cross_entropy",
        description="the name of an objective, or {cross_entropy: {label_smoothing: 0.1}}",
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
        >>> given = {"model": {"name": "poolformer_s12"}, "data": {"images": "digits"}}
        >>> parse_training(given).data["image_size"]
        32
    """
    lines = Lines(positions or {}, name)
    with _at("data", lines):
        tree = _of_today(tree)
    recipe = validated(TrainingRecipe, tree, lines, keys="model and data")
    recipe = recipe.model_copy(update={"plugins": load_named(recipe.plugins, lines, plugins)})
    _check_model(recipe.model, lines)
    with _at("data", lines):
        found = {"data": resolve_data(recipe.data)}
        entries = found["data"] if isinstance(found["data"], list) else [found["data"]]
        if any("images" not in entry for entry in entries):
            raise InvalidInputError("recipes of training learn from images: {images: digits}")
    with _at("objective", lines):
        found["objective"] = resolve_objective(recipe.objective)
        ((chosen, options),) = found["objective"].items()
        if options.get("teacher") == SOURCE:
            raise InvalidInputError(f"{chosen}.teacher: is missing; the directory of a checkpoint")
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


@contextmanager
def _at(key: str, lines: Lines) -> Iterator[None]:
    """What is wrong here is said with the place of a key."""
    try:
        yield
    except InvalidInputError as error:
        raise InvalidInputError(f"{lines.of((key,))}, {key}: {error}") from None


def _of_today(tree: Any) -> Any:
    """A recipe of version 0.1 in the words of today: ``pictures``, ``side`` and ``loss``."""
    if not isinstance(tree, Mapping):
        return tree
    tree, data, loss = dict(tree), tree.get("data"), tree.get("objective")
    if isinstance(data, Mapping) and "pictures" in data:
        data = dict(data)
        kind = data.pop("pictures")
        size = {"idx": {"image_size": 32}}.get(kind, {})
        if kind in ("idx", "folder"):
            if "folder" not in data:
                raise InvalidInputError("folder: is missing")
            kind = data.pop("folder")
        words = {"side": "image_size", "test": "held_out"}
        given = {words.get(key, key): value for key, value in data.items()}
        tree["data"] = {"images": kind, **size, **given}
    if isinstance(loss, Mapping) and "loss" in loss:
        tree["objective"] = {loss["loss"]: {k: v for k, v in loss.items() if k != "loss"}}
    return tree


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


def make_model(given: Mapping[str, Any], images: Data, seed: int = 0) -> Any:
    """The model of a recipe, made for these images: their classes, their size unless it is said."""
    if "checkpoint" in given:
        model: Any = open_checkpoint(given["checkpoint"]).model
        if (num_classes := given.get("num_classes")) is None:
            return model
        try:
            return with_classes(model, num_classes, seed=seed)
        except InvalidInputError as error:
            raise InvalidInputError(f"model: {error}") from None
    size = images.train[0]["pixel_values"].shape[-1]
    options = {"num_classes": len(images.labels), "image_size": size, **given}
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
        >>> schema = training_schema()["properties"]["data"]["anyOf"][1]["oneOf"]
        >>> next(one for one in schema if one["title"] == "images: digits")["required"]
        ['images']
    """
    schema = TrainingRecipe.model_json_schema()
    schema["properties"]["data"].update(data_schema(option_help))
    schema["properties"]["objective"].update(_objective_schema())
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


def _objective_schema() -> dict[str, Any]:
    """A name, or a name with its options; the directory of a teacher must be said."""
    named, alone = [], []
    for name in OBJECTIVES.names():
        options = options_of(OBJECTIVES[name]).model_json_schema()
        if "teacher" in options["properties"]:
            options["properties"]["teacher"] = {"type": "string"}
            options["required"] = ["teacher"]
        else:
            alone.append(name)
        properties = {name: options}
        entry = {"type": "object", "properties": properties, "required": [name]}
        named.append({**entry, "additionalProperties": False})
    return {"anyOf": [{"enum": alone}, *named]}
