"""MetaFormer (arXiv 2111.11418): counts, the pooling mixer, the peer, sizes, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PoolFormerConfig, PoolFormerForImageClassification

from modwright.core.errors import InvalidInputError
from modwright.models import create_model, import_weights, to_checkpoint_format
from modwright.models.architectures.metaformer import (
    VARIANTS,
    MetaFormerConfig,
    MetaFormerForImageClassification,
)
from modwright.nn.block import Block
from modwright.nn.channel_mixers.mlp import Mlp
from modwright.nn.norms2d import make_norm
from modwright.nn.token_mixers.pooling import Pooling

PARAMETERS = {
    "poolformer_s12": 11_915_176,
    "poolformer_s24": 21_388_968,
    "poolformer_s36": 30_862_760,
    "poolformer_m36": 56_172_520,
    "poolformer_m48": 73_473_448,
    "metaformer_id_s12": 11_915_176,
    "metaformer_pppa_s12_224": 14_038_440,
    "metaformer_ppaa_s12_224": 16_535_592,
    "metaformer_pppf_s12_224": 11_919_978,
    "metaformer_ppff_s12_224": 12_150_474,
}


def small(**fields: Any) -> MetaFormerForImageClassification:
    return create_model("poolformer_s12", num_classes=5, depths=[1, 1, 1, 1], **fields).eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_released_models(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_random_mixing_freezes_its_matrices() -> None:
    with torch.device("meta"):
        model = create_model("metaformer_random_s12_224")
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert frozen == 2 * 3136**2 + 2 * 784**2 + 6 * 196**2 + 2 * 49**2
    small_one = small(token_mixers=["random"] * 4, image_size=32, hidden_sizes=[8, 8, 8, 8])
    matrix = small_one.stages[0].blocks[0].mixer.matrix
    assert torch.allclose(matrix.sum(1), torch.ones(len(matrix)))


def test_logits_are_those_of_transformers_poolformer_both_ways() -> None:
    ours = small()
    theirs = PoolFormerForImageClassification(
        PoolFormerConfig(depths=[1, 1, 1, 1], num_labels=5)
    ).eval()
    images = torch.randn(2, 3, 64, 96)
    import_weights(ours, theirs.state_dict())
    with torch.no_grad():
        assert (ours(images).logits - theirs(images).logits).abs().max() <= 1e-6
    back = to_checkpoint_format(ours, "transformers")
    assert back.keys() == theirs.state_dict().keys()
    assert all(back[name].equal(tensor) for name, tensor in theirs.state_dict().items())


def test_pooling_gives_nothing_on_flat_maps_and_inside_ramps() -> None:
    mixer = Pooling(3)
    assert mixer(torch.full((1, 2, 5, 6), 3.0)).eq(0).all()
    ramp = torch.arange(7.0).expand(1, 1, 7, 7)
    assert mixer(ramp)[..., 1:-1, 1:-1].abs().max() <= 1e-6
    assert mixer(ramp)[..., 0].abs().min() > 0.1  # border places have fewer neighbors


@pytest.mark.parametrize("size", [1, 3, 5, 9])
@pytest.mark.parametrize("sides", [(1, 1), (2, 7), (8, 3), (14, 14)])
def test_means_by_axes_are_torchs_and_leave_the_map(size: int, sides: tuple[int, int]) -> None:
    for dtype, bound in ((torch.float64, 1e-14), (torch.float32, 1e-5), (torch.bfloat16, 0.0)):
        x = torch.randn(2, 3, *sides, dtype=dtype)
        for given in (x, x.transpose(2, 3).contiguous().transpose(2, 3)):
            before = given.clone()
            truth = Pooling(size).pool(given) - given
            assert (Pooling(size)(given) - truth).abs().max() <= bound
            assert given.equal(before)
    x.requires_grad_()
    out = Pooling(size)(x)
    assert out.grad_fn is not None
    with torch.no_grad():
        assert torch.allclose(Pooling(size)(x.float()), out.float(), atol=0.05)


def test_a_block_whose_branches_are_scaled_by_zero_is_the_identity() -> None:
    x = torch.randn(2, 8, 4, 4)

    def block(**more: Any) -> Block:
        mlp = Mlp(8, 16, layout="map")
        return Block(
            8, Pooling(), mlp, lambda: make_norm("gn1", 8, layout="map"), layout="map", **more
        )

    assert block(layer_scale=0.0)(x, (4, 4)).equal(x)
    assert block(drop_path=1.0).train()(x, (4, 4)).equal(x)
    assert not block(drop_path=1.0).eval()(x, (4, 4)).equal(x)


def test_norms_do_not_see_the_scale_of_what_they_norm() -> None:
    x = torch.randn(2, 8, 4, 4)
    for name in ("gn1", "ln"):
        norm = make_norm(name, 8, 1e-9, "map")
        assert torch.allclose(norm(5 * x), norm(x), atol=1e-5)
    per_place = torch.rand(2, 1, 4, 4) + 0.5
    assert torch.allclose(make_norm("ln", 8, 1e-9, "map")(per_place * x), norm(x), atol=1e-5)
    whole = make_norm("gn1", 8, 1e-9, "map")
    assert not torch.allclose(whole(per_place * x), whole(x), atol=1e-2)


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (224, 224)])
def test_any_size_runs(size: tuple[int, int]) -> None:
    found = small().forward_intermediates(torch.randn(1, 3, *size))
    assert [tuple(m.shape[2:]) for m in found] == [
        (size[0] // r, size[1] // r) for r in (4, 8, 16, 32)
    ]


def test_positions_are_resized_to_a_larger_image() -> None:
    fields = {k: v for k, v in VARIANTS["metaformer_ppaa_s12_224"].items() if k != "depths"}
    fields["layer_scale_init"] = 1e-5
    at_224 = MetaFormerForImageClassification(
        MetaFormerConfig(**fields, depths=[1, 1, 1, 1], num_labels=5)
    )
    at_256 = MetaFormerForImageClassification(
        MetaFormerConfig(**fields, depths=[1, 1, 1, 1], num_labels=5, image_size=256)
    )
    weights = to_checkpoint_format(at_224, "official")
    with pytest.raises(
        InvalidInputError, match=r"stages\.2\.positions\.table is \(1, 320, 16, 16\) here"
    ):
        import_weights(at_256, weights)
    import_weights(at_256, weights, resize=True)
    assert at_256.stages[2].positions.table.shape == (1, 320, 16, 16)
    images = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        resized = at_256.eval()(images).logits
        on_the_way = at_224.eval()(images).logits
    assert torch.allclose(resized, on_the_way, atol=1e-5)
    assert resized.isfinite().all()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"token_mixers": ["pool", "pol", "pool", "pool"]}, "unknown token_mixers 'pol'"),
        ({"hidden_sizes": [8, 16]}, "hidden_sizes has 2 entries for 4 stages"),
        ({"token_mixers": ["attention"] * 4, "attention_head_dim": 48}, "does not divide a width"),
    ],
)
def test_impossible_structures_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        small(**fields)


def test_even_pools_and_other_grids_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="pool_size must be odd, not 4"):
        small(pool_size=4)
    fixed = small(token_mixers=["pool", "pool", "pool", "spatial_fc"], image_size=64)
    with pytest.raises(ValueError, match="built for 4 positions, not for a grid of 3 x 3"):
        fixed(torch.zeros(1, 3, 96, 96))


def test_a_checkpoint_of_another_structure_is_refused_by_its_first_bad_name() -> None:
    weights = to_checkpoint_format(small(), "official")
    deeper = create_model("poolformer_s12", num_classes=5, depths=[1, 1, 2, 1])
    with pytest.raises(InvalidInputError, match=r"missing from the file, stages\.2\.blocks\.1"):
        import_weights(deeper, weights)
    weights["network.9.0.norm1.weight"] = torch.zeros(1)
    with pytest.raises(InvalidInputError, match=r"network\.9\.0\.norm1\.weight for one"):
        import_weights(small(), weights)
