"""DuoFormer (arXiv 2506.12982): counts, cells, both attentions, backbones, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForImageClassification

from modwright.core.errors import InvalidInputError
from modwright.models import create_model, import_weights, list_models, to_checkpoint_format
from modwright.models.architectures.duoformer import (
    DuoFormerConfig,
    DuoFormerForImageClassification,
)
from modwright.nn.layouts import to_tokens
from modwright.nn.stems.backbone_tokens import (
    ChannelToken,
    MultiScalePatchTokens,
    gather_regions,
    naive_gather_regions,
    region_positions,
)
from modwright.nn.token_mixers.self_attention import naive_attention

# scales: parameters of the transformer with two classes, and of the projections behind ResNet-50
TRANSFORMER = {3: 113_462_018, 4: 113_511_170}
PROJECTIONS = {3: 2_754_816, 4: 2_952_192}
RESNET50 = 23_508_032
TINY_RESNET = {"widths": [4, 8, 8, 16], "depths": [1, 1, 1, 1], "stem_width": 4}


def small(**fields: Any) -> DuoFormerForImageClassification:
    torch.manual_seed(0)
    chosen: dict[str, Any] = {"backbone": "pyramid", "backbone_fields": {"widths": [4, 4, 8, 8]}}
    chosen |= {
        "image_size": 32,
        "scales": 3,
        "hidden_size": 16,
        "depths": 2,
        "num_heads": 2,
        "num_labels": 5,
    }
    return DuoFormerForImageClassification(DuoFormerConfig(**{**chosen, **fields})).eval()


def features(batch: int = 2, side: int = 4) -> list[Tensor]:
    """Maps like those of the small pyramid, the finest first."""
    return [
        torch.randn(batch, w, side * 2**s, side * 2**s) for w, s in zip((4, 4, 8, 8), (3, 2, 1, 0))
    ]


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize("scales", [3, 4])
def test_parameters_are_those_of_the_released_code(scales: int) -> None:
    with torch.device("meta"):
        model = create_model(f"duoformer_resnet50_scales{scales}_224", num_classes=2)
    assert count(model.backbone) == RESNET50
    assert count(model.tokenise) == PROJECTIONS[scales]
    assert count(model.scale_blocks) == 85_054_464
    assert count(model.blocks) == 28_348_416
    apart = (model.backbone, model.tokenise, model.scale_prefix)
    assert count(model) - count(*apart) == TRANSFORMER[scales]


def test_there_are_two_backbones_with_two_to_four_scales() -> None:
    names = list_models("duoformer_*")
    assert len(names) == 6
    for name in names:
        with torch.device("meta"):
            model = create_model(name)
        assert model.scale_positions.table.shape[1] == {2: 6, 3: 22, 4: 86}[model.config.scales]
        assert model.positions.table.shape[1] == 50


# Tokens of cells


@pytest.mark.parametrize("spatial_shape", [(7, 7), (2, 3)])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_every_place_stands_once_and_under_its_cell(
    spatial_shape: tuple[int, int], factor: int
) -> None:
    width = spatial_shape[1] * factor
    for column_first in (False, True):
        table = region_positions(spatial_shape, factor, column_first)
        assert table.shape == (spatial_shape[0] * spatial_shape[1], factor**2)
        assert table.flatten().sort().values.equal(torch.arange(table.numel()))
        rows, columns = table // width // factor, table % width // factor
        regions = torch.arange(len(table))[:, None].expand_as(table)
        assert (rows * spatial_shape[1] + columns).equal(regions)


@pytest.mark.parametrize("column_first", [False, True])
def test_gathering_is_its_loop_and_an_index(column_first: bool) -> None:
    x = torch.randn(2, 3, 8, 12, requires_grad=True)
    fast, naive = (f(x, (2, 3), column_first) for f in (gather_regions, naive_gather_regions))
    assert fast.equal(naive)
    assert fast.equal(to_tokens(x)[:, region_positions((2, 3), 4, column_first)])
    upstream = torch.randn_like(fast)
    one, two = (torch.autograd.grad(y, x, upstream)[0] for y in (fast, naive))
    assert one.equal(two)
    with pytest.raises(ValueError, match="8 x 12 is no whole refinement of 3 x 3"):
        gather_regions(x, (3, 3))


@pytest.mark.parametrize("side", [2, 4])
def test_tokens_are_windows_of_projected_maps_the_coarsest_first(side: int) -> None:
    given = features(side=side)
    part = MultiScalePatchTokens([4, 4, 8, 8], 6)
    found = part(given)
    assert found.shape == (2, side**2, part.tokens, 6) and part.tokens == 85
    start = 0
    for step in range(4):
        x, factor = part.projections[3 - step](given[3 - step]), 2**step
        windows = F.unfold(x, factor, stride=factor).unflatten(1, (6, factor**2))
        if step == 1:
            windows = windows[:, :, [0, 2, 1, 3]]
        end = start + factor**2
        assert torch.allclose(found[:, :, start:end], windows.permute(0, 3, 2, 1), atol=1e-6)
        start = end


def test_maps_that_do_not_fit_are_refused() -> None:
    part, given = MultiScalePatchTokens([4, 4, 8, 8], 6), features()
    with pytest.raises(ValueError, match="4 maps are wanted, not 3"):
        part(given[1:])
    with pytest.raises(ValueError, match="map 1 before the last must be 8 x 8, not 8 x 6"):
        part([*given[:2], given[2][..., :6], given[3]])
    with pytest.raises(ValueError, match="4 maps are wanted, not 2"):
        ChannelToken([4, 4, 8, 8], 6)(given[2:])
    with pytest.raises(InvalidInputError, match="4 maps are wanted, not 3"):
        small(scale_token="channel").forward_tokens(given[1:])


# Both attentions


def test_scales_of_one_cell_know_nothing_of_another() -> None:
    model = small()
    tokens = model.tokenise(features(1)[-3:])
    tokens = model.scale_prefix(tokens.flatten(0, 1)).unflatten(0, (1, -1))
    moved = tokens.clone()
    moved[:, 5] += torch.randn_like(moved[:, 5])
    with torch.no_grad():
        one, two = model.mix_scales(tokens), model.mix_scales(moved)
        changed = (one - two).abs().amax((0, 2)) > 0
        assert changed.nonzero().flatten().tolist() == [5]
        one, two = (model.blocks(model.join_regions(x, (4, 4)), (4, 4)) for x in (one, two))
        assert ((one - two).abs().amax((0, 2)) > 0).all()


def test_the_order_of_cells_is_in_their_positions_alone() -> None:
    model, order = small(), torch.randperm(16)
    tokens = torch.randn(2, 16, 22, 16)

    def logits(x: Tensor) -> Tensor:
        stream = model.join_regions(model.mix_scales(x), (4, 4))
        return model.forward_head(model.norm(model.blocks(stream, (4, 4))))

    with torch.no_grad():
        for parameter in model.parameters():  # fresh weights let next to nothing through
            parameter.normal_(std=0.3)
        before = logits(tokens)
        assert (logits(tokens[:, order]) - before).abs().max() > 1e-5
        model.positions.table[:, 1:] = model.positions.table[:, 1:][:, order].clone()
        assert torch.allclose(logits(tokens[:, order]), before, atol=1e-5)


@pytest.mark.parametrize("at_once", [None, 5])
def test_folded_cells_are_a_loop_over_cells_forward_and_gradients(at_once: int | None) -> None:
    model = small(cells_at_once=at_once)
    tokens = torch.randn(2, 16, 22, 16, requires_grad=True)
    fast = model.mix_scales(tokens)
    loop = [
        model.scale_blocks(cell[None] + model.scale_positions.table, (1, 21))[0, 0]
        for image in tokens
        for cell in image
    ]
    naive = torch.stack(loop).unflatten(0, (2, 16))
    assert torch.allclose(fast, naive, atol=1e-5)
    upstream, wanted = torch.randn_like(fast), [tokens, *model.scale_blocks.parameters()]
    grads = [torch.autograd.grad(y, wanted, upstream) for y in (fast, naive)]
    for one, two in zip(*grads):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-4)


def test_released_blocks_over_cells_are_attention_alone() -> None:
    model = small(depths=0, patch_depth=2, scale_token="none")
    given = features()
    with torch.no_grad():
        regions = to_tokens(model.tokenise.projections[-1](given[-1]))
        x = torch.cat((model.prefix.cls_token.expand(2, -1, -1), regions), 1)
        x[:, 1:] += model.scale_positions.table[:, :1]
        x = x + model.positions.table
        for block in model.blocks:
            heads = zip(*(z.chunk(2, dim=2) for z in block.qkv(x).chunk(3, dim=2)))
            mixed = [naive_attention(q, k, v, 8**-0.5) for q, k, v in heads]
            x = block.proj(torch.cat(mixed, dim=2))
        assert torch.allclose(model.forward_tokens(given), x, atol=1e-6)
        assert torch.allclose(model.forward_head(x), model.head.fc(x[:, 0]), atol=1e-6)


def alikeness(model: DuoFormerForImageClassification, x: Tensor) -> float:
    """Mean cosine of pairs of cells behind the last block."""
    with torch.no_grad():
        regions = to_tokens(model.forward_intermediates(x)[-1]).double()
        regions = F.normalize(regions, dim=-1, eps=1e-60)  # fresh weights make them tiny
    return float((regions @ regions.mT).mean())


def test_without_residuals_cells_become_alike() -> None:
    x = torch.randn(2, 3, 32, 32)
    released, whole = (small(patch_residual=flag, patch_depth=6) for flag in (False, True))
    assert alikeness(released, x) > 0.999
    assert alikeness(whole, x) < alikeness(released, x)


def test_the_last_norm_stands_in_the_file_and_is_used_only_if_asked() -> None:
    model, normed = small(), small(head_norm=True)
    assert not any(p.requires_grad for p in model.unused_norm.parameters())
    import_weights(normed, to_checkpoint_format(model, "official"))
    given = features()
    with torch.no_grad():
        plain, other = model.forward_tokens(given), normed.forward_tokens(given)
        assert torch.allclose(other, F.layer_norm(plain, (16,), eps=1e-6), atol=1e-6)


def test_options_that_change_no_name() -> None:
    model, other = small(), small(attention_scale="2/sqrt(dim)")
    assert model.blocks[0].scale == 8**-0.5 and other.blocks[0].scale == 2 * 16**-0.5
    scaled = small(layer_scale=0.1)
    assert "scaleBlocks.1.ls2.gamma" in to_checkpoint_format(scaled, "official")
    rates = small(drop_path_rate=0.3, patch_residual=True)
    drops = [b.drop_path.rate for b in (*rates.scale_blocks, *rates.blocks)]
    assert drops == pytest.approx([0, 0.1, 0.2, 0.3])


# Backbones and scale tokens


@pytest.mark.parametrize(
    "fields",
    [
        {"scale_token": "none"},
        {"scale_token": "channel", "scales": 2},
        {"patch_residual": True, "layer_scale": 1.0, "scales": 4},
        {"depths": 0},
        {"patch_depth": 0, "global_pool": "avg"},
        {"backbone": "resnet18", "backbone_fields": TINY_RESNET, "image_size": 64},
    ],
)
def test_every_kind_trains_saves_and_goes_to_the_official_names_and_back(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    model = small(**fields)
    twin = DuoFormerForImageClassification(model.config).eval()
    import_weights(twin, to_checkpoint_format(model, "official"))
    assert all(twin.state_dict()[name].equal(t) for name, t in model.state_dict().items())
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    x = torch.randn(2, 3, *model.config.size)
    with torch.no_grad():
        assert torch.allclose(again(x).logits, model(x).logits, atol=1e-6)
    model.train()(x, torch.tensor([0, 3])).loss.backward()
    unread = ("prefix.cls_token",) if fields.get("patch_depth") == 0 else ()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not [name for name in without if not name.startswith(unread or ("-",))]


def test_one_image_can_train_a_channel_token() -> None:
    model = small(scale_token="channel").train()
    model(torch.randn(1, 3, 32, 32), torch.tensor([1])).loss.backward()
    assert model.channel_token.merge.conv0.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("backbone", "fields", "size"),
    [("pyramid", {"widths": [4, 4, 8, 8]}, 32), ("resnet18", TINY_RESNET, 64)],
)
def test_a_frozen_backbone_stays_as_it_is(
    backbone: str, fields: dict[str, Any], size: int, tmp_path: Path
) -> None:
    model = small(
        backbone=backbone, backbone_fields=fields, image_size=size, freeze_backbone=True
    ).train()
    before = {name: t.clone() for name, t in model.backbone.state_dict().items()}
    model(torch.randn(2, 3, size, size), torch.tensor([0, 3])).loss.backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert model.training and not any(part.training for part in model.backbone.modules())
    assert all(before[name].equal(t) for name, t in model.backbone.state_dict().items())
    assert model.tokenise.projections[0].weight.grad is not None
    model.save_pretrained(tmp_path)
    again = DuoFormerForImageClassification.from_pretrained(tmp_path)
    assert not any(p.requires_grad for p in again.backbone.parameters())
    assert not again.train().backbone.training


def test_weights_start_where_the_released_code_starts_them() -> None:
    model = small(hidden_size=192, num_heads=3, num_labels=100)
    table = model.positions.table
    assert float(table.detach().std()) == pytest.approx(0.036, rel=0.1)
    assert float(model.scale_positions.table.detach().std()) == pytest.approx(0.036, rel=0.1)
    assert float(model.blocks[0].qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    wider = small(hidden_size=192, num_heads=3, init_std=0.08)
    assert float(wider.blocks[0].qkv.weight.detach().std()) == pytest.approx(0.08, rel=0.1)
    project = model.tokenise.projections[0]
    assert float(project.weight.detach().std()) == pytest.approx((2 / 4) ** 0.5, rel=0.1)
    assert project.bias.abs().max() < 1e-5
    assert model.head.fc.weight.abs().max() <= 192**-0.5 and model.head.fc.bias.abs().max() > 0


# Positions and bad input


def test_positions_of_cells_are_resized_if_asked() -> None:
    model, free = small(), small(interpolate_positions=True)
    x = torch.randn(1, 3, 32, 48)
    with pytest.raises(
        InvalidInputError, match=r"4 x 6 regions where .* 4 x 4; interpolate_positions=True"
    ):
        model(x)
    with pytest.raises(InvalidInputError, match="2 x 2 regions where the config has 4 x 4"):
        model.forward_tokens(features(side=2))
    with torch.no_grad():
        assert free(x).logits.isfinite().all()
        larger = small(image_size=[32, 48])
        import_weights(larger, to_checkpoint_format(free, "official"), resize=True)
        assert larger.positions.table[:, 0].equal(free.positions.table[:, 0])
        assert torch.allclose(larger(x).logits, free(x).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"scales": 1}, "scales lie between 2 and 4, not 1"),
        ({"scales": 5}, "scales lie between 2 and 4, not 5"),
        ({"num_heads": 3}, "num_heads 3 does not divide a width of 16"),
        ({"image_size": 36}, "must be multiples of 8 pixels, not 36 x 36"),
        ({"backbone": "resnet19"}, "unknown backbone 'resnet19'"),
        ({"scale_token": "random"}, "unknown scale_token 'random'"),
        ({"attention_scale": "1"}, "unknown attention_scale '1'"),
        ({"cells_at_once": 0}, "cells_at_once must be at least 1, not 0"),
        ({"backbone_fields": {"widths": [4, 8, 8]}}, "must give 4 maps, not 3"),
    ],
)
def test_impossible_structures_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        small(**fields)
