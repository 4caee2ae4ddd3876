"""T2T-ViT (arXiv 2101.11986): counts, soft splits, random features, kinds of blocks, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modwright.core.errors import InvalidInputError
from modwright.cost import forward_macs
from modwright.models import create_model, import_weights, to_checkpoint_format
from modwright.models.architectures.t2t_vit import (
    BLOCKS,
    STEMS,
    T2TViTConfig,
    T2TViTForImageClassification,
)
from modwright.nn.block import Block, DenseBlock, DenseTransition
from modwright.nn.channel_mixers.mlp import ChannelScale, GhostLinear, GhostMlp, SqueezeExcite
from modwright.nn.grid_positions import PrefixTokens, sinusoids
from modwright.nn.layouts import call_in_layout, to_feature_map, to_tokens
from modwright.nn.stems.t2t import SoftSplit, TokenLayer
from modwright.nn.token_mixers.performer import PerformerAttention, naive_performer, performer
from modwright.nn.token_mixers.self_attention import SelfAttention, naive_attention

# name: (all parameters, those that are trained, MACs in billions); None where nobody gives it
COUNTS: dict[str, tuple[int, int | None, float | None]] = {
    "t2t_vit_7": (4_310_222, 4_255_694, 1.147),
    "t2t_vit_10": (5_889_230, 5_834_702, 1.516),
    "t2t_vit_12": (6_941_902, 6_887_374, 1.763),
    "t2t_vit_14": (21_545_550, 21_465_806, 4.783),
    "t2t_vit_14_384": (21_691_470, None, 16.370),
    "t2t_vit_19": (39_177_422, 39_085_070, 8.480),
    "t2t_vit_24": (64_105_934, 64_000_974, 13.662),
    "t2t_vit_t_14": (21_541_070, 21_465_422, 6.089),
    "t2t_vit_t_19": (39_172_942, None, 9.785),
    "t2t_vit_t_24": (64_101_454, None, 14.967),
    "t2t_vit_14_resnext": (21_545_550, None, None),
    "t2t_vit_14_wide": (25_156_302, None, 5.229),
    "t2t_vit_se": (21_803_598, None, 4.784),
    "t2t_vit_ghost": (16_253_262, None, 3.802),
    "t2t_vit_dense": (23_647_062, None, 5.276),
}
# printed in millions and billions alone, of stems that the authors' code does not release whole
PRINTED = {"t2t_vit_c_14": (21.3, 4.6)}


def small(**fields: Any) -> T2TViTForImageClassification:
    torch.manual_seed(0)
    chosen = {"image_size": 32, "hidden_size": 16, "depths": 2, "num_heads": 2, "token_dim": 8}
    chosen |= {"reduction": 4, "dense_groups": (1, 2), "growth": 4, "num_labels": 5}
    return T2TViTForImageClassification(T2TViTConfig(**{**chosen, **fields})).eval()


def scalings(model: nn.Module, tokens: int) -> int:
    """Products of ghost channels: convolutions per channel in the figures, plain products here."""
    scales = (part for part in model.modules() if isinstance(part, ChannelScale))
    return sum(part.weight.numel() * tokens for part in scales)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_products_are_those_of_the_released_code(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    total, trained, macs = COUNTS[name]
    assert sum(p.numel() for p in model.parameters()) == total
    if trained is not None:
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    if macs is not None:
        tokens = model.positions.table.shape[1]
        counted = forward_macs(model, 1, 3, *model.config.size) + scalings(model, tokens)
        assert counted / 1e9 == pytest.approx(macs, rel=1e-3)


@pytest.mark.parametrize("name", PRINTED)
def test_other_stems_round_to_what_the_paper_prints(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    parameters, macs = PRINTED[name]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(trained / 1e6, 1) == parameters
    assert round(forward_macs(model, 1, 3, 224, 224) / 1e9, 1) == macs


# The stem


def test_windows_without_overlap_are_patches() -> None:
    x = torch.randn(2, 3, 8, 12)
    split = SoftSplit(4, 4)
    patches = x.unflatten(3, (3, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 1, 3, 5)
    assert split(x).equal(patches.reshape(2, 6, 48))
    assert split.spatial_shape((8, 12)) == (2, 3)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(7, 4, 2), (3, 2, 1), (4, 4, 0)])
def test_a_soft_split_and_a_linear_map_are_a_convolution(
    kernel: int, stride: int, padding: int
) -> None:
    x = torch.randn(2, 3, 20, 28)
    split = SoftSplit(kernel, stride, padding)
    conv = nn.Conv2d(3, 8, kernel, stride, padding)
    found = F.linear(split(x), conv.weight.flatten(1), conv.bias)
    spatial_shape = split.spatial_shape((20, 28))
    assert (to_feature_map(found, spatial_shape) - conv(x)).abs().max() <= 1e-5


def test_values_stand_in_for_the_stream_of_a_token_layer() -> None:
    layer = TokenLayer(27, SelfAttention(27, 1, out_dim=8, qkv_bias=False, scale=27**-0.5))
    x = torch.randn(2, 6, 27)
    q, k, v = layer.attention.qkv(layer.norm1(x)).chunk(3, dim=2)
    y = v + layer.attention.proj(naive_attention(q, k, v, 27**-0.5))
    assert torch.allclose(layer(x), y + layer.mlp(layer.norm2(y)), atol=1e-6)


def test_transformer_layers_scale_by_the_channels_that_come_in() -> None:
    scales = [layer.attention.scale for layer in small(stem="transformer").stem.layers]
    assert scales == [147**-0.5, 72**-0.5]


def test_the_backbone_scales_by_the_channels_of_a_head_unless_told() -> None:
    assert small().blocks[0].mixer.scale == 8**-0.5
    assert small(qk_scale=16**-0.5).blocks[0].mixer.scale == 16**-0.5


def test_performer_layers_drop_in_training_whatever_the_drop_rate() -> None:
    x = torch.randn(1, 3, 32, 32)
    layer = small().stem.layers[0].train()
    tokens = SoftSplit(7, 4, 2)(x)
    assert not layer(tokens).equal(layer(tokens))
    quiet = small(drop_path_rate=0.0, token_drop_rate=0.0)
    with torch.no_grad():
        assert torch.allclose(quiet(x).logits, quiet.train()(x).logits, atol=1e-6)


# Random features


def features_of(num: int, dim: int) -> Tensor:
    return PerformerAttention(dim, 1, num).features.detach().double()


def heads(length: int, dim: int, norm: float = 1.0) -> list[Tensor]:
    q, k, v = torch.randn(3, 2, length, dim, dtype=torch.float64).unbind(0)
    return [F.normalize(q, dim=-1) * norm, F.normalize(k, dim=-1) * norm, v]


@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-2])
@pytest.mark.parametrize("norm", [0.5, 4.0])
def test_the_linear_form_is_the_explicit_matrix_forward_and_gradients(
    eps: float, norm: float
) -> None:
    torch.manual_seed(0)
    given = [z.requires_grad_() for z in heads(9, 8, norm)]
    w = features_of(4, 8)
    fast, naive = performer(*given, w, eps), naive_performer(*given, w, eps)
    assert torch.allclose(fast, naive, rtol=0, atol=1e-12)
    upstream = torch.randn_like(fast)
    one, two = (torch.autograd.grad(y, given, upstream) for y in (fast, naive))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(one, two))


def test_in_single_precision_they_agree_as_closely_as_it_allows() -> None:
    torch.manual_seed(0)
    part = PerformerAttention(24, 2, 6, out_dim=16)
    x = torch.randn(2, 49, 24)
    q, k, v = part.heads(x)
    naive = naive_performer(q, k, v, part.features, part.eps)
    assert (part.attend(q, k, v) - naive.transpose(1, 2).flatten(2)).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_queries_and_keys_stay_finite_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (z[:, None].to(dtype) for z in heads(16, 64, norm=50.0))
    part = PerformerAttention(64, 1, 32).to(dtype)
    naive = naive_performer(q, k, v, part.features, part.eps)
    # 1e-8 is nothing in float16: 0 / 0; in bfloat16 it is all that is left of the divisor
    assert naive.isnan().all() if dtype == torch.float16 else naive.eq(0).all()
    assert naive_performer(q, k, v, part.features, 0.0).isnan().all()
    silent = part.attend(q, k, v)
    assert silent.dtype == dtype and silent.eq(0).all()
    part.eps = 0.0
    mixed = part.attend(q, k, v)
    exact = performer(*(z.double() for z in (q, k, v, part.features)), 0.0)
    assert (mixed - exact.transpose(1, 2).flatten(2)).abs().max() <= 2e-2


def test_sums_are_in_single_precision_under_autocast() -> None:
    torch.manual_seed(0)
    q, k, v = (z[:, None].float() for z in heads(16, 64))
    part = PerformerAttention(64, 1, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = part.attend(q, k, v)
    assert mixed.dtype == torch.float32 and mixed.equal(part.attend(q, k, v))


def test_gradients_stay_finite_where_nothing_is_alike() -> None:
    torch.manual_seed(0)
    given = [z.float().requires_grad_() for z in heads(16, 64, norm=50.0)]
    out = performer(*given, features_of(32, 64).float(), eps=1e-8)
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), given))


def test_more_random_features_come_nearer_to_attention() -> None:
    torch.manual_seed(0)
    q, k, v = heads(32, 16, norm=1.0)
    exact = naive_attention(q, k, v, 1.0)

    def error(num: int) -> float:
        off = [performer(q, k, v, features_of(num, 16), 0.0) - exact for _ in range(40)]
        return float(torch.stack(off).square().mean().sqrt())

    assert error(256) / error(64) == pytest.approx(0.5, abs=0.1)
    assert error(512) < error(256)


def test_features_are_orthogonal_frozen_and_saved(tmp_path: Path) -> None:
    model = small(token_dim=8)
    w = model.stem.layers[0].attention.features
    assert torch.allclose(w @ w.T, 4 * torch.eye(4), atol=1e-5)
    assert not w.requires_grad
    model.save_pretrained(tmp_path)
    again = T2TViTForImageClassification.from_pretrained(tmp_path)
    assert all(again.state_dict()[name].equal(t) for name, t in model.state_dict().items())
    assert not again.stem.layers[0].attention.features.requires_grad
    assert not again.positions.table.requires_grad


# Positions


def test_positions_are_sinusoids_that_nobody_trains() -> None:
    model = small()
    assert (model.positions.table - sinusoids(5, 16)).abs().max() <= 1e-6
    assert "positions.table" in model.state_dict()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "positions.table" not in trained
    assert "prefix.cls_token" in trained & model.no_weight_decay()


def test_a_resized_table_is_not_that_of_the_new_grid() -> None:
    at_32, at_64 = small(), small(image_size=64)
    weights = to_checkpoint_format(at_32, "official")
    with pytest.raises(InvalidInputError, match=r"positions\.table is \(1, 17, 16\) here"):
        import_weights(at_64, weights)
    fresh = at_64.positions.table.clone()
    import_weights(at_64, weights, resize=True)
    resized = at_64.positions.table
    assert resized[:, 0].equal(fresh[:, 0])
    rows = at_32.positions.table[:, 1:].transpose(1, 2).unflatten(2, (2, 2))
    by_hand = F.interpolate(rows, (4, 4), mode="bicubic", align_corners=False)
    assert torch.allclose(resized[:, 1:], to_tokens(by_hand))
    assert (resized - fresh).abs().max() > 0.1
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(at_64(x).logits, at_32(x).logits, atol=1e-5)


def test_images_that_are_no_squares_run() -> None:
    with torch.no_grad():
        assert small()(torch.randn(1, 3, 32, 64)).logits.isfinite().all()
        wide = small(image_size=[32, 64])
        assert wide.positions.table.shape[1] == 1 + 2 * 4
        maps = wide.forward_intermediates(torch.randn(1, 3, 32, 64))
    assert [tuple(m.shape) for m in maps] == [(1, 16, 2, 4)] * 2


# Kinds of blocks


def test_squeeze_and_excitation_weighs_channels_by_their_means() -> None:
    for options in ({}, {"act": "silu", "gate": "tanh", "bias": True, "reduction": 4}):
        part = SqueezeExcite(16, **options)  # type: ignore[arg-type]
        x = torch.randn(2, 5, 16)
        weights = part.gate(part.fc2(part.act(part.fc1(x.mean(1)))))
        assert torch.allclose(part(x), x * weights[:, None])
        on_map = SqueezeExcite(16, layout="map", **options)  # type: ignore[arg-type]
        on_map.load_state_dict(part.state_dict())
        y = torch.randn(2, 16, 3, 5)
        assert torch.allclose(on_map(y), call_in_layout(part, y, (3, 5), "map"), atol=1e-6)
    with pytest.raises(ValueError, match="a reduction by 16 leaves nothing of 8 channels"):
        SqueezeExcite(8)


def test_the_class_token_is_in_the_mean() -> None:
    part = SqueezeExcite(16, 4)
    x = torch.randn(1, 5, 16)
    assert not torch.allclose(part(x)[:, 1:], part(x[:, 1:]))


def test_ghost_channels_are_scaled_copies() -> None:
    part = GhostLinear(8, 6)
    x = torch.randn(2, 5, 8)
    kept, ghosts = part(x).chunk(2, dim=2)
    conv = nn.Conv1d(3, 3, 1, groups=3, bias=False)
    with torch.no_grad():
        conv.weight.copy_(part.cheap.weight[:, None, None])
    assert torch.allclose(ghosts, conv(kept.transpose(1, 2)).transpose(1, 2), atol=1e-6)
    with pytest.raises(ValueError, match="5 is odd"):
        GhostLinear(8, 5)


def test_a_ghost_mlp_is_its_formula() -> None:
    part = GhostMlp(8)
    x = torch.randn(2, 5, 8)
    u = F.gelu(part.fc1(x))
    a, b = part.cheap1.weight, part.cheap2.weight
    assert torch.allclose(part(x), part.fc2(torch.cat((u, F.gelu(a * u), F.gelu(b * u)), dim=2)))


def test_a_dense_block_keeps_the_stream_and_adds_to_it() -> None:
    inner = Block(8, SelfAttention(8, 2), None, lambda: nn.LayerNorm(8))
    part = DenseBlock(inner, 8, 4)
    x = torch.randn(2, 6, 8)
    out = part(x, (2, 3))
    assert out[..., :8].equal(x)
    assert torch.allclose(out[..., 8:], part.grow(inner(x, (2, 3))))
    narrow = DenseTransition(12, 6)
    assert narrow(out).equal(F.gelu(narrow.linear(out)))
    with pytest.raises(ValueError, match="growth must be at least 1, not 0"):
        DenseBlock(inner, 8, 0)


def test_dense_widths_and_rates_go_by_groups() -> None:
    with torch.device("meta"):
        model = create_model("t2t_vit_dense", drop_path_rate=1.0)
    assert model.num_features == model.config.num_features == 584
    info = [entry["num_chs"] for entry in model.feature_info]
    assert len(info) == 22 and info[:5] == [192, 256, 320, 160, 224] and info[-1] == 584
    rates = [b.block.drop_path.rate for b in model.blocks if isinstance(b, DenseBlock)]
    groups = [0.0] * 3 + [1 / 11] * 6 + [2 / 11] * 6 + [3 / 11] * 4
    assert rates == pytest.approx(groups)
    model = small(block_type="dense")
    model.reset_classifier(3)
    assert model(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 3)
    with pytest.raises(InvalidInputError, match="fits the last feature map alone"):
        model.forward_intermediates(torch.zeros(1, 3, 32, 32), norm=True)


def test_rates_of_other_blocks_reach_the_last() -> None:
    with torch.device("meta"):
        model = create_model("t2t_vit_14")
    rates = [block.drop_path.rate for block in model.blocks]
    assert rates == pytest.approx([0.1 * b / 13 for b in range(14)])


@pytest.mark.parametrize("kind", [*STEMS, *BLOCKS])
def test_every_kind_trains_saves_and_goes_to_the_official_names_and_back(
    kind: str, tmp_path: Path
) -> None:
    model = small(**{"stem" if kind in STEMS else "block_type": kind})
    weights = to_checkpoint_format(model, "official")
    twin = T2TViTForImageClassification(model.config).eval()
    import_weights(twin, weights)
    assert all(twin.state_dict()[name].equal(t) for name, t in model.state_dict().items())
    back = to_checkpoint_format(twin, "official")
    assert all(back[name].equal(tensor) for name, tensor in weights.items())
    model.save_pretrained(tmp_path)
    again = T2TViTForImageClassification.from_pretrained(tmp_path)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert again.eval()(x).logits.equal(twin(x).logits)
    model.train()(x, torch.tensor([0, 3])).loss.backward()
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert not [name for name, p in trained if p.grad is None]


def test_but_for_the_stem_names_and_shapes_are_those_of_a_plain_transformer() -> None:
    fields = {"image_size": 32, "hidden_size": 16, "depths": 2, "num_heads": 2, "mlp_ratio": 3}
    plain = create_model("deit_small_patch16_224", num_classes=5, qkv_bias=False, **fields)
    shapes = [
        {
            name: t.shape
            for name, t in to_checkpoint_format(model, "official").items()
            if start not in name
        }
        for model, start in ((small(), "tokens_to_token"), (plain, "patch_embed"))
    ]
    assert shapes[0] == shapes[1]


def test_its_stem_can_stand_before_another_transformer() -> None:
    fields = {"image_size": 32, "hidden_size": 16, "depths": 1, "num_heads": 2}
    plain = create_model("deit_small_patch16_224", num_classes=5, **fields)
    plain.stem = small().stem
    x = torch.randn(2, 3, 32, 32)
    plain(x, torch.tensor([0, 3])).loss.backward()
    trained = [p for p in plain.stem.parameters() if p.requires_grad]
    assert trained and all(p.grad.abs().sum() > 0 for p in trained)


def test_weights_start_as_the_authors_do() -> None:
    torch.manual_seed(0)
    model = create_model("t2t_vit_14", num_classes=5, depths=1)
    layer, block = model.stem.layers[0], model.blocks[0]
    maps = [layer.attention.qkv, layer.mlp.fc1, model.stem.project, block.mixer.qkv, block.mlp.fc2]
    for tensor in (model.prefix.cls_token, *(part.weight for part in maps)):
        assert float(tensor.detach().std()) == pytest.approx(0.02, rel=0.15)
    assert layer.attention.qkv.bias.eq(0).all() and block.mixer.qkv.bias is None
    assert block.norm1.weight.eq(1).all() and block.norm1.bias.eq(0).all()


def test_released_files_hold_averaged_weights_under_module_names(tmp_path: Path) -> None:
    model, other = small(), small()
    weights = {
        f"module.{name}": tensor for name, tensor in to_checkpoint_format(model, "official").items()
    }
    plain = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    torch.save({"state_dict": plain, "state_dict_ema": weights}, tmp_path / "model.pth.tar")
    import_weights(other, tmp_path / "model.pth.tar")
    assert all(other.state_dict()[name].equal(t) for name, t in model.state_dict().items())


def test_prefix_tokens_stand_in_order_under_their_names() -> None:
    part = PrefixTokens(8, ["cls_token", "dist_token"])
    x = torch.randn(2, 5, 8)
    out = part(x)
    assert out[1, 0].equal(part.cls_token[0, 0]) and out[1, 1].equal(part.dist_token[0, 0])
    assert out[:, 2:].equal(x)
    with pytest.raises(ValueError, match="two prefix tokens have one name: a, a"):
        PrefixTokens(8, ["a", "a"])


# Bad input


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"image_size": 40}, "must be multiples of 16 pixels, not 40 x 40"),
        ({"token_dim": 1}, r"kernel_ratio 0\.5 of token_dim 1 leaves no random feature"),
        (
            {"block_type": "ghost", "mlp_ratio": 2},
            "needs mlp_ratio 3 and an even hidden_size, not 2",
        ),
        (
            {"block_type": "ghost", "hidden_size": 15, "num_heads": 3},
            "an even hidden_size, not 3 and 15",
        ),
        (
            {"block_type": "dense", "growth": 5, "dense_groups": (2,)},
            "does not divide a width of 21",
        ),
        ({"block_type": "dense", "depths": 1}, "depths 1 is less than the 2 dense_groups"),
        ({"num_heads": 3}, "num_heads 3 does not divide a width of 16"),
        ({"stem": "performers"}, "unknown stem 'performers'"),
        ({"block_type": "se"}, "unknown block_type 'se'"),
    ],
)
def test_impossible_structures_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        small(**fields)


def test_images_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="must be multiples of 16 pixels, not 32 x 40"):
        small()(torch.zeros(1, 3, 32, 40))
    with pytest.raises(ValueError, match="at least 1 random feature"):
        PerformerAttention(8, 1, 0)


def test_fault_A22_biases_of_the_blocks_are_none_of_the_stem() -> None:
    fields = {"image_size": 32, "depths": 1, "hidden_size": 16, "num_heads": 2, "token_dim": 8}
    names = set(create_model("t2t_vit_t_14", qkv_bias=True, **fields).state_dict())
    assert "blocks.0.mixer.qkv.bias" in names
    assert not any(name.startswith("stem.") and name.endswith("qkv.bias") for name in names)
    stored = T2TViTConfig(qkv_bias=True).to_dict()
    assert not T2TViTConfig.from_dict(stored).stem_qkv_bias
    del stored["stem_qkv_bias"]  # as files of version 0.1
    assert T2TViTConfig.from_dict(stored).stem_qkv_bias
