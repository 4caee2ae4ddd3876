"""Fields of configs have transformers' names; those of a paper or of timm stand for them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.edits import apply, remove
from modwright.models import create_model
from modwright.models.registry import model_class, variant_config
from modwright.recipes.training_schema import load_training

from .tiny import TINY, tiny

OTHER_NAMES: dict[str, dict[str, str]] = {
    "craft": {"dim": "hidden_size"},
    "duoformer": {"dim": "hidden_size", "depth": "depths", "heads": "num_heads"},
    "fmvit": {"widths": "hidden_sizes"},
    "metaformer": {"widths": "hidden_sizes"},
    "residual_network": {"widths": "hidden_sizes"},
    "smt": {"widths": "hidden_sizes", "attention_heads": "num_heads"},
    "t2t_vit": {"embed_dim": "hidden_size", "depth": "depths", "blocks": "block_type"},
    "tnt": {"outer_dim": "hidden_size", "depth": "depths", "outer_heads": "num_heads"},
    "vision_transformer": {"embed_dim": "hidden_size", "depth": "depths"},
}


def class_of(model_type: str) -> Any:
    return type(AutoConfig.for_model(model_type, **TINY[model_type]))


def renamed(model_type: str) -> dict[str, Any]:
    """The tiny config's fields under their other names."""
    theirs = {own: name for name, own in OTHER_NAMES[model_type].items()}
    return {theirs.get(name, name): value for name, value in TINY[model_type].items()}


@pytest.mark.parametrize("model_type", OTHER_NAMES)
def test_a_papers_words_stand_for_the_fields(model_type: str, tmp_path: Path) -> None:
    kind, given = class_of(model_type), renamed(model_type)
    assert given != TINY[model_type]
    usual, other = kind(**TINY[model_type]), kind(**given)
    assert other.to_dict() == usual.to_dict()
    assert not OTHER_NAMES[model_type].keys() & other.to_dict().keys()
    assert not OTHER_NAMES[model_type].keys() & {*kind.field_names()}
    for name, own in OTHER_NAMES[model_type].items():
        assert getattr(other, name) == getattr(usual, own)
        setattr(other, name, getattr(kind(), own))
        assert getattr(other, own) == getattr(kind(), own)
    (tmp_path / "config.json").write_text(json.dumps({**given, "model_type": model_type}))
    for road in (
        AutoConfig.for_model(model_type, **given),
        AutoConfig.from_pretrained(tmp_path),
        kind.from_dict(given),
        copy.deepcopy(kind(**given)),
    ):
        assert road.to_diff_dict() == usual.to_diff_dict()


def test_checkpoints_are_written_with_the_fields_own_names(tmp_path: Path) -> None:
    model = model_class(class_of("tnt")())(class_of("tnt")(**renamed("tnt")))
    edited = apply(model, remove(Anatomy.of(model).blocks[0].mlp), check=False).model
    for made in (model, edited):
        made.save_pretrained(tmp_path)
        stored = json.loads((tmp_path / "config.json").read_text())
        assert stored["hidden_size"] == TINY["tnt"]["hidden_size"]
        assert not OTHER_NAMES["tnt"].keys() & stored.keys()
        wider = AutoConfig.from_pretrained(tmp_path, outer_dim=32)
        assert wider.hidden_size == 32


@pytest.mark.parametrize(("model_type", "names"), OTHER_NAMES.items())
def test_two_names_with_two_values_are_refused(model_type: str, names: dict[str, str]) -> None:
    kind = class_of(model_type)
    for name, own in names.items():
        value = getattr(kind(), own)
        assert getattr(kind(**{name: value, own: value}), own) == value
        wrong = "foo" if isinstance(value, str) else 3
        for roads in (kind, kind.from_dict):
            with pytest.raises(InvalidInputError, match=f"{own} and {name} are one field") as no:
                given = {own: value, name: wrong}
                roads(given) if roads == kind.from_dict else roads(**given)
            assert "\n" not in str(no.value)


def test_values_are_checked_under_either_name() -> None:
    for name in ("depth", "depths"):
        with pytest.raises(InvalidInputError, match=r"depths is int, not 'twelve'"):
            variant_config("deit_tiny_patch16_224", **{name: "twelve"})
    with pytest.raises(InvalidInputError, match="does not divide a width of 100"):
        class_of("vision_transformer")(embed_dim=100)


def test_named_models_take_either_name() -> None:
    with torch.device("meta"):
        small = create_model("tnt_s_patch16_224", outer_dim=36, depth=2)
    assert (small.config.hidden_size, small.config.depths, len(small.blocks)) == (36, 2, 2)
    with pytest.raises(InvalidInputError, match="are one field, given as 36 and 48"):
        create_model("tnt_s_patch16_224", hidden_size=36, outer_dim=48)


def test_recipes_take_either_name(tmp_path: Path) -> None:
    written = tmp_path / "recipe.yaml"
    lines = "data: {images: digits, train: 32}\nsettings: {epochs: 1}\n"
    for name in ("widths", "hidden_sizes"):
        written.write_text(
            f"model: {{name: poolformer_s12, depths: [1], {name}: [8]}}\n"
            "objective: {loss: cross_entropy}\n" + lines
        )
        assert load_training(written)
    written.write_text(written.read_text().replace("hidden_sizes", "width"))
    with pytest.raises(InvalidInputError, match="hidden_sizes"):
        load_training(written)


def test_every_other_name_is_listed_here() -> None:
    maps = {model_type: class_of(model_type).attribute_map for model_type in TINY}
    assert {model_type: names for model_type, names in maps.items() if names} == OTHER_NAMES
    assert tiny("tnt").config.outer_dim == TINY["tnt"]["hidden_size"]
