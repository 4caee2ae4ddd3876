"""Swin Transformers: windows against their naive form, counts and logits of transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, SwinConfig, SwinForImageClassification

from models.counting import check_counts
from modwright.core.errors import InvalidInputError
from modwright.models import create_model, import_weights, list_models, to_checkpoint_format
from modwright.models.architectures.swin_transformer import (
    SwinTransformerConfig,
    SwinTransformerForImageClassification,
)
from modwright.nn.stems.conv_stem import PatchMerging
from modwright.nn.token_mixers.window_attention import WindowAttention, naive_window_attention
from modwright.nn.windows import RelativePositionBias, offsets_in

# name -> parameters, billions of multiply-accumulates, window, side of the image
COUNTS = {
    "swin_tiny_patch4_window7_224": (28_288_354, 4.4906, 7, 224),
    "swin_small_patch4_window7_224": (49_606_258, 8.7409, 7, 224),
    "swin_base_patch4_window7_224": (87_768_224, 15.4309, 7, 224),
    "swin_large_patch4_window7_224": (196_532_476, 34.4758, 7, 224),
    "swin_base_patch4_window12_384": (87_903_584, 47.0831, 12, 384),
    "swin_large_patch4_window12_384": (196_735_516, 103.9191, 12, 384),
}
SMALL: dict[str, Any] = {
    "image_size": 64,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}


def small(**fields: Any) -> SwinTransformerForImageClassification:
    torch.manual_seed(0)
    config = SwinTransformerConfig(**{"num_labels": 5, **SMALL, **fields})
    return SwinTransformerForImageClassification(config).eval()


def shaken(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def theirs(**fields: Any) -> Any:
    torch.manual_seed(0)
    return shaken(SwinForImageClassification(SwinConfig(num_labels=5, **{**SMALL, **fields})))


# Against transformers


def test_all_released_sizes_are_there() -> None:
    assert list_models("swin_*") == sorted(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    parameters, macs, window, side = COUNTS[name]
    check_counts(name, parameters, macs)
    with torch.device("meta"):
        config = create_model(name).config
        fields = {field: getattr(config, field) for field in ("embed_dim", "depths", "num_heads")}
        fields |= {"window_size": window, "image_size": side, "num_labels": 1000}
        peer = SwinForImageClassification(SwinConfig(**fields))
    assert sum(p.numel() for p in peer.parameters()) == parameters


# of 16 x 16 and 8 x 8 places; of whole windows in one direction; and of odd maps that are filled up
@pytest.mark.parametrize("size", [(64, 64), (64, 96), (60, 100)])
def test_logits_are_those_of_transformers_both_ways(size: tuple[int, int]) -> None:
    peer, ours = theirs(), small()
    assert import_weights(ours, peer.state_dict()).checkpoint_format == "transformers"
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = peer(images, output_hidden_states=True)
        found = ours(images, output_hidden_states=True)
        assert (found.logits - expected.logits).abs().max() <= 1e-5
        features = peer.swin(images).last_hidden_state
        own = ours.forward_features(images).flatten(2).transpose(1, 2)
        assert (own - features).abs().max() <= 1e-5
    back = to_checkpoint_format(ours, "transformers")
    assert back.keys() == peer.state_dict().keys()
    assert all(back[name].equal(tensor) for name, tensor in peer.state_dict().items())


def test_gradients_are_those_of_transformers() -> None:
    peer, ours = theirs(), small()
    import_weights(ours, peer.state_dict())
    images, labels = torch.randn(2, 3, 64, 96), torch.tensor([1, 3])
    for model in (peer, ours):
        F.cross_entropy(model(images).logits, labels).backward()
    grads = {name: p.grad for name, p in ours.named_parameters()}
    back = SwinTransformerForImageClassification.state_dict_converters(ours.config)["transformers"]
    converted = back.to_theirs(grads).tensors
    for name, parameter in peer.named_parameters():
        assert torch.allclose(converted[name], parameter.grad, atol=1e-5), name


def test_a_file_that_transformers_saved_is_read_by_its_path(tmp_path: Path) -> None:
    peer, ours = theirs(), small()
    peer.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    assert import_weights(ours, file).checkpoint_format == "transformers_files"
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert (ours(images).logits - peer(images).logits).abs().max() <= 1e-5
    stored, back = load_file(file), to_checkpoint_format(ours, "transformers_files")
    assert back.keys() == stored.keys()
    assert all(back[name].equal(tensor) for name, tensor in stored.items())


def test_names_of_the_authors_and_of_timm() -> None:
    official, timm = (to_checkpoint_format(small(), layout) for layout in ("official", "timm"))
    block = "layers.1.blocks.1"
    for name in ("norm1.bias", "attn.qkv.weight", "attn.proj.bias", "norm2.bias", "mlp.fc2.bias"):
        assert f"{block}.{name}" in official
    assert official[f"{block}.attn.relative_position_bias_table"].shape == (49, 4)
    assert official["layers.0.downsample.reduction.weight"].shape == (32, 64)
    assert "head.weight" in official and "patch_embed.norm.bias" in official
    assert "layers.1.downsample.norm.bias" in timm and "head.fc.weight" in timm
    # files of the authors hold what is computed from sizes, too
    official[f"{block}.attn.relative_position_index"] = torch.zeros(16, 16)
    official[f"{block}.attn_mask"] = torch.zeros(4, 16, 16)
    assert import_weights(small(), official).checkpoint_format == "official"


def test_trained_on_another_window_its_table_is_resized() -> None:
    model, larger = shaken(small()), small(window_size=8, image_size=128)
    weights = to_checkpoint_format(model, "official")
    with pytest.raises(InvalidInputError, match=r"position_table is .*resize=True"):
        import_weights(larger, weights)
    import_weights(larger, weights, resize=True)
    name = "stages.0.blocks.0.mixer.bias.position_table"
    table = larger.state_dict()[name]
    assert table.shape == (225, 2)
    spatial_shape = model.state_dict()[name].T.reshape(1, 2, 7, 7)
    expected = F.interpolate(spatial_shape, (15, 15), mode="bicubic", align_corners=False)
    assert torch.allclose(table.T.reshape(1, 2, 15, 15), expected, atol=1e-6)


# Parts


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(
    ("window", "spatial_shape"), [((2, 4), (4, 8)), ((4, 4), (8, 12)), ((3, 3), (3, 6))]
)
def test_windows_are_their_naive_form(
    shift: bool, window: tuple[int, int], spatial_shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    part = WindowAttention(16, 4, window, shift=shift).double()
    torch.nn.init.normal_(part.bias.position_table)
    x = torch.randn(2, spatial_shape[0] * spatial_shape[1], 16, dtype=torch.float64)
    fast, slow = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = part(fast, spatial_shape), naive_window_attention(part, slow, spatial_shape)
    assert (found - expected).abs().max() <= 1e-10
    found.square().sum().backward()
    own = {n: p.grad.clone() for n, p in part.named_parameters()}
    part.zero_grad()
    expected.square().sum().backward()
    assert torch.allclose(fast.grad, slow.grad, atol=1e-9)
    for name, parameter in part.named_parameters():
        assert torch.allclose(own[name], parameter.grad, atol=1e-9), name


def test_windows_that_moved_carry_what_others_could_not_see() -> None:
    def reached(shift: bool) -> list[int]:
        torch.manual_seed(0)
        part = WindowAttention(8, 2, (4, 4), shift=shift)
        x = torch.zeros(1, 64, 8, requires_grad=True)
        part(x, (8, 8))[0, 0].sum().backward()
        return x.grad[0].abs().sum(1).nonzero().flatten().tolist()

    def square(side: int) -> list[int]:
        return [8 * i + j for i in range(side) for j in range(side)]

    assert reached(False) == square(4)
    assert reached(True) == square(2)  # a corner that wraps around sees itself alone


def test_a_small_map_is_not_moved() -> None:
    part = WindowAttention(8, 2, (4, 4), shift=True)
    assert part.steps((8, 12)) == (2, 2)
    assert part.steps((4, 12)) == (0, 0)
    assert small(window_size=7).stages[1].blocks[1].mixer.window == (7, 7)
    assert small(window_size=12).stages[1].blocks[1].mixer.window == (8, 8)
    with pytest.raises(ValueError, match="windows need the grid"):
        part(torch.zeros(1, 16, 8))


def test_equal_offsets_share_a_number() -> None:
    bias = RelativePositionBias(2, (2, 3))
    torch.nn.init.normal_(bias.position_table)
    found = bias()
    places = [(i, j) for i in range(2) for j in range(3)]
    for query, (i, j) in enumerate(places):
        for key, (k, m) in enumerate(places):
            row = bias.position_table[(i - k + 1) * 5 + j - m + 2]
            assert found[:, query, key].equal(row)
    assert offsets_in((2, 3)).unique().numel() == 15
    with pytest.raises(ValueError, match="15 offsets are no square"):
        bias.fit(bias.position_table)
    assert bias.fit(bias.position_table, (2, 3)).equal(bias.position_table)


def test_four_neighbours_are_merged_down_their_columns() -> None:
    part = PatchMerging(3, 5)
    x = torch.randn(2, 3, 4, 5)
    found = part(x)
    assert found.shape == (2, 5, 2, 3)
    padded = F.pad(x, (0, 1))
    for i in range(2):
        for j in range(3):
            corners = [(2 * i + a, 2 * j + b) for b in (0, 1) for a in (0, 1)]
            whole = torch.cat([padded[:, :, r, c] for r, c in corners], dim=1)
            expected = part.reduction(part.norm(whole))
            assert torch.allclose(found[:, :, i, j], expected, atol=1e-6)


# The model


def test_it_reopens_and_gives_maps_of_every_stage(tmp_path: Path) -> None:
    model = shaken(small())
    images = torch.randn(1, 3, 64, 96)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(again) is SwinTransformerForImageClassification
    with torch.no_grad():
        assert torch.allclose(again(images).logits, model(images).logits, atol=1e-6)
        shapes = [tuple(found.shape[1:]) for found in model.forward_intermediates(images)]
    assert shapes == [(16, 16, 24), (32, 8, 12)]


def test_decay_spares_tables_of_offsets() -> None:
    names = small().no_weight_decay()
    assert names == {
        f"stages.{s}.blocks.{b}.mixer.bias.position_table" for s in (0, 1) for b in (0, 1)
    }
    start = RelativePositionBias(24, (7, 7)).position_table.detach().std()
    assert float(start) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_heads": [3, 4]}, "num_heads 3 does not divide a width of 16"),
        ({"num_heads": [2, 4, 8]}, "num_heads has 3 entries for 2 stages"),
        ({"window_size": 0}, "window_size must be at least 1"),
        ({"image_size": 62}, "must be multiples of 4 pixels, not 62 x 62"),
    ],
)
def test_impossible_structures_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        small(**fields)
    with pytest.raises(InvalidInputError, match="must be multiples of 4 pixels, not 64 x 66"):
        small()(torch.zeros(1, 3, 64, 66))
