"""SMT (arXiv 2307.08579): counts, modulation, local attention, folding, depths, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForImageClassification

from modwright.core.errors import InvalidInputError
from modwright.cost import forward_macs
from modwright.models import create_model, import_weights, to_checkpoint_format
from modwright.models.architectures.smt import SMTConfig, SMTForImageClassification
from modwright.models.reparameterize import reparameterize
from modwright.nn.block import LayerScale
from modwright.nn.channel_mixers.mlp import Mlp, ResidualDepthwiseConv
from modwright.nn.token_mixers.scale_aware_modulation import (
    MultiHeadMixedConv,
    ScaleAwareAggregation,
    ScaleAwareModulation,
    naive_aggregation,
)
from modwright.nn.token_mixers.self_attention import AttentionWithLocalConv, naive_local_attention

# parameters, MACs in billions with and without products of tokens with tokens
COUNTS: dict[str, tuple[int, float, float]] = {
    "smt_tiny": (11_506_536, 2.461, 2.380),
    "smt_small": (22_550_952, 4.839, 4.657),
    "smt_base": (32_037_352, 7.966, 7.686),
    "smt_large": (80_620_264, 17.907, 17.479),
}


def small(**fields: Any) -> SMTForImageClassification:
    torch.manual_seed(0)
    chosen = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 16, 32], "num_heads": 4}
    chosen |= {"mlp_ratios": 2, "num_labels": 5, "image_size": 64}
    return SMTForImageClassification(SMTConfig(**{**chosen, **fields})).eval()


def stir(module: nn.Module) -> Any:
    """Random parameters and statistics, so that nothing is near nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2.0)
    return module.eval()


# Counts


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_products_are_those_of_the_released_code(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    parameters, with_attention, without = COUNTS[name]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert forward_macs(model, 1, 3, 224, 224) / 1e9 == pytest.approx(with_attention, rel=1e-3)
    macs = forward_macs(model, 1, 3, 224, 224, attention=False)
    assert macs / 1e9 == pytest.approx(without, rel=1e-3)


def test_factors_per_channel_are_the_only_difference_of_layer_scale() -> None:
    with torch.device("meta"):
        model = create_model("smt_large")
    factors = sum(
        p.numel() for m in model.modules() if isinstance(m, LayerScale) for p in m.parameters()
    )
    assert factors == 80_620_264 - 80_589_544


def test_one_block_less_in_the_last_stage_of_small_is_nearer_to_the_table() -> None:
    with torch.device("meta"):
        model = create_model("smt_small", depths=[3, 4, 18, 1])
    assert sum(p.numel() for p in model.parameters()) == 20_432_808
    assert forward_macs(model, 1, 3, 224, 224) / 1e9 == pytest.approx(4.733, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "entries"), [("smt_tiny", 386), ("smt_small", 758), ("smt_base", 1112)]
)
def test_released_files_have_as_many_tensors(name: str, entries: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert len(to_checkpoint_format(model, "official")) == entries


def test_the_hybrid_takes_turns_in_the_last_stage_but_one() -> None:
    config = small(depths=[2, 1, 3, 2]).config
    assert [config.mixers_of(s) for s in range(4)] == [
        ["modulation"] * 2,
        ["modulation"],
        ["modulation", "attention", "modulation"],
        ["attention"] * 2,
    ]


def test_initial_numbers_are_those_of_the_recipe() -> None:
    model = small(hidden_sizes=[64, 64, 64, 64])
    conv = model.stages[1].downsample.conv
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    spread = model.stages[0].blocks[0].mlp.inside.conv.weight.detach()  # one channel per group
    assert float(spread.std()) == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert not conv.bias.any()
    assert float(model.stages[3].blocks[0].mixer.kv.weight.detach().std()) == pytest.approx(
        0.02, rel=0.1
    )


# Modulation


def test_aggregation_is_a_permutation_and_blocks_forward_and_backward() -> None:
    part = stir(ScaleAwareAggregation(12, 3))
    x = torch.randn(2, 12, 4, 5)
    found = _with_gradients(part, part, x)
    expected = _with_gradients(part, lambda y: naive_aggregation(part, y), x)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6, rtol=1e-5)
    contiguous = part.reduce(part.act(part.norm(part.expand(x))))  # heads not brought together
    assert not torch.allclose(part(x), contiguous, atol=1e-2)


def _with_gradients(part: nn.Module, function: Any, x: Tensor) -> list[Tensor]:
    """What a function of the part's parameters gives, and its gradients."""
    given = x.clone().requires_grad_()
    out = function(given)
    # a loss with a curve, so that gradients differ from place to place
    loss = out.tanh().square().mean()
    return [out.detach(), *torch.autograd.grad(loss, [given, *part.parameters()])]


