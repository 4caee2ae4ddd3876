"""A fresh classifier: all else keeps its values, and what is saved opens as a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForMaskedImageModeling,
)

import modwright
from helpers import batch_of, edit
from models.tiny import tiny as tiny_image_model
from modwright.anatomy import Anatomy
from modwright.checkpoint import save, with_classes
from modwright.core.errors import InvalidInputError
from modwright.edits import remove

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def classifier() -> Any:
    return modwright.open("preset:tiny-vit", head="image-classification").model


def with_teacher() -> Any:
    """Two classifiers, one for each token."""
    return DeiTForImageClassificationWithTeacher(DeiTConfig(**SIZES)).eval()


@pytest.mark.parametrize(
    ("make", "heads"),
    [
        (classifier, {"classifier"}),
        (with_teacher, {"cls_classifier", "distillation_classifier"}),
    ],
)
def test_all_but_the_classifier_keeps_its_values(
    make: Any, heads: set[str], tmp_path: Path
) -> None:
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = with_classes(model, 5, seed=1)
    fresh = {n for n, t in made.state_dict().items() if not torch.equal(t, before[n])}
    assert {name.partition(".")[0] for name in fresh} == heads and not made.training
    assert made.config.num_labels == 5 and list(made.config.id2label.values())[4] == "LABEL_4"
    second = with_classes(model, 5, seed=1).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in made.state_dict().items())
    assert model.config.num_labels == 2
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    save(made, tmp_path / "out")
    again = type(made).from_pretrained(tmp_path / "out")
    batch = batch_of(made)
    assert torch.equal(again(**batch).logits, made(**batch).logits)
    assert made(**batch).logits.shape[1] == 5


def test_as_many_classes_are_no_others() -> None:
    model = classifier()
    assert with_classes(model, 2) is model


def test_a_backbone_gets_a_classifier_and_leaves_its_pooler() -> None:
    backbone = modwright.open("preset:tiny-vit").model
    made = with_classes(backbone, 3)
    assert type(made).__name__ == "ViTForImageClassification"
    known = backbone.state_dict()
    for name, tensor in made.vit.state_dict().items():
        assert torch.equal(tensor, known[name])
    assert any("pooler" in name for name in known) and made.vit.pooler is None


def test_an_edited_model_keeps_its_edits(tmp_path: Path) -> None:
    edited = edit(model := classifier(), remove(Anatomy.of(model).blocks[0].attention)).model
    made = with_classes(edited, 4)
    assert Anatomy.of(made).blocks[0].attention is None
    save(made, tmp_path / "out")
    batch = batch_of(made)
    again = modwright.open(tmp_path / "out").model
    assert torch.equal(again(**batch).logits, made(**batch).logits)


def test_a_model_of_this_library_resets_its_own() -> None:
    model = tiny_image_model("metaformer")
    assert with_classes(model, 6).get_classifier().weight.shape[0] == 6


@pytest.mark.parametrize(
    ("name", "count", "says"),
    [
        ("tiny-llama", 3, "LlamaForCausalLM reads no images"),
        ("tiny-vit", 0, "num_classes is a whole number above 0, not 0"),
        ("tiny-vit", "3", "num_classes is a whole number above 0, not '3'"),
    ],
)
def test_what_cannot_be_given_classes_is_refused(name: str, count: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        with_classes(modwright.open(f"preset:{name}").model, count)


def test_a_model_with_another_head_is_refused() -> None:
    model = ViTForMaskedImageModeling(ViTConfig(**SIZES, encoder_stride=4))
    with pytest.raises(InvalidInputError, match="cannot be given other classes: vit"):
        with_classes(model, 3)
