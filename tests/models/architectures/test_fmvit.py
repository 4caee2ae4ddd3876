"""FMViT (arXiv 2311.05707): the exactness of every fold, the two forms of a model, refusals."""

from __future__ import annotations

import itertools
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForImageClassification

from models.tiny import TINY as SMALL
from modwright.core.errors import InvalidInputError, VerificationError
from modwright.cost import forward_macs
from modwright.models import create_model
from modwright.models.architectures.fmvit import FmvitConfig, FmvitForImageClassification
from modwright.models.reparameterize import reparameterize
from modwright.nn.block import Block
from modwright.nn.channel_mixers.mlp import Mlp
from modwright.nn.multi_group_conv import MultiGroupConv
from modwright.nn.reparameterize import (
    as_conv,
    fuse_conv_bn,
    fuse_preceding_affine,
    reparameterize_,
    scale_shift_of,
    sum_of,
)
from modwright.nn.stems.conv_stem import PooledProjection
from modwright.nn.token_mixers.pooling import DepthwiseConvMixer
from modwright.nn.token_mixers.reduced_attention import ReducedAttention, naive_reduced_attention

# name, fused -> parameters, multiply-accumulates at 224 pixels
COUNTS = {
    ("fmvit_nano", False): (2_121_672, 990_794_816),
    ("fmvit_nano", True): (1_377_992, 844_766_976),
    ("fmvit_nextvit_s_like", False): (51_946_024, 9_075_328_512),
    ("fmvit_nextvit_s_like", True): (31_733_768, 5_794_470_400),
}
TINY: dict[str, Any] = {**SMALL["fmvit"], "num_labels": 5}


def with_statistics(module: nn.Module, seed: int = 0) -> Any:
    """Gives every batch norm numbers as training would leave them; eval mode."""
    draws = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
            with torch.no_grad():
                norm.running_mean.normal_(0, 0.5, generator=draws)
                norm.running_var.uniform_(0.5, 2.0, generator=draws)
                norm.weight.uniform_(0.5, 1.5, generator=draws)
                norm.bias.normal_(0, 0.5, generator=draws)
    return module.eval()


def tiny(**fields: Any) -> FmvitForImageClassification:
    torch.manual_seed(0)
    model = FmvitForImageClassification(FmvitConfig(**{**TINY, **fields}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return with_statistics(model)


def norms(module: nn.Module) -> list[str]:
    return [n for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]


@pytest.mark.parametrize(("name", "fused"), COUNTS)
def test_counts(name: str, fused: bool) -> None:
    with torch.device("meta"):
        model = create_model(name, fused=fused)
    parameters, macs = COUNTS[name, fused]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert forward_macs(model, 1, 3, 224, 224) == macs
    assert bool(norms(model)) != fused


def test_the_fused_larger_variant_costs_what_next_vit_s_prints() -> None:
    parameters, macs = COUNTS["fmvit_nextvit_s_like", True]
    assert round(parameters / 1e6, 1) == 31.7
    assert round(macs / 1e9, 1) == 5.8


@st.composite
def convs(draw: st.DrawFn) -> MultiGroupConv:
    inputs, outputs = draw(st.sampled_from([16, 32, 48])), draw(st.sampled_from([16, 32, 48]))
    valid = [g for g in (1, 2, 4, 8, 16) if inputs % g == 0 and outputs % g == 0]
    branch = st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from(valid))
    branches = draw(st.lists(branch, min_size=1, max_size=4))
    return MultiGroupConv(inputs, outputs, branches, stride=draw(st.integers(1, 2)))


@given(convs(), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_sum_of_branches_is_one_convolution(conv: MultiGroupConv, seed: int) -> None:
    with_statistics(conv, seed)
    x = torch.randn(2, conv.convs[0].in_channels, 7, 6)
    fused = conv.fuse()
    with torch.no_grad():
        wanted = conv(x)  # of hundreds of terms in float32: as large as they, as far apart
        assert (fused(x) - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))
        conv.double()
        assert (conv.fuse()(x.double()) - conv(x.double())).abs().max() <= 1e-10


@pytest.mark.parametrize(("one", "other"), itertools.product([1, 2, 3, 4, 6, 12], repeat=2))
def test_every_pair_of_groups(one: int, other: int) -> None:
    parts = [nn.Conv2d(12, 24, 3, padding=1, groups=one), nn.Conv2d(12, 24, 1, groups=other)]
    whole = sum_of(parts)
    assert whole.groups == math.gcd(one, other)
    x = torch.randn(1, 12, 4, 4)
    assert (whole(x) - parts[0](x) - parts[1](x)).abs().max() <= 1e-5


def test_fused_branches_can_hold_more_parameters() -> None:
    conv = MultiGroupConv(64, 64, [(1, 1), (3, 2), (3, 4)]).eval()
    assert sum(p.numel() for p in conv.parameters()) == 32_256
    assert sum(p.numel() for p in conv.fuse().parameters()) == 36_928
    kept = MultiGroupConv(64, 64, [(3, 2), (3, 4)]).eval().fuse()
    assert kept.groups == 2  # an identity has as many groups as channels


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 12, 3, 2, groups=4), nn.Conv2d(8, 12, 1)])
def test_norms_fold_into_what_stands_beside_them(layer: nn.Conv2d) -> None:
    before, after = with_statistics(nn.BatchNorm2d(8)), with_statistics(nn.BatchNorm2d(12), 1)
    x = torch.randn(2, 8, 6, 5)
    folded = fuse_conv_bn(fuse_preceding_affine(scale_shift_of(before), layer), after)
    with torch.no_grad():
        assert (folded(x) - after(layer(before(x)))).abs().max() <= 1e-5
        assert (as_conv(before)(x) - before(x)).abs().max() <= 1e-6