def test_modulation_is_linear_in_its_values() -> None:
    part = stir(ScaleAwareModulation(8, 4))
    x = torch.randn(2, 30, 8)
    seen: list[Tensor] = []
    part.proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        part(x, (5, 6))
        part.v.weight.mul_(2)
        part.v.bias.mul_(2)
        part(x, (5, 6))
    assert seen[1].equal(2 * seen[0])


def test_folding_the_norm_changes_no_number() -> None:
    part = stir(ScaleAwareAggregation(8, 4))
    x = torch.randn(2, 8, 5, 6)
    with torch.no_grad():
        expected = part(x)
        fused = part.fuse()
        assert fused.norm is None
        assert torch.allclose(fused(x), expected, atol=1e-5)
        assert torch.allclose(naive_aggregation(fused, x), expected, atol=1e-5)


def test_each_head_sees_a_window_of_its_own_size() -> None:
    part = MultiHeadMixedConv(8, 4)
    x = torch.randn(1, 8, 15, 15, requires_grad=True)
    for head in range(4):
        own = slice(2 * head, 2 * head + 2)
        (gradient,) = torch.autograd.grad(part(x)[0, own, 7, 7].sum(), x)
        seen = gradient[0, own].ne(0)
        inside = slice(7 - 1 - head, 7 + 2 + head)
        assert seen[:, inside, inside].all()
        assert int(seen.sum()) == 2 * (3 + 2 * head) ** 2 == int(gradient.ne(0).sum())


def test_modulation_moves_with_the_image() -> None:
    part = stir(ScaleAwareModulation(8, 4))
    x = torch.randn(1, 8, 20, 20)

    def run(given: Tensor) -> Tensor:
        with torch.no_grad():
            return part(given.flatten(2).transpose(1, 2), (20, 20)).transpose(1, 2).view_as(given)

    moved = run(x.roll((2, 3), (2, 3)))[:, :, 7:-5, 8:-5]
    assert torch.allclose(moved, run(x).roll((2, 3), (2, 3))[:, :, 7:-5, 8:-5], atol=1e-5)


def test_products_of_modulation_grow_with_tokens_and_those_of_attention_faster() -> None:
    def macs(part: nn.Module, side: int) -> int:
        return forward_macs(_OnGrid(part, (side, side)), 1, side * side, 64)

    modulation, attention = ScaleAwareModulation(64, 4), AttentionWithLocalConv(64, 2)
    assert macs(modulation, 56) == 4 * macs(modulation, 28)
    assert macs(attention, 56) > 13 * macs(attention, 28)
    assert macs(attention, 56) > 17 * macs(modulation, 56)


class _OnGrid(nn.Module):
    """A part with its grid, so that it takes one tensor."""

    def __init__(self, part: nn.Module, spatial_shape: tuple[int, int]) -> None:
        super().__init__()
        self.part, self.spatial_shape = part, spatial_shape

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.part(x, self.spatial_shape)
        return out


def test_the_modulator_is_not_kept() -> None:
    part = ScaleAwareModulation(8, 4)
    part(torch.randn(1, 30, 8), (5, 6))
    kept = [
        name for m in part.modules() for name, value in vars(m).items() if isinstance(value, Tensor)
    ]
    assert not kept


# Attention and MLP


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_local_attention_is_its_naive_sum_forward_and_backward(kernel_size: int) -> None:
    part = stir(AttentionWithLocalConv(8, 2, kernel_size))
    x = torch.randn(2, 20, 8)
    found = _with_gradients(part, lambda y: part(y, (4, 5)), x)
    expected = _with_gradients(part, lambda y: naive_local_attention(part, y, (4, 5)), x)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6, rtol=1e-5)


def test_the_mlp_adds_its_convolution_before_the_activation() -> None:
    part = stir(Mlp(8, 16, inside=ResidualDepthwiseConv(16)))
    x = torch.randn(2, 20, 8)
    u = part.fc1(x).transpose(1, 2).view(2, 16, 4, 5)
    inner = F.gelu(u + part.inside.conv(u)).flatten(2).transpose(1, 2)
    assert torch.allclose(part(x, (4, 5)), part.fc2(inner), atol=1e-6)


# The model


