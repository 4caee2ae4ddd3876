"""TNT (arXiv 2103.00112): counts, two streams, words of a patch, older forms, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.counting import check_counts
from modwright.core.errors import InvalidInputError
from modwright.cost import forward_macs
from modwright.models import create_model, import_weights, to_checkpoint_format
from modwright.models.architectures.tnt import TNTConfig, TNTForImageClassification
from modwright.nn.block import Block
from modwright.nn.channel_mixers.mlp import Mlp, SqueezeExcite
from modwright.nn.grid_positions import resize_grid
from modwright.nn.nested_block import NestedBlock, PixelToPatch
from modwright.nn.stems.pixel_embed import PixelEmbed, cut_patches
from modwright.nn.token_mixers.self_attention import naive_attention

# name: (parameters, MACs in billions); None where nobody gives it
COUNTS: dict[str, tuple[int, float | None]] = {
    "tnt_ti_patch16_224": (6_076_408, 1.404),
    "tnt_s_patch16_224": (23_768_584, 5.217),
    "tnt_b_patch16_224": (65_428_680, 14.049),
    "tnt_s_patch16_384": (23_914_504, 17.306),
    "tnt_s_legacy_patch16_224": (23_755_336, None),
    "tnt_s_se_patch16_224": (24_668_296, 5.218),
    "tnt_s_1_patch16_224": (22_519_432, 4.793),
    "tnt_s_2_patch16_224": (22_363_288, 4.740),
    "tnt_s_3_patch16_224": (22_207_144, 4.687),
    "tnt_s_4_patch16_224": (22_051_000, 4.634),
    "tnt_s_words64_patch16_224": (23_686_000, 5.108),
    "tnt_s_words4_patch16_224": (25_032_040, 5.976),
}


def small(**fields: Any) -> TNTForImageClassification:
    torch.manual_seed(0)
    chosen = {"image_size": 16, "patch_size": 8, "inner_stride": 2, "inner_dim": 4, "depths": 2}
    chosen |= {"hidden_size": 16, "inner_heads": 2, "num_heads": 2, "num_labels": 5}
    model = TNTForImageClassification(TNTConfig(**{**chosen, **fields})).eval()
    with torch.no_grad():  # so that streams and norms are far from their start
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_products_are_those_of_the_released_code(name: str) -> None:
    check_counts(name, *COUNTS[name])


def test_the_inner_stream_adds_little_to_a_plain_transformer() -> None:
    with torch.device("meta"):
        nested, plain = create_model("tnt_s_patch16_224"), create_model("deit_small_patch16_224")
    ratio = forward_macs(nested, 1, 3, 224, 224) / forward_macs(plain, 1, 3, 224, 224)
    assert ratio == pytest.approx(1.134, abs=2e-3)


# Words


@pytest.mark.parametrize(("patch", "stride"), [(8, 2), (8, 3), (4, 4)])
def test_patches_are_convolved_one_by_one(patch: int, stride: int) -> None:
    x = torch.randn(2, 3, 2 * patch, 3 * patch, requires_grad=True)
    stem = PixelEmbed(3, 6, patch=patch, stride=stride)
    loop = [
        stem.conv(image[None, :, top : top + patch, left : left + patch]).flatten(2).mT
        for image in x
        for top in range(0, 2 * patch, patch)
        for left in range(0, 3 * patch, patch)
    ]
    naive, fast = torch.cat(loop), stem(x)
    assert fast.shape == (12, stem.pixel_tokens, 6)
    assert torch.allclose(fast, naive, atol=1e-6)
    upstream = torch.randn_like(fast)
    one, two = (torch.autograd.grad(y, x, upstream, retain_graph=True)[0] for y in (fast, naive))
    assert torch.allclose(one, two, atol=1e-5)


def test_the_legacy_stem_sees_over_the_borders_of_patches() -> None:
    x = torch.randn(1, 3, 16, 16)
    cut, whole = (PixelEmbed(3, 4, patch=8, stride=2, whole=flag) for flag in (False, True))
    whole.load_state_dict(cut.state_dict())
    one, two = (stem(x).unflatten(1, (4, 4)) for stem in (cut, whole))
    same = (one - two).abs().amax((0, 3)) < 1e-6
    assert same.nonzero().tolist() == [[2, 2]]  # its 7 x 7 pixels alone lie inside the patch
    assert whole(x).equal(cut_patches(whole.conv(x), 4).flatten(2).mT)
    with pytest.raises(ValueError, match="a stride of 3 does not divide a patch of 8"):
        PixelEmbed(3, 4, patch=8, stride=3, whole=True)
    with pytest.raises(ValueError, match="a kernel of 4 has no middle"):
        PixelEmbed(3, 4, kernel_size=4)
    with pytest.raises(ValueError, match="patches of 8 do not fill a map of 16 x 20"):
        cut(torch.zeros(1, 3, 16, 20))


def test_words_of_one_patch_know_nothing_of_another() -> None:
    model = small(image_size=[16, 24])
    x = torch.randn(1, 3, 16, 24, requires_grad=True)
    stream, spatial_shape = model.embed(x)
    pixel_tokens, _ = model.blocks(stream, spatial_shape)
    for patch in range(6):
        (found,) = torch.autograd.grad(pixel_tokens[patch].square().sum(), x, retain_graph=True)
        per_patch = cut_patches(found, 8).abs().amax((1, 2, 3))
        assert per_patch[patch] > 0
        assert per_patch[[p for p in range(6) if p != patch]].eq(0).all()


def test_inner_drop_path_drops_patches_not_images() -> None:
    model = small(drop_path_rate=1.0).train()
    pixel_tokens, sentences = torch.randn(32, 16, 4), torch.randn(1, 33, 16)
    model.blocks[1].inner.drop_path.rate = 0.5
    after, _ = model.blocks[1]((pixel_tokens, sentences), (4, 8))
    same = (after == pixel_tokens).flatten(1).all(1)
    assert same.any() and not same.all()


# The nested block


def naive_block(block: Block, x: Tensor) -> Tensor:
    attention = block.mixer
    qk, v = attention.qk(block.norm1(x)), attention.v(block.norm1(x))
    q, k = qk.chunk(2, dim=2)
    heads = [
        naive_attention(*parts, attention.scale)
        for parts in zip(*(z.chunk(attention.num_heads, dim=2) for z in (q, k, v)))
    ]
    x = x + attention.proj(torch.cat(heads, dim=2))
    return x + block.mlp(block.norm2(x))


def naive_nested(
    block: NestedBlock, pixel_tokens: Tensor, sentences: Tensor
) -> tuple[Tensor, Tensor]:
    pixel_tokens = naive_block(block.inner, pixel_tokens)
    images, patches = len(sentences), sentences.shape[1] - 1
    rows = []
    for image in range(images):
        said = [sentences[image, 0]]
        for patch in range(patches):
            whole = pixel_tokens[image * patches + patch].flatten()
            added = block.fuse.norm2(block.fuse.proj(block.fuse.norm1(whole)))
            said.append(sentences[image, patch + 1] + added)
        rows.append(torch.stack(said))
    return pixel_tokens, naive_block(block.outer, torch.stack(rows))


def test_a_nested_block_is_its_formula_forward_and_gradients() -> None:
    block = small().blocks[0]
    given = [torch.randn(8, 16, 4, requires_grad=True), torch.randn(2, 5, 16, requires_grad=True)]
    fast, naive = block(tuple(given), (2, 2)), naive_nested(block, *given)
    upstream = [torch.randn_like(found) for found in fast]
    for one, two in zip(fast, naive):
        assert torch.allclose(one, two, atol=1e-5)
    wanted = [*given, *block.parameters()]
    grads = [torch.autograd.grad(out, wanted, upstream) for out in (fast, naive)]
    for one, two in zip(*grads):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-4)


def test_without_what_words_say_the_sentences_are_a_plain_transformer() -> None:
    model = small()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for block in model.blocks:
            block.fuse.proj.weight.zero_()
            block.fuse.norm2.bias.zero_()
        (_, sentences), spatial_shape = model.embed(x)
        for block in model.blocks:
            sentences = block.outer(sentences, spatial_shape)
        plain = model.head(model.norm(sentences))
        assert model(x).logits.equal(plain)
        for block in model.blocks:  # and the inner blocks no longer matter
            block.inner.mlp.fc2.weight.normal_()
        assert model(x).logits.equal(plain)


def test_the_order_of_patches_is_in_the_positions_alone() -> None:
    model = small(image_size=[16, 24])
    order = torch.randperm(6)
    x = torch.randn(2, 3, 16, 24)
    patches = cut_patches(x, 8).unflatten(0, (2, 6))[:, order].unflatten(1, (2, 3))
    shuffled = patches.permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 16, 24)
    with torch.no_grad():
        before = model(x).logits
        assert (model(shuffled).logits - before).abs().max() > 1e-3
        table = model.positions.table
        table[:, 1:] = table[:, 1:][:, order].clone()
        assert torch.allclose(model(shuffled).logits, before, atol=1e-5)


def test_the_order_of_words_is_in_the_weights_alone() -> None:
    model, order = small(), torch.randperm(16)
    x = torch.randn(2, 3, 16, 16)
    channels = (order[:, None] * 4 + torch.arange(4)).flatten()
    with torch.no_grad():
        before = model(x).logits
        handle = model.stem.register_forward_hook(
            lambda module, args, pixel_tokens: pixel_tokens[:, order]
        )
        assert (model(x).logits - before).abs().max() > 1e-3
        model.word_positions.table.copy_(model.word_positions.table[:, order].clone())
        for fuse in (model.fuse, *(block.fuse for block in model.blocks)):
            for tensor in (fuse.proj.weight, fuse.norm1.weight, fuse.norm1.bias):
                tensor.copy_(tensor[..., channels].clone())
        assert torch.allclose(model(x).logits, before, atol=1e-5)
    handle.remove()


def test_blocks_without_words_let_them_pass() -> None:
    model = small(inner_blocks=[2], depths=3)
    assert [block.inner is not None for block in model.blocks] == [False, True, False]
    pixel_tokens, sentences = torch.randn(4, 16, 4), torch.randn(1, 5, 16)
    after, _ = model.blocks[0]((pixel_tokens, sentences), (2, 2))
    assert after is pixel_tokens
    names = to_checkpoint_format(model, "official")
    assert {n.split(".")[2] for n in names if n.startswith("blocks.0.")} == {
        "outer_norm1",
        "outer_attn",
        "outer_norm2",
        "outer_mlp",
    }
    assert small(inner_blocks=[])(torch.zeros(1, 3, 16, 16)).logits.isfinite().all()
    outer = model.blocks[0].outer
    with pytest.raises(ValueError, match="come together"):
        NestedBlock(model.blocks[1].inner, None, outer)


def test_channels_are_weighed_by_the_normed_mean_and_kept() -> None:
    gate = SqueezeExcite(8, 4, gate="tanh", bias=True, norm=nn.LayerNorm(8), residual=True)
    mlp = Mlp(8, 16, gate=gate)
    plain = Mlp(8, 16)
    plain.load_state_dict({n: t for n, t in mlp.state_dict().items() if "gate" not in n})
    x = torch.randn(2, 5, 8)
    t = plain(x)
    g = torch.tanh(gate.fc2(torch.relu(gate.fc1(gate.norm(t.mean(1, keepdim=True))))))
    assert torch.allclose(mlp(x), t + t * g, atol=1e-6)
    with torch.no_grad():
        gate.fc2.weight.zero_()
        gate.fc2.bias.zero_()
    assert torch.allclose(mlp(x), plain(x), atol=1e-6)


def test_a_block_drops_its_four_branches_at_one_rate_that_grows_evenly() -> None:
    with torch.device("meta"):
        model = create_model("tnt_s_patch16_224")
    rates = [[b.inner.drop_path.rate, b.outer.drop_path.rate] for b in model.blocks]
    assert rates == [pytest.approx([0.1 * b / 11] * 2) for b in range(12)]


def test_what_words_say_is_added_whole_in_training_too() -> None:
    block = small(drop_path_rate=1.0).train().blocks[1]
    pixel_tokens, sentences = torch.randn(8, 16, 4), torch.randn(2, 5, 16)
    after, found = block((pixel_tokens, sentences), (2, 2))
    assert after.equal(pixel_tokens)  # both branches of both streams are dropped
    assert found[:, 0].equal(sentences[:, 0])
    assert torch.allclose(found[:, 1:], sentences[:, 1:] + block.fuse(pixel_tokens, 2))


def test_weights_start_as_the_authors_do() -> None:
    torch.manual_seed(0)
    model = create_model("tnt_s_patch16_224", num_classes=5, depths=1)
    block = model.blocks[0]
    tables = [model.positions.table, model.word_positions.table, model.prefix.cls_token]
    for tensor in (*tables, model.fuse.proj.weight, block.inner.mixer.qk.weight):
        assert float(tensor.detach().std()) == pytest.approx(0.02, rel=0.15)
    assert model.fuse.proj.bias.eq(0).all() and block.fuse.proj.bias is None
    assert block.fuse.norm2.weight.eq(1).all() and block.fuse.norm2.bias.eq(0).all()
    spread = float(model.stem.conv.weight.detach().abs().max())
    assert spread == pytest.approx((3 * 7 * 7) ** -0.5, rel=0.05)  # torch's own rule


# Positions and layouts


def test_positions_of_sentences_are_resized_and_those_of_words_are_not() -> None:
    with torch.device("meta"):
        big = create_model("tnt_s_patch16_224", image_size=256)
    assert big.positions.table.shape == (1, 257, 384)
    assert big.word_positions.table.shape == (1, 16, 24)
    model, larger = small(), small(image_size=[24, 32])
    weights = to_checkpoint_format(model, "official")
    with pytest.raises(InvalidInputError, match=r"positions\.table is \(1, 13, 16\) here"):
        import_weights(larger, weights)
    import_weights(larger, weights, resize=(2, 2))
    assert larger.positions.table[:, 0].equal(model.positions.table[:, 0])
    assert larger.word_positions.table.equal(model.word_positions.table)
    x = torch.randn(1, 3, 24, 32)
    with torch.no_grad():
        assert larger(x).logits.isfinite().all()
        assert torch.allclose(larger(x).logits, model(x).logits, atol=1e-5)
    rows = model.positions.table[:, 1:].transpose(1, 2).unflatten(2, (2, 2))
    by_hand = resize_grid(rows, (3, 4), antialias=True).flatten(2).transpose(1, 2)
    assert larger.positions.table[:, 1:].equal(by_hand)


def test_the_names_of_squeeze_and_excitation_are_those_of_the_authors_code() -> None:
    names = {
        n.removeprefix("blocks.1.") for n in to_checkpoint_format(small(se_reduction=4), "official")
    }
    named = {f"se_layer.fc.{n}.{part}" for n in (0, 1, 3) for part in ("weight", "bias")}
    assert {name for name in names if name.startswith("se_layer")} == named


def test_every_form_goes_to_the_names_of_others_and_back() -> None:
    forms = {
        "current": ({}, {"official", "timm"}),
        "legacy": ({"legacy": True}, {"timm"}),
        "squeezed": ({"se_reduction": 4}, {"official"}),
    }
    for fields, layouts in forms.values():
        model, twin = small(**fields), small(**fields)
        assert set(model.state_dict_converters(model.config)) == layouts
        for layout in layouts:
            with torch.no_grad():
                for parameter in twin.parameters():
                    parameter.zero_()
            weights = to_checkpoint_format(model, layout)
            import_weights(twin, weights)
            own = model.state_dict()
            assert all(twin.state_dict()[name].equal(tensor) for name, tensor in own.items())
    weights = to_checkpoint_format(small(), "timm")
    assert weights["pixel_pos"].shape == (1, 4, 4, 4)
    assert "blocks.1.norm2_proj.bias" in weights and "norm1_proj.weight" in weights
    import_weights(
        small(), {**to_checkpoint_format(small(), "official"), "outer_tokens": torch.zeros(1)}
    )


def test_the_form_is_read_from_a_file(tmp_path: Path) -> None:
    fields = {"image_size": 16, "patch_size": 8, "inner_stride": 2, "inner_dim": 4, "depths": 2}
    fields |= {"hidden_size": 16, "inner_heads": 2, "num_heads": 2, "num_classes": 5}
    for legacy in (False, True):
        model = small(legacy=legacy)
        torch.save(to_checkpoint_format(model, "timm"), tmp_path / "tnt.pth")
        opened = create_model("tnt_s_patch16_224", checkpoint_path=tmp_path / "tnt.pth", **fields)
        assert opened.config.legacy is legacy
        assert opened.blocks[0].fuse.proj.weight.equal(model.blocks[0].fuse.proj.weight)
    weights = to_checkpoint_format(small(), "timm")
    with pytest.raises(InvalidInputError, match="have no place"):
        import_weights(small(legacy=True), weights)
    for part in ("weight", "bias"):
        del weights[f"blocks.1.norm2_proj.{part}"]
    torch.save(weights, tmp_path / "mixed.pth")
    with pytest.raises(
        InvalidInputError, match=r"mixes two forms of TNT: blocks\.0 .* blocks\.1 has none"
    ):
        create_model("tnt_s_patch16_224", checkpoint_path=tmp_path / "mixed.pth", **fields)


def test_a_sentence_is_made_of_words_in_order() -> None:
    pixel_tokens = torch.randn(6, 9, 4)
    for per_word in (False, True):
        part = PixelToPatch(4, 9, 8, per_word=per_word, last_norm=False)
        normed = part.norm1(pixel_tokens) if per_word else part.norm1(pixel_tokens.reshape(6, 36))
        by_hand = part.proj(normed.reshape(2, 3, 36))
        assert torch.allclose(part(pixel_tokens, 2), by_hand, atol=1e-6)


# Bad input


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"image_size": 20}, "images must be multiples of 8 pixels, not 20 x 20"),
        ({"inner_heads": 3}, "inner_heads 3 does not divide a width of 4"),
        ({"num_heads": 3}, "num_heads 3 does not divide a width of 16"),
        ({"inner_stride": 0}, "inner_stride must be at least 1, not 0"),
        ({"inner_stride": 3, "legacy": True}, "divides patch_size 8, not 3"),
        ({"inner_blocks": [0]}, "inner_blocks are counted from 1 to 2, not 0"),
        ({"inner_blocks": [1, 3]}, "inner_blocks are counted from 1 to 2, not 3"),
    ],
)
def test_impossible_structures_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        small(**fields)


def test_images_that_patches_do_not_fill_are_refused() -> None:
    with pytest.raises(
        InvalidInputError, match="images must be multiples of 8 pixels, not 16 x 20"
    ):
        small()(torch.zeros(1, 3, 16, 20))
