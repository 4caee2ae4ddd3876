"""A checkpoint directory of transformers becomes a model that computes as its config.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    PoolFormerConfig,
    PoolFormerForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from modwright.core.errors import CheckpointError, InvalidInputError, UnsupportedArchitecture
from modwright.models import create_model, import_weights
from modwright.models.detection import import_named
from modwright.models.importing import read_weights
from modwright.models.source_configs import config_beside, read_source_config

NAMES = {"id2label": {0: "eel", 1: "owl", 2: "yak"}, "label2id": {"eel": 0, "owl": 1, "yak": 2}}
TOKENS: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 25,  # 16 * (25 / 16) must not become 24
    "image_size": 32,
    "patch_size": 8,
    **NAMES,
}
SWIN: dict[str, Any] = {
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [1, 2],
    "image_size": 32,
    "window_size": 4,
    **NAMES,
}
RESNET: dict[str, Any] = {
    "depths": [1, 2],
    "hidden_sizes": [8, 16],
    "embedding_size": 8,
    "layer_type": "basic",
    **NAMES,
}
POOL: dict[str, Any] = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 8, 16, 16], **NAMES}
# name here, class and config there, fields there
KINDS: dict[str, tuple[str, Any, Any, dict[str, Any]]] = {
    "vit": ("deit_tiny_patch16_224", ViTForImageClassification, ViTConfig, TOKENS),
    "deit": (
        "deit_tiny_distilled_patch16_224",
        DeiTForImageClassificationWithTeacher,
        DeiTConfig,
        TOKENS,
    ),
    "swin": ("swin_tiny_patch4_window7_224", SwinForImageClassification, SwinConfig, SWIN),
    "resnet": ("resnet18", ResNetForImageClassification, ResNetConfig, RESNET),
    "poolformer": ("poolformer_s12", PoolFormerForImageClassification, PoolFormerConfig, POOL),
}


def saved(folder: Path, kind: str, **fields: Any) -> Any:
    """A model of transformers with random weights, saved in a folder."""
    _, model, config, given = KINDS[kind]
    torch.manual_seed(0)
    made = model(config(**{**given, **fields})).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    made.save_pretrained(folder)
    return made


def imported(folder: Path, name: str, **fields: Any) -> Any:
    return import_named(name, read_weights(folder), source=folder, **fields).model


@torch.no_grad()
def difference(one: Any, other: Any) -> float:
    pixels = torch.randn(2, one.config.num_channels, 32, 32)
    expected = one(pixels).logits
    return float((other(pixels).logits - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["import_named", "create_model"])
def test_fault_B8_directories_of_transformers_are_imported(
    tmp_path: Path, kind: str, by: str
) -> None:
    theirs = saved(tmp_path, kind)
    name = KINDS[kind][0]
    if by == "import_named":
        ours = imported(tmp_path, name)
    else:
        ours = create_model(name, num_classes=3, checkpoint_path=tmp_path).eval()
    assert difference(theirs, ours) < 1e-5
    assert ours.config.id2label == NAMES["id2label"] and ours.config.label2id == NAMES["label2id"]


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("vit", {"layer_norm_eps": 1e-2}),
    ("vit", {"qkv_bias": False, "num_channels": 1}),
    ("vit", {"hidden_act": "relu"}),
    ("deit", {"layer_norm_eps": 1e-3}),
    ("deit", {"hidden_act": "silu"}),
    ("swin", {"hidden_act": "relu"}),
    ("swin", {"layer_norm_eps": 1e-2}),
    ("swin", {"qkv_bias": False, "mlp_ratio": 2.0}),
    ("swin", {"use_absolute_embeddings": True}),
    ("resnet", {"hidden_act": "silu"}),
    ("resnet", {"downsample_in_first_stage": True}),
    ("resnet", {"layer_type": "bottleneck", "num_channels": 1}),
    ("resnet", {"layer_type": "bottleneck", "downsample_in_bottleneck": True}),
    ("poolformer", {"hidden_act": "relu", "pool_size": 5}),
    ("poolformer", {"mlp_ratio": 2.0, "strides": [8, 2, 2, 2]}),
    ("poolformer", {"strides": [4, 4, 2, 2]}),
    ("poolformer", {"use_layer_scale": False}),
]


@pytest.mark.parametrize(("kind", "change"), CHANGES, ids=lambda v: "-".join(v))
def test_fault_A7_every_field_is_computed_by_or_refused_by_name(
    tmp_path: Path, kind: str, change: dict[str, Any]
) -> None:
    theirs = saved(tmp_path, kind, **change)
    try:
        ours = imported(tmp_path, KINDS[kind][0])
    except InvalidInputError as refusal:
        said = str(refusal)
        assert "config.json" in said and any(key in said for key in change), said
        assert set(change) & {"hidden_act", "layer_norm_eps", "strides"} or True in change.values()
        return
    assert difference(theirs, ours) < 1e-5


def test_fault_A7_what_a_dense_config_says_of_training_is_harmless(tmp_path: Path) -> None:
    theirs = saved(tmp_path, "swin", hidden_dropout_prob=0.1, drop_path_rate=0.4)
    ours = imported(tmp_path, "swin-transformer")  # by its paper: no variant has these sizes
    assert ours.config.drop_path_rate == 0.4 and difference(theirs, ours) < 1e-5


def test_fault_A7_fields_that_nothing_is_known_of_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, "vit")
    file = tmp_path / "config.json"
    whole = json.loads(file.read_text())
    for change, said in (
        ({"talking_heads": True}, "talking_heads has no counterpart here: True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config has no counterpart"),
        ({"architectures": ["ViTModel"]}, "architectures is ViTModel; ViTForImageClassification"),
    ):
        file.write_text(json.dumps({**whole, **change}))
        with pytest.raises(InvalidInputError, match=rf"config\.json: {said}"):
            imported(tmp_path, "deit_tiny_patch16_224")
    for change in ({"model_type": "beit"}, {"model_type": None}):
        file.write_text(json.dumps({**whole, **change}))
        with pytest.raises(UnsupportedArchitecture, match="valid values: vit, deit"):
            imported(tmp_path, "deit_tiny_patch16_224")
    file.write_text(json.dumps({**whole, "hidden_size": "big"}))
    with pytest.raises(CheckpointError, match=r"config\.json is no config of vit"):
        imported(tmp_path, "deit_tiny_patch16_224")
    for text in ("[1]", "{", ""):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json is no JSON object"):
            imported(tmp_path, "deit_tiny_patch16_224")
    file.write_text(json.dumps({**whole, "id2label": {"0": "eel", "1": "owl"}}))
    with pytest.raises(InvalidInputError, match="names 2 classes, the classifier has 3"):
        imported(tmp_path, "deit_tiny_patch16_224")


def test_fault_A7_one_classifier_on_two_tokens_is_refused(tmp_path: Path) -> None:
    DeiTForImageClassification(DeiTConfig(**TOKENS)).save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match="DeiTForImageClassificationWithTeacher is read"):
        imported(tmp_path, "deit_tiny_distilled_patch16_224")


def test_fault_A7_weights_into_a_model_that_computes_by_other_fields(tmp_path: Path) -> None:
    theirs = saved(tmp_path, "vit", layer_norm_eps=1e-2)
    own = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "depths": 2, "num_heads": 2}
    own |= {"mlp_ratio": 25 / 16, "num_classes": 3}
    model = create_model("deit_tiny_patch16_224", **own).eval()
    for place in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(
            InvalidInputError, match=r"says layer_norm_eps 0\.01, the model has 1e-06"
        ):
            import_weights(model, place)
    model = create_model("deit_tiny_patch16_224", **own, layer_norm_eps=1e-2).eval()
    import_weights(model, tmp_path)
    assert difference(theirs, model) < 1e-5 and model.config.id2label == NAMES["id2label"]


def test_a_fresh_classifier_does_not_get_the_old_names(tmp_path: Path) -> None:
    saved(tmp_path, "resnet")
    assert imported(tmp_path, "resnet18", num_classes=5).config.id2label[4] == "LABEL_4"


def test_configs_of_timm_are_read(tmp_path: Path) -> None:
    stored = {"architecture": "resnet18", "num_classes": 2, "pretrained_cfg": {"mean": [0.5]}}
    stored |= {"label_names": ["eel", "owl"], "global_pool": "avg"}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    found = read_source_config(tmp_path, {})
    assert found is not None and found.id2label == {0: "eel", 1: "owl"}
    assert found.fields == {"global_pool": "avg"}
    (tmp_path / "config.json").write_text(json.dumps({**stored, "model_args": {"act": "silu"}}))
    with pytest.raises(InvalidInputError, match=r"model_args\.act has no counterpart here"):
        read_source_config(tmp_path, {})
    assert config_beside(tmp_path / "other.safetensors") is None


def test_fault_A7_what_lies_beside_the_weights_travels(tmp_path: Path) -> None:
    from modwright.cli.entry import run_command

    theirs = saved(tmp_path / "source", "vit")
    beside = {"preprocessor_config.json": '{"size": 32}\n', "notes/more.txt": "kept"}
    for name, text in beside.items():
        (tmp_path / "source" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "source" / name).write_text(text)
    out = tmp_path / "out"
    arguments = ["import", "deit_tiny_patch16_224", str(tmp_path / "source"), "-o", str(out)]
    assert run_command(arguments) == 0
    for name, text in beside.items():
        assert (out / name).read_text() == text
    again = AutoModelForImageClassification.from_pretrained(out).eval()
    assert difference(theirs, again) < 1e-5 and again.config.id2label == NAMES["id2label"]