@pytest.mark.parametrize("size", [(64, 96), (224, 224), (33, 47)])
def test_any_size_runs(size: tuple[int, int]) -> None:
    model = small()
    maps = model.forward_intermediates(torch.randn(1, 3, *size))
    assert [m.shape[1] for m in maps] == [8, 16, 16, 32]
    if size[0] % 32 == 0:
        assert [m.shape[2:] for m in maps] == [
            torch.Size(side // r for side in size) for r in (4, 8, 16, 32)
        ]


def test_training_reaches_every_parameter() -> None:
    model = small(layer_scale_init=1e-4).train()
    model(torch.randn(2, 3, 64, 64), torch.tensor([0, 3])).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_a_fused_model_gives_the_same_logits_and_is_saved(tmp_path: Path) -> None:
    model = stir(small())
    twin = reparameterize(model)
    assert not [m for m in twin.modules() if isinstance(m, nn.BatchNorm2d)]
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(twin(x).logits, model(x).logits, atol=1e-4, rtol=1e-4)
        twin.save_pretrained(tmp_path)
        again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
        assert again(x).logits.equal(twin(x).logits)


def test_a_file_says_how_deep_its_model_is(tmp_path: Path) -> None:
    narrow = {"hidden_sizes": [8, 16, 16, 32], "num_heads": 4, "mlp_ratios": 2, "stem_kernel": 3}
    source = stir(small(depths=[1, 2, 3, 1]))
    torch.save({"model": to_checkpoint_format(source, "official")}, tmp_path / "smt.pth")
    model = create_model(
        "smt_small", num_classes=5, checkpoint_path=tmp_path / "smt.pth", image_size=64, **narrow
    ).eval()
    assert model.config.depths == [1, 2, 3, 1]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert model(x).logits.equal(source(x).logits)
    with pytest.raises(InvalidInputError, match="have no place"):  # a depth that is said is kept
        create_model(
            "smt_small",
            num_classes=5,
            checkpoint_path=tmp_path / "smt.pth",
            depths=[1, 1, 1, 1],
            **narrow,
        )


def test_another_classifier_is_left_out_on_request() -> None:
    model, other = small(), small(num_labels=7)
    weights = to_checkpoint_format(model, "official")
    with pytest.raises(InvalidInputError, match=r"head\.fc\.weight is \(7, 32\) here"):
        import_weights(other, weights)
    import_weights(other, weights, new_classifier=True)
    assert other.stages[0].blocks[0].mixer.v.weight.equal(model.stages[0].blocks[0].mixer.v.weight)


# Bad input


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"modulation_heads": 3}, "modulation_heads 3 does not divide the width 8 of stage 0"),
        ({"num_heads": [-1, -1, 5, 4]}, "num_heads 5 does not divide the width 16"),
        ({"num_heads": [-1, -1, 4, -1]}, "num_heads -1 does not divide the width 32"),
        (
            {"token_mixers": ["modulation", "modulation", ["modulation"], "attention"]},
            "token_mixers has 1 names for the 2 blocks of stage 2",
        ),
        ({"token_mixers": ["modulation"] * 3}, "token_mixers has 3 entries for 4 stages"),
        (
            {"token_mixers": ["modulation", "sam", "modulation", "attention"]},
            "unknown token_mixers",
        ),
        ({"hidden_sizes": [8, 16]}, "hidden_sizes has 2 entries for 4 stages"),
        ({"stem_kernel": 4}, "stem_kernel must be odd, not 4"),
    ],
)
def test_impossible_structures_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        small(**fields)


def test_heads_of_a_stage_without_attention_are_not_looked_at() -> None:
    assert small(num_heads=[-1, -1, 4, 4])(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 5)


def test_bad_input_of_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide a width of 8"):
        MultiHeadMixedConv(8, 3)
    with pytest.raises(ValueError, match="3 heads do not divide a width of 8"):
        ScaleAwareAggregation(8, 3)
    with pytest.raises(ValueError, match="31 tokens do not fill a grid of 5 x 6"):
        ScaleAwareModulation(8, 4)(torch.zeros(1, 31, 8), (5, 6))
    with pytest.raises(ValueError, match="31 tokens do not fill a grid of 5 x 6"):
        AttentionWithLocalConv(8, 4)(torch.zeros(1, 31, 8), (5, 6))
    with pytest.raises(ValueError, match="needs the grid"):
        AttentionWithLocalConv(8, 4)(torch.zeros(1, 30, 8))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ScaleAwareAggregation(8, 4).train()(torch.zeros(1, 8, 1, 1))
    with pytest.raises(ValueError, match="training mode"):
        ScaleAwareAggregation(8, 4).train().fuse()
    with pytest.raises(InvalidInputError, match="at least 32 pixels"):
        small()(torch.zeros(1, 3, 31, 64))


def test_one_mixer_may_be_named_for_all_stages() -> None:
    fields = {"depths": [1, 1], "hidden_sizes": [16, 32], "num_heads": 2, "modulation_heads": 1}
    model = create_model("smt_tiny", token_mixers="attention", mlp_ratios=2, **fields)
    assert model.config.token_mixers == ["attention", "attention"]
