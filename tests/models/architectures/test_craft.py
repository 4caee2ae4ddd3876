"""CRAFT (arXiv 2308.05022): counts, windows, the dead position bias, any size, tiles, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForImageToImage

from modwright.core.errors import InvalidInputError
from modwright.cost import forward_macs
from modwright.models import create_model, import_weights, list_models, to_checkpoint_format
from modwright.models.architectures.craft import CraftConfig, CraftForImageSuperResolution
from modwright.models.upscaling import PADS, tile_report, upscale_image
from modwright.nn.channel_mixers.mlp import GatedDepthwise
from modwright.nn.cross_refinement import HighFrequencyBlock, HybridFusion
from modwright.nn.stems.conv_stem import PixelShuffleUp
from modwright.nn.token_mixers.cross_channel_attention import CrossChannelAttention
from modwright.nn.token_mixers.window_attention import (
    RectangleWindowAttention,
    naive_windows,
)
from modwright.nn.windows import DynamicPositionBias, join_windows, split_windows

# name -> parameters, multiply-accumulates for 64 x 64 pixels that come in
COUNTS = {
    "craft_x2": (737_756, 3_398_221_280),
    "craft_x3": (744_251, 3_424_763_360),
    "craft_x4": (753_344, 3_461_922_272),
}
TINY: dict[str, Any] = {
    "upscale": 2,
    "hidden_size": 32,
    "depths": [1],
    "num_heads": [4],
    "window": [2, 4],
}


def tiny(**fields: Any) -> Any:
    torch.manual_seed(0)
    model = CraftForImageSuperResolution(CraftConfig(**{**TINY, **fields}))
    with torch.no_grad():  # linear layers as strong as the convolutions
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(5)
    return model.eval()


def run(model: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(images).reconstruction
    return found


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    parameters, macs = COUNTS[name]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert forward_macs(model, 1, 3, 64, 64) == macs
    assert f"{parameters // 1000}K" in ("737K", "744K", "753K")


def test_its_names_are_listed_and_nothing_of_a_classifier_is_taken() -> None:
    assert list_models("craft*") == list(COUNTS)
    with pytest.raises(InvalidInputError, match="unknown field of CraftConfig 'drop_rate'"):
        create_model("craft_x2", drop_rate=0.1)
    with pytest.raises(InvalidInputError, match="unknown field of CraftConfig 'global_pool'"):
        create_model("craft_x2", global_pool="avg")
    with pytest.raises(InvalidInputError, match="craft_x2 is no classifier"):
        create_model("craft_x2", features_only=True)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_windows_are_their_naive_form(shift: bool, mask: bool) -> None:
    torch.manual_seed(0)
    part = RectangleWindowAttention(
        32, 4, (2, 4), shift=shift, mask_shift=mask, position_dim=8
    ).double()
    spatial_shape = (4, 8)
    x = torch.randn(2, 32, 32, dtype=torch.float64)
    fast, slow = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = part(fast, spatial_shape), naive_windows(part, slow, spatial_shape)
    assert (found - expected).abs().max() <= 1e-10
    found.square().sum().backward()
    own = {n: p.grad.clone() for n, p in part.named_parameters()}
    part.zero_grad()
    expected.square().sum().backward()
    assert torch.allclose(fast.grad, slow.grad, atol=1e-9)
    for name, parameter in part.named_parameters():
        assert torch.allclose(own[name], parameter.grad, atol=1e-9), name


def test_windows_split_and_join() -> None:
    x = torch.randn(2, 3, 4, 8, 5)
    for window in ((2, 4), (4, 2), (1, 8)):
        split = split_windows(x, window)
        assert join_windows(split, window, (4, 8)).equal(x)
    assert split_windows(x, (2, 4))[0, 1, 2].equal(x[0, 2, :2, 4:].reshape(8, 5))


def test_without_a_mask_opposite_borders_see_each_other() -> None:
    def seen(mask: bool) -> bool:
        torch.manual_seed(0)
        part = RectangleWindowAttention(32, 4, (2, 4), shift=True, mask_shift=mask)
        x = torch.randn(1, 64, 32)
        other = x.clone()
        other[:, -1] += 1  # the last corner
        off = (part(x, (8, 8)) - part(other, (8, 8))).abs().amax(-1)
        return bool(off[0, 0] > 1e-6)

    assert seen(False) and not seen(True)


def test_the_published_position_bias_is_the_same_everywhere() -> None:
    dead = create_model("craft_x2", depths=[1], num_heads=[6])
    with torch.no_grad():
        for parameter in dead.parameters():
            parameter.normal_(std=0.3)
        for bias in dead.groups[0].blocks[0].low[0].mixer.biases:
            table = bias()
            assert table.shape == (3, 64, 64)
            assert (table.amax((1, 2)) - table.amin((1, 2))).max() == 0


def test_a_wider_network_of_positions_tells_offsets_apart() -> None:
    torch.manual_seed(0)
    part = RectangleWindowAttention(32, 4, (2, 4), position_dim=8)
    x = torch.randn(1, 32, 32)
    before = part(x, (4, 8))
    table = part.biases[0]()
    assert (table.amax((1, 2)) - table.amin((1, 2))).min() > 0
    with torch.no_grad():
        for bias in part.biases:
            bias.steps[2][2].weight.zero_()
    assert (part(x, (4, 8)) - before).abs().max() > 1e-5


def test_bias_tables_hold_the_offset_of_query_and_key() -> None:
    part = DynamicPositionBias(8, 2, (2, 3))
    table = part()
    for query, key, offset in ((0, 5, (-1, -2)), (5, 0, (1, 2)), (1, 3, (-1, 1)), (4, 4, (0, 0))):
        expected = part.of(torch.tensor(offset, dtype=torch.float32))
        assert torch.allclose(table[:, query, key], expected, atol=1e-6)


@pytest.mark.parametrize("shift", [False, True])
def test_gradients_of_window_attention(shift: bool) -> None:
    torch.manual_seed(0)
    part = RectangleWindowAttention(32, 4, (2, 4), shift=shift, position_dim=2).double()
    x = torch.randn(1, 64, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: part(y, (8, 8)), (x,), fast_mode=True)


def test_gradients_of_fusion() -> None:
    torch.manual_seed(0)
    part = HybridFusion(32, CrossChannelAttention(32, 4), GatedDepthwise(32, 85)).double()
    low, high = (
        torch.randn(1, 32, 8, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    assert torch.autograd.gradcheck(part, (low, high), fast_mode=True)


def test_channel_attention_is_a_mean_of_channels() -> None:
    part = CrossChannelAttention(8, 2)
    maps = torch.randn(2, 2, 4, 30)
    weights = part.weights(*maps[:, None])
    assert weights.shape == (1, 2, 4, 4)
    q, k = maps / maps.norm(dim=-1, keepdim=True)
    by_hand = torch.einsum("hin,hjn->hij", q, k).exp()
    assert torch.allclose(weights[0], by_hand / by_hand.sum(-1, keepdim=True), atol=1e-6)
    empty = part.weights(torch.zeros(1, 2, 4, 30), maps[1:])
    assert torch.allclose(empty, torch.full((1, 2, 4, 4), 0.25))
    half = part.weights(maps[:1].half(), maps[1:].half())
    assert half.dtype == torch.float32


def test_detail_is_made_of_both_halves() -> None:
    part = HighFrequencyBlock(8)
    x = torch.randn(1, 8, 5, 6)
    first = F.gelu(F.conv2d(x[:, :4], part.conv.weight, part.conv.bias, padding=1))
    largest = F.pad(x[:, 4:], (1, 1, 1, 1), value=-math.inf).unfold(2, 3, 1).unfold(3, 3, 1)
    second = F.gelu(part.fc(largest.amax((4, 5))))
    expected = x + part.proj(torch.cat((first, second), 1))
    assert torch.allclose(part(x), expected, atol=1e-6)


def test_pixels_are_shuffled_and_back() -> None:
    part = PixelShuffleUp(8, 3, 3)
    x = torch.randn(1, 8, 4, 5)
    assert F.pixel_unshuffle(part(x), 3).equal(part.conv(x))


SIZES = [(1, 1), (1, 40), (5, 3), (15, 16), (16, 16), (17, 31), (33, 2), (50, 37)]


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("size", SIZES)
def test_any_size_is_made_larger(size: tuple[int, int], pad: str) -> None:
    model = tiny(window=[4, 16])
    large = upscale_image(model, torch.rand(3, *size), pad=pad)
    assert large.shape == (3, 2 * size[0], 2 * size[1]) and large.isfinite().all()


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_every_scale(scale: int) -> None:
    assert run(tiny(upscale=scale), torch.rand(1, 3, 4, 8)).shape == (1, 3, 4 * scale, 8 * scale)


def test_padding_leaves_whole_sizes_alone() -> None:
    model, images = tiny(window=[4, 16]), torch.rand(2, 3, 16, 32)
    assert (upscale_image(model, images) - run(model, images)).abs().max() <= 1e-6


def test_paddings_mirror_with_and_without_the_last_row() -> None:
    assert PADS["reflect"](3, 4) == [0, 1, 2, 1]
    assert PADS["reflect"](2, 8) == [0, 1, 0, 1, 0, 1, 0, 1]
    assert PADS["reflect"](4, 4) == [0, 1, 2, 3]
    assert PADS["mirror-reference"](3, 4) == [0, 1, 2, 2]
    assert PADS["mirror-reference"](4, 4) == [0, 1, 2, 3, 3, 2, 1, 0]
    assert PADS["mirror-reference"](1, 4) == [0, 0, 0, 0]
    rows = torch.rand(1, 1, 9, 9)
    sources = torch.tensor(PADS["reflect"](9, 16))
    assert rows[:, :, sources][..., sources].equal(F.pad(rows, (0, 7, 0, 7), mode="reflect"))


def test_whole_numbers_come_back_as_whole_numbers() -> None:
    model = tiny()
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    large = upscale_image(model, image)
    expected = (upscale_image(model, image / 255) * 255).round().clamp(0, 255)
    assert large.dtype == torch.uint8 and large.equal(expected.to(torch.uint8))


def test_every_place_depends_on_the_whole_image_and_the_report_of_tiles_says_so() -> None:
    model = tiny()
    image = torch.rand(1, 3, 32, 32)
    twice = torch.cat((image, image.flip(3)), 3)
    alone, beside = run(model, image), run(model, twice)[..., :64]
    assert (alone - beside)[..., :16].abs().max() > 1e-6
    report = tile_report(model, twice, tile=32, overlap=8)
    assert report.largest > 1e-6 and 0 < report.mean <= report.largest
    assert math.isfinite(report.psnr)
    assert tile_report(model, image, tile=64, overlap=8).largest == 0
    assert tile_report(model, image, tile=64, overlap=8).psnr == math.inf


class Answer(nn.Module):
    """Stands for channel attention that mixes nothing."""

    def forward(self, asking: Tensor, answering: Tensor) -> Tensor:
        return answering


def test_without_global_parts_tiles_are_the_whole_image() -> None:
    model = tiny()
    block = model.groups[0].blocks[0]
    block.fusion.mixer = Answer()
    block.low[1].mixer.shift = False
    image = torch.rand(3, 64, 96)
    whole = upscale_image(model, image)
    piece = upscale_image(model, image[:, :, :32])
    assert (piece - whole[:, :, :64])[..., :24].abs().max() <= 1e-6
    tiled = upscale_image(model, image, tile=48, overlap=20)
    assert (tiled - whole).abs().max() > 0  # near the borders of tiles
    assert (tiled - whole)[:, :24, :24].abs().max() <= 1e-6


@pytest.mark.parametrize(("tile", "overlap"), [(16, 0), (16, 4), (32, 8)])
def test_tiles_cover_every_pixel_once(tile: int, overlap: int) -> None:
    class Nearest(nn.Module):
        config = CraftConfig(**TINY)
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, pixels: Tensor) -> Any:
            large = F.interpolate(pixels, scale_factor=2)
            return type("Out", (), {"reconstruction": large})

    image = torch.rand(3, 37, 50)
    large = upscale_image(Nearest(), image, tile=tile, overlap=overlap)
    assert torch.allclose(large, F.interpolate(image[None], scale_factor=2)[0], atol=1e-6)


def test_one_tile_fades_into_the_next_over_their_overlap() -> None:
    class EachItsOwn(nn.Module):
        """Every tile is of one brightness, one more than the tile before."""

        config, tiles = CraftConfig(**TINY), 0
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, pixels: Tensor) -> Any:
            self.tiles += 1
            large = torch.full_like(F.interpolate(pixels, scale_factor=2), self.tiles)
            return type("Out", (), {"reconstruction": large})

    row = upscale_image(EachItsOwn(), torch.rand(3, 16, 28), tile=16, overlap=4)[0, 0]
    rising = 1 + (torch.arange(8) + 0.5) / 8
    wanted = torch.cat([torch.ones(24), rising, torch.full((24,), 2.0)])
    torch.testing.assert_close(row, wanted)


def test_saved_and_reopened_it_is_the_same(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageToImage.from_pretrained(tmp_path).eval()
    assert isinstance(again, CraftForImageSuperResolution)
    images = torch.rand(2, 3, 8, 8)
    assert run(again, images).equal(run(model, images))


def test_the_official_layout_there_and_back() -> None:
    model, twin = tiny(depths=[2, 1], num_heads=[4, 4]), tiny(depths=[2, 1], num_heads=[4, 4])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    weights = to_checkpoint_format(model, "official")
    assert "layers.0.residual_group.srwa_blocks.3.attns.1.pos.pos3.2.bias" in weights
    import_weights(twin, {**weights, "biases_h": torch.zeros(21, 2)})
    own, other = model.state_dict(), twin.state_dict()
    assert all(other[name].equal(tensor) for name, tensor in own.items())
    weights["layers.0.conv.wait"] = weights.pop("layers.0.conv.weight")
    with pytest.raises(InvalidInputError, match=r"groups\.0\.conv\.wait for one"):
        import_weights(twin, weights)


def test_losses_features_and_recomputing() -> None:
    model = tiny(depths=[1, 1], num_heads=[4, 4]).train()
    images, labels = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 16, 16)
    out = model(images, labels, output_hidden_states=True)
    assert torch.isclose(out.loss, (out.reconstruction - labels).abs().mean())
    assert [tuple(f.shape) for f in out.hidden_states] == [(1, 32, 8, 8)] * 3
    out.loss.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    model(images, labels).loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, plain[name], atol=1e-6), name


def test_a_trace_gives_the_same_numbers() -> None:
    model, images = tiny(), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        found = torch.export.export(model, (images,)).module()(images).reconstruction
    assert torch.allclose(found, run(model, images), atol=1e-5)


def test_flat_images_and_half_precision() -> None:
    model = tiny()
    assert run(model, torch.full((1, 3, 8, 8), 0.5)).isfinite().all()
    images = torch.rand(1, 3, 16, 16)
    expected = run(model, images)
    assert (run(model.half(), images.half()).float() - expected).abs().max() <= 1e-2


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"upscale": 5}, "upscale must be one of 2, 3, 4, 8, not 5"),
        ({"num_heads": [3]}, "3 is no even number"),
        ({"num_heads": [6]}, "num_heads 6 does not divide a width of 32"),
        ({"num_heads": [4, 4]}, "num_heads has 2 entries for 1 stages"),
        ({"hidden_size": 16}, "a width of 16 leaves no channel to the network of positions"),
        ({"window": [4]}, "window is a height and a width"),
    ],
)
def test_impossible_structures_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        tiny(**fields)
    if "dim" in fields:
        assert run(tiny(hidden_size=16, position_dim=2), torch.rand(1, 3, 4, 4)).isfinite().all()


def test_impossible_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="3 is odd"):
        RectangleWindowAttention(48, 3, (2, 4))
    with pytest.raises(ValueError, match="a width of 24 leaves no channel"):
        RectangleWindowAttention(24, 4, (2, 4))
    with pytest.raises(ValueError, match="4 x 6 is not made of whole windows of 2 x 4"):
        RectangleWindowAttention(32, 4, (2, 4))(torch.zeros(1, 24, 32), (4, 6))
    with pytest.raises(ValueError, match="need the grid"):
        RectangleWindowAttention(32, 4, (2, 4))(torch.zeros(1, 24, 32))
    with pytest.raises(ValueError, match="5 is odd"):
        HighFrequencyBlock(5)
    with pytest.raises(ValueError, match="3 heads do not divide a width of 32"):
        CrossChannelAttention(32, 3)


def test_images_that_do_not_fit_are_refused() -> None:
    model = tiny()
    with pytest.raises(
        InvalidInputError, match=r"multiples of 4 pixels, not 8 x 6; .*upscale_image"
    ):
        model(torch.rand(1, 3, 8, 6))
    with pytest.raises(InvalidInputError, match=r"numbers from 0 to 1, not torch\.uint8"):
        model(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(InvalidInputError, match="takes 3 channels, the images have 4"):
        model(torch.rand(1, 4, 8, 8))
    with pytest.raises(InvalidInputError, match="has 4; drop the alpha channel"):
        upscale_image(model, torch.rand(4, 8, 8))
    with pytest.raises(InvalidInputError, match=r"not \(8, 8\)"):
        upscale_image(model, torch.rand(8, 8))
    with pytest.raises(InvalidInputError, match="the image is empty"):
        upscale_image(model, torch.rand(3, 0, 8))
    with pytest.raises(InvalidInputError, match="between 0 and 255, not -1 and 300"):
        upscale_image(model, torch.tensor([-1, 300, 0]).view(3, 1, 1))
    with pytest.raises(InvalidInputError, match="no finite numbers"):
        upscale_image(model, torch.full((3, 8, 8), math.nan))
    with pytest.raises(InvalidInputError, match=r"to 255, not torch\.bool"):
        upscale_image(model, torch.zeros(3, 8, 8, dtype=torch.bool))
    with pytest.raises(InvalidInputError, match=r"unknown padding 'zero'; valid values: reflect"):
        upscale_image(model, torch.rand(3, 8, 8), pad="zero")
    with pytest.raises(InvalidInputError, match="less than half a tile of 64: 32"):
        upscale_image(model, torch.rand(3, 8, 8), tile=64)
    with pytest.raises(InvalidInputError, match="tile must be a multiple of 4, not 30"):
        upscale_image(model, torch.rand(3, 8, 8), tile=30, overlap=2)