def test_two_norms_around_a_pooling_fold_into_a_linear_map() -> None:
    first, second = with_statistics(nn.BatchNorm2d(8)), with_statistics(nn.BatchNorm2d(8), 1)
    layer, pool = nn.Linear(8, 4), nn.AvgPool2d(2)
    x = torch.randn(2, 8, 4, 6)
    folded = fuse_preceding_affine(scale_shift_of(first).then(scale_shift_of(second)), layer)
    with torch.no_grad():
        expected = layer(second(pool(first(x))).flatten(2).transpose(1, 2))
        assert (folded(pool(x).flatten(2).transpose(1, 2)) - expected).abs().max() <= 1e-5


def test_norms_fold_around_poolings_with_ragged_borders() -> None:
    part = with_statistics(PooledProjection(8, 12, 2))
    x = torch.randn(1, 8, 5, 7)
    with torch.no_grad():
        expected = part(x)
        assert (reparameterize_(part)(x) - expected).abs().max() <= 1e-5
    assert not norms(part)


@pytest.mark.parametrize("pool", ["square", "flat"])
@pytest.mark.parametrize("reduction", [1, 2])
def test_reduced_attention_is_its_naive_form(pool: str, reduction: int) -> None:
    part = with_statistics(ReducedAttention(16, 8, reduction=reduction, pool=pool)).double()
    x = torch.randn(2, 16, 4, 6, dtype=torch.float64)
    fast, slow = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = part(fast), naive_reduced_attention(part, slow)
    assert (found - expected).abs().max() <= 1e-10
    found.square().sum().backward()
    own = {n: p.grad.clone() for n, p in part.named_parameters()}
    part.zero_grad()
    expected.square().sum().backward()
    assert torch.allclose(fast.grad, slow.grad, atol=1e-9)
    for name, parameter in part.named_parameters():
        assert torch.allclose(own[name], parameter.grad, atol=1e-9), name


def test_pools_take_other_places() -> None:
    square = ReducedAttention(16, 8, reduction=2).eval()
    flat = ReducedAttention(16, 8, reduction=2, pool="flat").eval()
    flat.load_state_dict(square.state_dict())
    x = torch.randn(1, 16, 4, 8)
    assert square.reduced(x).shape == (1, 16, 2, 4) and flat.reduced(x).shape == (1, 16, 8, 1)
    assert not torch.allclose(square(x), flat(x))


@pytest.mark.parametrize("fields", [{}, {"frequency_groups": 2}, {"pool": "flat"}])
def test_a_fused_model_gives_the_same_logits(fields: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(**fields)
    model.save_pretrained(tmp_path / "trained")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "trained").eval()
    twin = reparameterize(model)
    assert not norms(twin) and norms(model) and not model.config.fused
    images = torch.randn(64, 3, 32, 32)
    with torch.no_grad():
        expected, found = model(images).logits, twin(images).logits
    assert expected.std() > 0.01
    assert (found - expected).abs().max() <= 1e-4
    assert found.argmax(1).equal(expected.argmax(1))
    twin.save_pretrained(tmp_path / "fused")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "fused").eval()
    with torch.no_grad():
        assert again(images).logits.equal(found)


