"""Parts that all vision models share: layouts, attention, norms, positions, drop path."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modwright.nn.block import Block, DropPath, drop_path_rates
from modwright.nn.channel_mixers.mlp import Mlp, ResidualDepthwiseConv
from modwright.nn.grid_positions import LearnedTable, resize_grid, resize_table, sinusoids
from modwright.nn.heads import ClassifierHead
from modwright.nn.layouts import call_in_layout, to_feature_map, to_tokens
from modwright.nn.norms2d import make_norm
from modwright.nn.token_mixers.pooling import DepthwiseConvMixer, Pooling
from modwright.nn.token_mixers.self_attention import STORAGE, SelfAttention, naive_attention


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_layouts_go_there_and_back(height: int, width: int, channels: int) -> None:
    x = torch.randn(2, channels, height, width)
    assert to_feature_map(to_tokens(x), (height, width)).equal(x)
    if width > 1:
        assert to_tokens(x)[:, 1].equal(x[:, :, 0, 1])  # row by row


def test_tokens_that_do_not_fill_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="6 tokens do not fill a grid of 2 x 4"):
        to_feature_map(torch.zeros(1, 6, 3), (2, 4))


@pytest.mark.parametrize(
    "part",
    [Pooling(3), DepthwiseConvMixer(8), SelfAttention(8, 2), ResidualDepthwiseConv(8)],
    ids=lambda part: type(part).__name__,
)
def test_a_part_gives_the_same_numbers_in_either_layout(part: nn.Module) -> None:
    x, spatial_shape = torch.randn(2, 8, 3, 5), (3, 5)
    from_map = call_in_layout(part, x, spatial_shape, "map")
    from_tokens = call_in_layout(part, to_tokens(x), spatial_shape, "tokens")
    assert (to_feature_map(from_tokens, spatial_shape) - from_map).abs().max() <= 1e-6


def test_mlps_of_both_layouts_hold_the_same_numbers() -> None:
    tokens, maps = Mlp(8, 16), Mlp(8, 16, layout="map")
    maps.load_state_dict(
        {n: t[:, :, None, None] if t.dim() == 2 else t for n, t in tokens.state_dict().items()}
    )
    x = torch.randn(2, 8, 3, 5)
    assert (tokens(to_tokens(x)) - to_tokens(maps(x))).abs().max() <= 1e-6


@pytest.mark.parametrize("storage", STORAGE)
def test_attention_is_the_same_however_it_is_stored(storage: str) -> None:
    fused, other = SelfAttention(12, 3), SelfAttention(12, 3, storage=storage)
    rows = dict(zip("qkv", range(0, 36, 12)))
    state = fused.state_dict()
    stored = {name: state[name] for name in ("proj.weight", "proj.bias")}
    for name in STORAGE[storage]:
        for leaf in ("weight", "bias"):
            pieces = [state[f"qkv.{leaf}"][rows[letter] : rows[letter] + 12] for letter in name]
            stored[f"{name}.{leaf}"] = torch.cat(pieces)
    other.load_state_dict(stored)
    x = torch.randn(2, 7, 12)
    assert (other(x) - fused(x)).abs().max() <= 1e-6


@pytest.mark.parametrize("scale", [None, 0.3])
def test_fast_attention_is_the_naive_one_forward_and_gradients(scale: float | None) -> None:
    part = SelfAttention(12, 3, scale=scale).double()
    x = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    fast = part(x)
    q, k, v = part.heads(x)
    naive = part.finish(naive_attention(q, k, v, part.scale).transpose(1, 2).flatten(2))
    assert torch.allclose(fast, naive, atol=1e-12)
    upstream = torch.randn_like(fast)
    one, two = (torch.autograd.grad(y, x, upstream, retain_graph=True)[0] for y in (fast, naive))
    assert torch.allclose(one, two, atol=1e-12)


def test_attention_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="5 heads do not divide a width of 12"):
        SelfAttention(12, 5)
    with pytest.raises(ValueError, match="unknown storage 'kv_q'; valid values: fused, q_kv"):
        SelfAttention(12, 3, storage="kv_q")


def test_channel_norm_is_layer_norm_at_each_place() -> None:
    on_map, on_tokens = make_norm("ln", 8, 1e-6, "map"), make_norm("ln", 8, 1e-6)
    with torch.no_grad():
        on_map.weight.normal_()
        on_map.bias.normal_()
    on_tokens.load_state_dict(on_map.state_dict())
    x = torch.randn(2, 8, 3, 5)
    assert (to_tokens(on_map(x)) - on_tokens(to_tokens(x))).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("name", "layout"), [("gn1", "tokens"), ("bn2d", "tokens"), ("rms", "map")]
)
def test_norms_say_which_layout_they_are_for(name: str, layout: str) -> None:
    with pytest.raises(ValueError, match=f"norm '{name}' is for"):
        make_norm(name, 8, layout=layout)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown norm 'layer'; valid values: ln, gn1"):
        make_norm("layer", 8)


def test_drop_path_keeps_the_mean_and_takes_whole_samples() -> None:
    drop = DropPath(0.25).train()
    kept = drop(torch.ones(4000, 3))
    assert set(kept.unique().tolist()) <= {0.0, torch.tensor(1 / 0.75).item()}
    assert kept.std(1).max() == 0
    assert abs(kept.mean().item() - 1) < 0.05
    assert drop.eval()(torch.ones(4)).equal(torch.ones(4))
    with pytest.raises(ValueError, match=r"between 0 and 1, not -0\.1"):
        DropPath(-0.1)


def test_drop_path_rates_reach_the_last_block_or_stop_before() -> None:
    flat = [*chain(*drop_path_rates(0.3, [1, 2, 1]))]
    assert flat == pytest.approx([0.0, 0.1, 0.2, 0.3])
    before = drop_path_rates(0.4, [2, 2], endpoint=False)
    assert [len(stage) for stage in before] == [2, 2]
    assert [*chain(*before)] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, [1]) == [[0.0]]


def test_a_block_is_its_formula() -> None:
    mixer, mlp = SelfAttention(8, 2), Mlp(8, 16)
    block = Block(8, mixer, mlp, lambda: nn.LayerNorm(8), layer_scale=0.5, scaled=True)
    with torch.no_grad():
        block.res1.alpha.fill_(0.7)
        block.res2.beta.fill_(1.3)
    x = torch.randn(2, 6, 8)
    y = 0.7 * x + 0.5 * mixer(block.norm1(x))
    assert torch.allclose(block(x, (2, 3)), y + 1.3 * 0.5 * mlp(block.norm2(y)), atol=1e-6)


def test_halves_of_a_block_can_be_left_out() -> None:
    x = torch.randn(1, 6, 8)
    assert Block(8, None, None, lambda: nn.LayerNorm(8))(x, (2, 3)).equal(x)
    only = Block(8, None, Mlp(8, 16), lambda: nn.LayerNorm(8))
    assert {name.partition(".")[0] for name, _ in only.named_parameters()} == {"norm2", "mlp"}


def test_positions_resize_the_places_and_leave_the_prefix() -> None:
    table = torch.randn(1, 2 + 12, 8)
    resized = resize_table(table, (3, 4), (6, 4), prefix=2)
    assert resized.shape == (1, 2 + 24, 8)
    assert resized[:, :2].equal(table[:, :2])
    assert resize_table(table, (3, 4), (3, 4), prefix=2).equal(table)
    flat = torch.full((1, 4, 3, 4), 2.5)
    assert torch.allclose(resize_grid(flat, (7, 5)), torch.full((1, 4, 7, 5), 2.5), atol=1e-5)
    with pytest.raises(ValueError, match="a table of 14 rows is not one of 0 and 3 x 4"):
        resize_table(table, (3, 4), (6, 4))


def test_positions_of_no_square_must_say_their_grid() -> None:
    positions = LearnedTable(8, (4, 4), prefix=1)
    assert positions.fit(torch.randn(1, 10, 8)).shape == (1, 17, 8)
    assert positions.fit(torch.randn(1, 7, 8), (2, 3)).shape == (1, 17, 8)
    with pytest.raises(ValueError, match="6 positions are no square grid"):
        positions.fit(torch.randn(1, 7, 8))


def test_sinusoids_are_their_formula() -> None:
    table = sinusoids(5, 6)[0]
    for position in range(5):
        for i in range(3):
            angle = torch.tensor(position / 10000 ** (2 * i / 6), dtype=torch.float64)
            assert abs(table[position, 2 * i] - angle.sin()) <= 1e-6
            assert abs(table[position, 2 * i + 1] - angle.cos()) <= 1e-6


def test_heads_pool_as_they_say() -> None:
    x = torch.randn(2, 5, 8)
    token = ClassifierHead(8, 3, pool="token", prefix=1)
    assert token(x).equal(token.fc(x[:, 0]))
    average = ClassifierHead(8, 3, prefix=1)
    assert torch.allclose(average(x), average.fc(x[:, 1:].mean(1)))
    assert ClassifierHead(8, 3, pool="")(torch.randn(2, 8, 4, 4)).shape == (2, 3, 4, 4)
    with pytest.raises(ValueError, match="unknown pool 'max'; valid values: 'avg', 'token', ''"):
        ClassifierHead(8, 3, pool="max")
    with pytest.raises(ValueError, match="needs a class token"):
        ClassifierHead(8, 3, pool="token")(torch.randn(2, 8, 4, 4))
