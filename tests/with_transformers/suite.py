"""transformers' own tests of a model, on an edited class of a family and on its stock class.

The tests stand in the source distribution of transformers; ``make test-transformers`` unpacks it.
"""

from __future__ import annotations

import copy
import importlib
import sys
import types
import unittest
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from edits_of_suite import EDITS
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

import modwright
from modwright.anatomy import Anatomy
from modwright.anatomy.families import families, family_of
from modwright.edits import Plan
from modwright.edits.remodeled import remodeled

FOLDER = Path(__file__).parents[2] / ".venv-transformers"
STOCK = "stock"
LAYERS = 2  # as many as the suite allows


@cache
def mixin() -> type:
    """``ModelTesterMixin``; two mixins that it imports are not in the distribution."""
    sys.path.insert(0, str(FOLDER))
    package = types.ModuleType("suite_of_transformers")
    package.__path__ = [str(FOLDER / "tests")]
    sys.modules[package.__name__] = package
    for room, module, name in (
        ("exporters", "test_export", "ExportTesterMixin"),
        ("generation", "test_utils", "GenerationTesterMixin"),
    ):
        for path in (room, f"{room}.{module}"):
            absent = types.ModuleType(f"{package.__name__}.{path}")
            sys.modules[absent.__name__] = absent
        setattr(absent, name, type(name, (), {}))
    found = importlib.import_module(f"{package.__name__}.test_modeling_common")
    _name_edited_classes()
    return found.ModelTesterMixin


def names_of_tests() -> list[str]:
    found = (name for name in dir(mixin()) if name.startswith("test_"))
    return sorted(name for name in found if callable(getattr(mixin(), name)))


def model_types() -> list[str]:
    """Every family of ours, of attentions and MLPs, whose tiny model transformers builds."""
    return [
        family.model_types[0]
        for family in dict.fromkeys(families().values())
        if family.presets and family.__module__.startswith("modwright.") and "mlp" in family.block
    ]


def _name_tables() -> Iterator[dict[str, Any]]:
    """The suite asks by the names of classes what a class is for."""
    for name, table in vars(modeling_auto).items():
        if name.startswith("MODEL_") and name.endswith("MAPPING_NAMES"):
            yield table


def _name_edited_classes() -> None:
    for table in _name_tables():
        for model_type in model_types():
            name = table.get(model_type)
            if isinstance(name, str):
                table[f"modwright_{model_type}"] = f"Modwright{name}"


@cache
def stock_classes(model_type: str) -> tuple[type[PreTrainedModel], ...]:
    names = dict.fromkeys(
        table[model_type] for table in _name_tables() if isinstance(table.get(model_type), str)
    )
    import transformers

    return tuple(getattr(transformers, name) for name in names)


@cache
def _config(model_type: str, edit: str) -> PreTrainedConfig:
    """The config of a family's tiny model with two layers, and with the edits."""
    (settings, *_) = families()[model_type].presets.values()
    layers = next(name for name in ("n_layer", "num_hidden_layers") if name in settings)
    config = AutoConfig.for_model(model_type, **{**settings, layers: LAYERS})
    if hasattr(config, "encoder_stride"):
        config.encoder_stride = config.patch_size  # the head that draws images needs it
    if edit == STOCK:
        return config
    model = AutoModel.from_config(config)
    anatomy = Anatomy.of(model)
    edited = modwright.apply(model, Plan.of(anatomy, edit, EDITS[edit](anatomy))).model.config
    return type(edited).from_dict(edited.to_dict())  # without what building a model chose


class ModelTester:
    """What the suite asks for a family: a config, inputs, and what is true of both."""

    is_training = True
    num_masks = 8  # places of an image that are hidden
    batch_size = 5
    num_choices = 3
    num_hidden_layers = LAYERS

    def __init__(self, model_type: str, edit: str) -> None:
        config = _config(model_type, edit)
        self._config = config
        self.hidden_size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        reads = family_of(config).inputs()
        if edit != STOCK:
            with torch.device("meta"):
                model = AutoModel.from_config(self.get_config())
            self.num_attention_heads = Anatomy.of(model).blocks[0].attention.num_heads
        self.seq_length = 7
        if not reads.is_text:
            self.image_size, self.patch_size = config.image_size, config.patch_size
            self.seq_length = (self.image_size // self.patch_size) ** 2 + 1

    def get_config(self) -> PreTrainedConfig:
        return copy.deepcopy(self._config)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, Any]]:
        config = self.get_config()
        if hasattr(self, "image_size"):
            shape = (self.batch_size, config.num_channels, self.image_size, self.image_size)
            return config, {"pixel_values": torch.rand(shape)}
        ids = torch.randint(3, config.vocab_size, (self.batch_size, self.seq_length))
        mask = torch.tril(torch.ones_like(ids))
        return config, {"input_ids": ids, "attention_mask": mask}


class _OfFamily:
    """What the tests of a family in transformers add."""

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: Any, return_labels: bool = False
    ) -> dict[str, Any]:
        found = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class.__name__.endswith("BertForPreTraining"):
            size = self.model_tester.batch_size, self.model_tester.seq_length
            found["labels"] = torch.zeros(size, dtype=torch.long)
            found["next_sentence_label"] = torch.zeros(size[0], dtype=torch.long)
        return found


@cache
def case_of(model_type: str, edit: str) -> type[unittest.TestCase]:
    """The suite for the classes of a family: the stock ones, or those of an edit."""
    classes = stock_classes(model_type)
    if edit != STOCK:
        classes = tuple(map(remodeled, classes))
    return type(
        f"{model_type}_{edit}",
        (_OfFamily, mixin(), unittest.TestCase),
        {
            "all_model_classes": classes,
            "test_can_init_all_missing_weights_before_2023": True,
            "test_resize_embeddings": stock_classes(model_type)[0].main_input_name == "input_ids",
            "setUp": lambda self: setattr(self, "model_tester", ModelTester(model_type, edit)),
        },
    )


def outcome(model_type: str, edit: str, name: str) -> tuple[str, str]:
    """``passed``, ``skipped`` or ``failed``, and what the test said."""
    torch.manual_seed(0)
    result = unittest.TestResult()
    case_of(model_type, edit)(name).run(result)
    told = [text for _, text in (*result.failures, *result.errors)]
    if told:
        return "failed", "\n".join(told)
    if result.skipped:
        return "skipped", "; ".join(text for _, text in result.skipped)
    return "passed", ""