def test_the_nano_model_fuses_and_its_classifier_can_still_be_replaced() -> None:
    torch.manual_seed(0)
    model = with_statistics(create_model("fmvit_nano", num_classes=10, image_size=64))
    twin = reparameterize(model)
    assert not norms(twin)
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        expected, found = model.forward_features(images), twin.forward_features(images)
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()
    twin.reset_classifier(3)
    assert twin(images).logits.shape == (4, 3)


# What moves or scales numbers without weights: heads are split, pools are flattened.
SHAPES = {"Reshape", "Transpose", "Split", "Squeeze", "Unsqueeze", "Slice", "Mul"}
LAYERS = {"Conv", "Gemm", "MatMul", "Softmax", "Relu", "AveragePool", "ReduceMean", "Add", "Concat"}


class LogitsAlone(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(pixel_values).logits
        return found


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["square", "flat"])
def test_a_fused_model_goes_to_onnx_as_plain_layers(pool: str) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    import onnxruntime

    model, images = tiny(pool=pool), torch.randn(2, 3, 32, 32)
    kinds = {}
    for form in (model, reparameterize(model)):
        program = torch.onnx.export(
            LogitsAlone(form).eval(), (images,), dynamo=True, verbose=False, optimize=True
        )
        assert program is not None
        proto = program.model_proto
        assert not proto.functions
        kinds[form.config.fused] = {node.op_type for node in proto.graph.node}
        session = onnxruntime.InferenceSession(proto.SerializeToString())
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            assert (torch.from_numpy(found) - form(images).logits).abs().max() <= 1e-4
    assert "BatchNormalization" in kinds[False]
    assert kinds[True] <= LAYERS | SHAPES, kinds[True] - LAYERS - SHAPES
    assert {"Conv", "Gemm", "Softmax", "Relu", "Concat"} <= kinds[True]


def test_fusing_in_double_precision_is_exact() -> None:
    model = tiny().double()
    twin = reparameterize(model, tolerance=1e-10)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        assert (twin(images).logits - model(images).logits).abs().max() <= 1e-10


def test_what_cannot_be_fused_is_refused() -> None:
    model = tiny()
    with pytest.raises(InvalidInputError, match="fused already"):
        reparameterize(reparameterize(model))
    with pytest.raises(InvalidInputError, match="training mode"):
        reparameterize(model.train())
    model.eval().stages[0].blocks[0].blocks[1].norm2.train()
    with pytest.raises(InvalidInputError, match="training mode"):
        reparameterize(model)
    model.eval().stem.norm0.running_var[0] = math.nan
    with pytest.raises(InvalidInputError, match="not finite"):
        reparameterize(model)
    other = create_model("poolformer_s12", depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8])
    with pytest.raises(InvalidInputError, match="has no fused form"):
        reparameterize(other.eval())
    with pytest.raises(VerificationError, match="logits are off by"):
        reparameterize(tiny(), tolerance=0.0)


def test_folds_that_are_not_exact_are_refused() -> None:
    norm = nn.BatchNorm2d(8)
    with pytest.raises(ValueError, match="training mode"):
        scale_shift_of(norm)
    affine = scale_shift_of(norm.eval())
    with pytest.raises(ValueError, match="padded convolution"):
        fuse_preceding_affine(affine, nn.Conv2d(8, 8, 3, padding=1))
    with pytest.raises(ValueError, match="keeps no statistics"):
        scale_shift_of(nn.BatchNorm2d(8, track_running_stats=False).eval())
    strided = [nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, 2)]
    with pytest.raises(ValueError, match=r"strides \(1, 1\) and \(2, 2\)"):
        sum_of(strided)
    with pytest.raises(ValueError, match="padded with zeros by half"):
        sum_of([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)])
    with pytest.raises(ValueError, match="other channels"):
        sum_of([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)])
    with pytest.raises(ValueError, match="must be folded first"):
        ReducedAttention(16, 8, reduction=2).eval().fuse_affine_(affine)


def test_a_norm_before_a_padded_mixer_becomes_a_layer_of_its_own() -> None:
    block = Block(
        8,
        DepthwiseConvMixer(8),
        Mlp(8, 16, layout="map"),
        lambda: nn.BatchNorm2d(8),
        layout="map",
    )
    with_statistics(block)
    x = torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        expected = block(x, (4, 4))
        reparameterize_(block)
        assert isinstance(block.norm1, nn.Conv2d) and isinstance(block.norm2, nn.Identity)
        assert (block(x, (4, 4)) - expected).abs().max() <= 1e-5


