"""Plain vision Transformers: counts of DeiT, the peers' numbers, two heads, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForImageClassification,
)

from modwright.core.errors import InvalidInputError
from modwright.cost import forward_macs
from modwright.models import create_model, import_weights, to_checkpoint_format
from modwright.models.architectures.vision_transformer import (
    VisionTransformerConfig,
    VisionTransformerForImageClassification,
)
from modwright.models.state_dict_converter import StateDictConverter
from modwright.nn.heads import DistilledHead

# the distilled ones add a token, its position and a classifier: 2 d + 1000 (d + 1)
PARAMETERS = {
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
    "deit_base_patch16_384": 86_567_656 + (24**2 - 14**2) * 768,
    "deit_tiny_distilled_patch16_224": 5_717_416 + 2 * 192 + 193_000,
    "deit_small_distilled_patch16_224": 22_050_664 + 2 * 384 + 385_000,
    "deit_base_distilled_patch16_224": 86_567_656 + 2 * 768 + 769_000,
}
SMALL = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "depths": 2, "num_heads": 2}
# the same in transformers' words
THEIRS: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-6,
    "num_labels": 5,
}


def small(**fields: Any) -> VisionTransformerForImageClassification:
    torch.manual_seed(0)
    config = VisionTransformerConfig(**{"num_labels": 5, **SMALL, **fields})
    return VisionTransformerForImageClassification(config).eval()


def shaken(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_deit(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_products_of_deit_small() -> None:
    with torch.device("meta"):
        model = create_model("deit_small_patch16_224")
    assert forward_macs(model, 1, 3, 224, 224) / 1e9 == pytest.approx(4.599, rel=1e-3)
    without = forward_macs(model, 1, 3, 224, 224, attention=False) / 1e9
    assert without == pytest.approx(4.241, rel=1e-3)


def test_logits_are_those_of_transformers_vit_both_ways() -> None:
    torch.manual_seed(0)
    theirs = shaken(ViTForImageClassification(ViTConfig(**THEIRS)))
    ours = small()
    assert import_weights(ours, theirs.state_dict()).checkpoint_format == "transformers"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (ours(images).logits - theirs(images).logits).abs().max() <= 1e-5
        features = theirs.vit(images).last_hidden_state
        assert (ours.forward_features(images) - features).abs().max() <= 1e-5
    back = to_checkpoint_format(ours, "transformers")
    assert back.keys() == theirs.state_dict().keys()
    assert all(back[name].equal(tensor) for name, tensor in theirs.state_dict().items())


def test_two_heads_are_those_of_transformers_deit_both_ways() -> None:
    torch.manual_seed(0)
    theirs = shaken(DeiTForImageClassificationWithTeacher(DeiTConfig(**THEIRS)))
    ours = small(distilled=True)
    import_weights(ours, theirs.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(images)
        assert (ours(images).logits - expected.logits).abs().max() <= 1e-5
        first, second = ours.head.both(ours.forward_features(images))
    assert (first - expected.cls_logits).abs().max() <= 1e-5
    assert (second - expected.distillation_logits).abs().max() <= 1e-5
    back = to_checkpoint_format(ours, "transformers")
    assert back.keys() == theirs.state_dict().keys()
    assert all(back[name].equal(tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("distilled", [False, True])
def test_official_names_are_those_of_deit(distilled: bool) -> None:
    names = {
        f"blocks.{b}.{part}.{leaf}"
        for b in range(2)
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for leaf in ("weight", "bias")
    }
    heads = ("head", "head_dist") if distilled else ("head",)
    for part in ("patch_embed.proj", "norm", *heads):
        names |= {f"{part}.weight", f"{part}.bias"}
    names |= {"cls_token", "pos_embed"} | ({"dist_token"} if distilled else set())
    assert to_checkpoint_format(small(distilled=distilled), "official").keys() == names


def test_both_heads_are_replaced_and_left_out() -> None:
    model = small(distilled=True)
    images = torch.randn(2, 3, 32, 32)
    model.reset_classifier(7)
    assert [part.out_features for part in model.head.classifiers()] == [7, 7]
    assert model.head.fc_distilled.bias.eq(0).all()
    other = small(distilled=True)
    import_weights(other, to_checkpoint_format(model, "official"), new_classifier=True)
    assert other(images).logits.shape == (2, 5)
    model.reset_classifier(0)
    features = model.forward_features(images)
    assert torch.allclose(model(images).logits, features[:, :2].mean(1), atol=1e-6)


def test_heads_answer_with_their_mean() -> None:
    head = DistilledHead(8, 3, pool="token", prefix=2)
    x = torch.randn(2, 6, 8)
    mean = (head.fc(x[:, 0]) + head.fc_distilled(x[:, 1])) / 2
    assert torch.allclose(head(x), mean, atol=1e-6)
    head.reset(3, "avg")
    places = x[:, 2:].mean(1)
    assert torch.allclose(head(x), (head.fc(places) + head.fc_distilled(places)) / 2, atol=1e-6)


def test_positions_are_resized_on_the_way_and_in_a_file(tmp_path: Path) -> None:
    model, larger = small(), small(image_size=[48, 64])
    weights = to_checkpoint_format(model, "official")
    with pytest.raises(InvalidInputError, match=r"positions\.table is \(1, 49, 16\) here"):
        import_weights(larger, weights)
    torch.save({"model": weights}, tmp_path / "deit.pth")
    import_weights(larger, tmp_path / "deit.pth", resize=True)
    images = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        assert torch.allclose(larger(images).logits, model(images).logits, atol=1e-5)


def test_stacked_modules_come_together_and_apart() -> None:
    keys = StateDictConverter({"o": "proj", ("q", "k", "v"): "qkv"})
    theirs = {f"{name}.weight": torch.randn(2, 3) for name in "qkvo"}
    ours = keys.to_ours(theirs).tensors
    assert ours["qkv.weight"].equal(torch.cat([theirs[f"{n}.weight"] for n in "qkv"]))
    back = keys.to_theirs(ours)
    assert not back.unexpected
    assert all(back.tensors[name].equal(tensor) for name, tensor in theirs.items())
    del theirs["k.weight"]
    assert keys.to_ours(theirs).tensors.keys() == {"proj.weight"}


def test_a_file_that_lacks_one_map_is_refused() -> None:
    weights = to_checkpoint_format(small(), "transformers")
    del weights["vit.layers.1.attention.k_proj.bias"]
    with pytest.raises(
        InvalidInputError, match=r"missing from the file, blocks\.1\.mixer\.qkv\.bias"
    ):
        import_weights(small(), weights)


def test_decay_spares_tokens_and_positions() -> None:
    names = {"positions.table", "prefix.cls_token", "prefix.dist_token"}
    assert small(distilled=True).no_weight_decay() == names
    assert isinstance(small().get_classifier(), nn.Linear)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_heads": 3}, "num_heads 3 does not divide a width of 16"),
        ({"image_size": 36}, "must be multiples of 8 pixels, not 36 x 36"),
    ],
)
def test_impossible_structures_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        small(**fields)
    with pytest.raises(InvalidInputError, match="must be multiples of 8 pixels, not 32 x 36"):
        small()(torch.zeros(1, 3, 32, 36))
