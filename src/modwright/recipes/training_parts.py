"""What recipes of training are made of: images, objectives and models, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from modwright.checkpoint import open as open_checkpoint
from modwright.core.errors import InvalidInputError, ModwrightError, unknown_name
from modwright.models import create_model, list_models
from modwright.models.registry import variant_config
from modwright.recipes.reading import Location
from modwright.recipes.validation_errors import position_of
from modwright.tasks.pictures import Pictures, digits, folder_pictures, idx_pictures
from modwright.training import CrossEntropy, Distillation

__all__ = ["MODEL", "OBJECTIVES", "PICTURES", "ModelEntry", "distillation"]

PICTURES: dict[str, Callable[..., tuple[Pictures, Pictures]]] = {
    "digits": digits,
    "idx": idx_pictures,
    "folder": folder_pictures,
}


def distillation(
    teacher: str, weight: float = 0.5, temperature: float = 1.0, hard: bool = False
) -> Distillation:
    """A teacher's answers as targets, beside the classes.

    Args:
        teacher: directory of a checkpoint that classifies the same images.
        weight: of the teacher's part; the rest is cross-entropy with the classes.
        temperature: of soft targets.
        hard: the teacher's best class is the target, instead of its probabilities.
    """
    return Distillation(open_checkpoint(teacher).model, weight, temperature, hard)


OBJECTIVES: dict[str, Callable[..., Any]] = {
    "cross_entropy": CrossEntropy,
    "distillation": distillation,
}


class ModelEntry:
    """The entry ``model``: a named model with its fields, or a checkpoint."""

    # Arguments of create_model that are names of the config, too, or make no model to train.
    _twins = {"num_classes": "num_labels", "in_chans": "num_channels"}
    _unfit = {"name", "pretrained", "features_only", "out_indices", "fields"}

    def check(
        self, given: Mapping[str, Any], positions: Mapping[Location, str], recipe: str
    ) -> None:
        """Refuses what names no model, or a field that it has not.

        Raises:
            InvalidInputError: with the place, and what is valid.
        """

        def where(*key: str) -> str:
            return f"{position_of(('model', *key), positions, recipe)}, {'.'.join(('model', *key))}"

        aliases: Mapping[str, str] = {}  # a paper's words for fields
        if ("name" in given) == ("checkpoint" in given):
            raise InvalidInputError(
                f"{where()}: has one of the keys name and checkpoint; see list_models()"
            )
        if "checkpoint" in given:
            valid = ["checkpoint", "num_classes"]
        elif given["name"] not in list_models():
            raise InvalidInputError(
                f"{where('name')}: {unknown_name('model', given['name'], list_models())}"
            )
        elif "id2label" not in type(variant_config(given["name"])).field_names():
            raise InvalidInputError(f"{where('name')}: {given['name']} is no classifier of images")
        else:
            valid = ["name", *self.valid_fields(given["name"])]
            aliases = type(variant_config(given["name"])).attribute_map
        for key in given:
            if aliases.get(key, key) not in valid:
                raise InvalidInputError(f"{where(key)}: {unknown_name('key', key, valid)}")

    def valid_fields(self, name: str) -> list[str]:
        """What can be said of a named model."""
        own = set(inspect.signature(create_model).parameters) - self._unfit
        of_config = set(type(variant_config(name)).field_names())
        return sorted(own | of_config - set(self._twins.values()))

    def make(self, given: Mapping[str, Any], images: Pictures) -> Any:
        """The model, made for these images: their classes, and their size unless it is said.

        Raises:
            InvalidInputError: fields that do not go together, or a checkpoint of something else.
        """
        if "checkpoint" in given:
            return self._opened(**given)
        sizes = {"num_classes": len(images.classes), "image_size": images.pixels.shape[-1]}
        fields = {**sizes, **given}
        for named in ("id2label", "label2id"):  # training names the classes
            fields.pop(named, None)
        try:
            return create_model(**fields)
        except ModwrightError as error:
            raise InvalidInputError(f"model: {error}") from None
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            info = str(error).strip().splitlines()[0]
            raise InvalidInputError(f"model: {given['name']} cannot be built so: {info}") from None

    def _opened(self, checkpoint: str, num_classes: int | None = None) -> Any:
        model: Any = open_checkpoint(checkpoint).model
        if num_classes is not None and num_classes != model.config.num_labels:
            if not hasattr(model, "reset_classifier"):
                raise InvalidInputError(
                    f"model: {type(model).__name__} cannot be given other classes"
                )
            model.reset_classifier(num_classes)
        return model

    def schema(self) -> dict[str, Any]:
        """As JSON Schema; fields differ from model to model and are not listed."""
        checkpoint = {"checkpoint": {"type": "string"}, "num_classes": {"type": "integer"}}
        return {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {"name": {"enum": list_models()}},
                    "required": ["name"],
                },
                {
                    "type": "object",
                    "properties": checkpoint,
                    "required": ["checkpoint"],
                    "additionalProperties": False,
                },
            ]
        }


MODEL = ModelEntry()