def test_dead_channels_are_told_and_folded_exactly() -> None:
    norm = nn.BatchNorm2d(4).eval()
    norm.running_var[1] = 1e-12
    with pytest.warns(UserWarning, match="1 of 4 channels"):
        folded = as_conv(norm)
    x = torch.randn(1, 4, 3, 3)
    assert torch.allclose(folded(x), norm(x), rtol=1e-5)
    norm.running_var[1] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_conv(norm)


def test_stochastic_depth_is_shared_out_in_mixing_blocks() -> None:
    model = tiny(drop_path_rate=0.4)
    mixing = model.stages[1].blocks[1]
    pair = mixing.parts[0]
    rates = [pair.low.blocks[0], pair.high.blocks[0], mixing.block]
    assert [round(part.drop_path.rate, 3) for part in rates] == [0.3, 0.1, 0.4]


def test_where_frequencies_are_mixed() -> None:
    config = FmvitConfig(
        depths=[3, 4, 10, 3], hidden_sizes=[96, 192, 384, 768], out_widths=[96, 256, 512, 1024]
    )
    found = [[b for b in range(d) if config.mixes(s, b)] for s, d in enumerate(config.depths)]
    assert found == [[], [3], [4, 9], [2]]
    assert [config.low_width(w) for w in (64, 128, 192, 256, 1024)] == [32, 96, 160, 192, 768]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hidden_sizes": [16]}, "hidden_sizes has 1 entries for 2 stages"),
        ({"hidden_sizes": [16, 20]}, "does not divide a width of 20"),
        ({"out_widths": [16, 8]}, "a mixing block of 8 channels"),
        ({"out_widths": [16, 40], "frequency_groups": 2}, "a mixing block of 40 channels"),
        ({"pool": "round"}, "unknown pool 'round'; valid values: square, flat"),
    ],
)
def test_impossible_structures_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        tiny(**fields)


def test_impossible_parts_and_images_are_refused() -> None:
    with pytest.raises(ValueError, match="3 groups do not divide 8 and 8 channels"):
        MultiGroupConv(8, 8, [(1, 3)])
    with pytest.raises(ValueError, match="kernels must be odd, not 2"):
        MultiGroupConv(8, 8, [(2, 1)])
    with pytest.raises(ValueError, match="no identity from 8 to 16"):
        MultiGroupConv(8, 16, [(1, 1)], identity=True)
    with pytest.raises(ValueError, match="at least one branch"):
        MultiGroupConv(8, 8, [])
    with pytest.raises(ValueError, match="heads of 32 channels do not fill a width of 48"):
        ReducedAttention(48)
    with pytest.raises(ValueError, match="5 x 4 has no whole squares of 2 x 2"):
        ReducedAttention(16, 8, reduction=2)(torch.zeros(1, 16, 5, 4))
    with pytest.raises(ValueError, match="15 positions have no whole runs of 4"):
        ReducedAttention(16, 8, reduction=2, pool="flat")(torch.zeros(1, 16, 5, 3))
    with pytest.raises(InvalidInputError, match="at least 32 pixels"):
        tiny()(torch.zeros(1, 3, 16, 32))
    with pytest.raises(InvalidInputError, match="multiples of 16 pixels, not 40 x 32"):
        tiny()(torch.zeros(1, 3, 40, 32))
    with pytest.raises(InvalidInputError, match="unknown model 'fmvit_nan'"):
        create_model("fmvit_nan")


def test_fault_A22_neurons_are_multiples_of_32_whatever_the_heads() -> None:
    from modwright.models.architectures.fmvit import hidden_width

    # (neurons, multiple) -> what _make_divisible of Next-ViT gives
    found = [hidden_width(n, 32) for n in (8, 48, 47, 40, 96, 113.6)]
    assert found == [32, 64, 32 + 32 * (32 < 0.9 * 47), 64, 96, 128]
    small = {
        "hidden_sizes": [16] * 4,
        "out_widths": [16, 32, 32, 32],
        "head_dim": 16,
        "conv_ratio": 3.0,
    }
    model = create_model("fmvit_nano", **small, num_classes=5)
    convs = [m for m in model.stages[0].blocks.modules() if type(m).__name__ == "Mlp"]
    assert convs[0].fc1.convs[0].out_channels == 64
    stored = model.config.to_dict()
    assert type(model.config).from_dict(stored).mlp_multiple == 32
    del stored["mlp_multiple"]  # as files of version 0.1
    assert type(model.config).from_dict(stored).mlp_multiple == 16
