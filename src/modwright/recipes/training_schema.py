"""What a recipe of training says: a model, images, an objective, settings.

Valid names and options are those of the functions and classes that do the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import Field
from transformers import TrainingArguments

from modwright.core.errors import InvalidInputError, ModwrightError, unknown_name
from modwright.recipes.reading import Location, read_changed
from modwright.recipes.registry_options import RegistryOption, options_of
from modwright.recipes.schema import Strict
from modwright.recipes.training_parts import MODEL, OBJECTIVES, PICTURES
from modwright.recipes.validation_errors import position_of, validated
from modwright.training import Settings

__all__ = ["CHOICES", "TrainingRecipe", "load_training", "parse_training", "training_schema"]

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
        description=f"{{pictures: digits, side: 32}}; `pictures` is one of {', '.join(PICTURES)}"
    )
    objective: dict[str, Any] = Field(
        default={"loss": "cross_entropy"},
        description="{loss: cross_entropy, label_smoothing: 0.1}; loss is one of "
        f"{', '.join(OBJECTIVES)}",
    )
    settings: _SettingsOf = Field(default=_SettingsOf(), description="how long and how fast")
    output: str = Field(default="", description="directory to write; the command line may give it")
    title: str = ""
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


CHOICES = (
    RegistryOption("data", "pictures", PICTURES),
    RegistryOption("objective", "loss", OBJECTIVES),
)


def load_training(path: str | Path, overrides: Iterable[str] = ()) -> TrainingRecipe:
    """A recipe of training from a YAML file, fully checked.

    Args:
        path: the file; it may extend another one.
        overrides: ``settings.epochs=3`` and the like, applied last.

    Raises:
        CheckpointError: the file cannot be read.
        InvalidInputError: names file, line, value and the valid values.
    """
    return parse_training(*read_changed(path, overrides))


def parse_training(
    tree: Any, positions: Mapping[Location, str] | None = None, name: str = "recipe"
) -> TrainingRecipe:
    """A recipe of training from plain values, with every default written out.

    Args:
        tree: what the YAML file would hold.
        positions: where each value was written, for messages.
        name: what messages call the recipe where no place is known.

    Raises:
        InvalidInputError: names the place, the value and what is valid.

    Example:
        >>> given = {"model": {"name": "poolformer_s12"}, "data": {"pictures": "digits"}}
        >>> parse_training(given).data["side"]
        32
    """
    where = positions or {}
    recipe = validated(TrainingRecipe, tree, where, name, "model and data")
    MODEL.check(recipe.model, where, name)
    found = {c.at: c.resolved(getattr(recipe, c.at), where, name) for c in CHOICES}
    for key in recipe.settings.more:
        _check_argument(key, position_of(("settings", "more", key), where, name))
    try:
        settings_of(recipe)
    except ModwrightError as error:
        at: Location = ("settings", str(error).split()[0])
        raise InvalidInputError(f"{position_of(at, where, name)}, settings: {error}") from None
    return recipe.model_copy(update=found)


def settings_of(recipe: TrainingRecipe) -> Settings:
    """The settings as the training takes them."""
    return Settings(**recipe.settings.model_dump())


def pictures_of(recipe: TrainingRecipe) -> Any:
    """The images to learn from and to measure on."""
    return CHOICES[0].make(recipe.data)


def objective_of(recipe: TrainingRecipe) -> Any:
    """What is made small."""
    return CHOICES[1].make(recipe.objective)


def _check_argument(key: str, where: str) -> None:
    if key in _OWN_KEYS:
        raise InvalidInputError(
            f"{where}, settings.more.{key}: say it with the key {_OWN_KEYS[key]}"
        )
    valid = [field.name for field in fields(TrainingArguments)]
    if key not in valid:
        near = str(unknown_name("argument", key, valid)).partition(" (did you mean")[2]
        more = f" (did you mean{near}" if near else ""
        raise InvalidInputError(
            f"{where}, settings.more.{key}: is no argument of transformers.TrainingArguments{more}"
        )


def training_schema() -> dict[str, Any]:
    """The JSON Schema of recipes of training.

    Example:
        >>> training_schema()["properties"]["data"]["oneOf"][0]["properties"]["side"]["default"]
        32
    """
    schema = TrainingRecipe.model_json_schema()
    for choice in CHOICES:
        schema["properties"][choice.at].update(choice.schema())
    schema["properties"]["model"].update(MODEL.schema())
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "another recipe file, relative to this one, that this one changes",
    }
    schema["anyOf"] = [{"required": ["extends"]}, {"required": schema.pop("required")}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
