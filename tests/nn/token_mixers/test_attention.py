"""Grouped attention against its naive truth, and every freedom that its shape gives."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modwright.nn import AttentionShape, GroupedAttention
from modwright.nn.token_mixers.attention import naive_attention, sdpa_attention

SHAPES = {
    "plain": AttentionShape(16, 4, 4, 4, 4, 0.5),
    "grouped": AttentionShape(16, 6, 2, 4, 4, 0.5, biases="qv"),
    "one-kv-head": AttentionShape(16, 4, 1, 4, 4, 0.5, biases="qkvo"),
    "narrow-values": AttentionShape(16, 4, 2, 6, 3, 0.4),
    "wide-values": AttentionShape(16, 4, 2, 2, 7, 0.4),
    "uneven-groups": AttentionShape(16, 5, 2, 4, 4, 0.5, kv_map=True, biases="k"),
    "rotary": AttentionShape(16, 4, 2, 8, 8, 0.3, rotary_dim=8),
    "partial-rotary": AttentionShape(16, 4, 2, 8, 8, 0.3, rotary_dim=4),
    "gathered-rotary": AttentionShape(16, 4, 2, 4, 8, 0.3, rotary_dim=8, rotary_gather=True),
    "normed": AttentionShape(16, 4, 2, 4, 4, 0.5, rotary_dim=4, qk_norm_eps=1e-6),
    "both-ways": AttentionShape(16, 4, 2, 4, 4, 0.5, causal=False),
    "mixed-only": AttentionShape(16, 4, 2, 4, 4, 0.5, project_out=False),
}


def angles(channels: int, length: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """cos and sin (1, t, r) as a model of the llama layout computes them."""
    speeds = 100.0 ** -(torch.arange(0, channels, 2) / channels)
    turned = torch.arange(start, start + length)[:, None] * speeds
    both = torch.cat((turned, turned), dim=-1)[None]
    return both.cos(), both.sin()


def attention(shape: AttentionShape, attend: Any = sdpa_attention, seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        part = GroupedAttention(shape, attend)
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.normal_(0.2 if parameter.ndim == 1 else 0.0, 0.5)
    return part.eval()


def twin(part: GroupedAttention, shape: AttentionShape) -> Any:
    """Another attention with the same weights, as far as shapes agree."""
    other = attention(shape, part.attend)
    other.load_state_dict(part.state_dict(), strict=False)
    return other


def stream(length: int = 6, batch: int = 2, width: int = 16) -> Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(1))


def run(part: Any, x: Tensor, **inputs: Any) -> Tensor:
    if part.shape.rotary_dim and "position_embeddings" not in inputs:
        inputs["position_embeddings"] = angles(part.shape.rotary_dim, x.shape[1])
    out: Tensor = part(hidden_states=x, **inputs)[0]
    return out


def masks(length: int = 6) -> dict[str, Tensor | None]:
    visible = torch.ones(length, length, dtype=torch.bool).tril()[None, None].repeat(2, 1, 1, 1)
    padded = visible.clone()
    padded[1, :, :, :2] = False
    padded[1, :, range(2), range(2)] = True  # a row that sees nothing has no defined result
    floats = torch.zeros(padded.shape).masked_fill(~padded, torch.finfo(torch.float32).min)
    biased = floats + torch.randn(2, 1, length, length, generator=torch.Generator().manual_seed(3))
    return {
        "none": None,
        "bool": visible,
        "left-padded": padded,
        "additive": floats,
        "bias": biased,
    }


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("name", SHAPES)
def test_fast_path_is_the_naive_truth_forward_and_backward(name: str, mask: str) -> None:
    fast = attention(SHAPES[name], sdpa_attention)
    slow = attention(SHAPES[name], naive_attention)
    grads = []
    results = []
    for part in (fast, slow):
        x = stream().requires_grad_()
        out = run(part, x, attention_mask=masks()[mask])
        weighted = out * torch.linspace(-1, 1, out.numel()).view_as(out)
        weighted.sum().backward()
        results.append(out)
        grads.append({"input": x.grad, **{n: p.grad for n, p in part.named_parameters()}})
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)
    assert grads[0].keys() == grads[1].keys()
    for key, gradient in grads[0].items():
        assert gradient is not None, key
        torch.testing.assert_close(gradient, grads[1][key], atol=1e-4, rtol=1e-4, msg=key)


@pytest.mark.parametrize("attend", [naive_attention, sdpa_attention])
@pytest.mark.parametrize("name", ["grouped", "gathered-rotary", "uneven-groups"])
def test_later_positions_are_hidden_only_when_the_shape_says_so(name: str, attend: Any) -> None:
    for causal in (True, False):
        part = attention(replace(SHAPES[name], causal=causal), attend)
        x = stream()
        changed = x.clone()
        changed[:, -1] += 1
        moved = (run(part, x) - run(part, changed))[:, :-1].abs().max()
        assert (moved == 0) == causal


def test_left_padding_has_no_influence() -> None:
    part = attention(SHAPES["grouped"])
    x = stream()
    other = x.clone()
    other[1, :2] = 7.0
    mask = masks()["left-padded"]
    a, b = run(part, x, attention_mask=mask), run(part, other, attention_mask=mask)
    assert torch.equal(a[0], b[0])
    torch.testing.assert_close(a[1, 2:], b[1, 2:])
    assert not torch.allclose(a[1, :2], b[1, :2])


@pytest.mark.parametrize("rotary_dim", [8, 4])
def test_gathered_rotary_is_the_dense_attention_without_those_pairs(rotary_dim: int) -> None:
    dense_shape = AttentionShape(16, 4, 2, 8, 8, 0.3, rotary_dim=rotary_dim, biases="qk")
    dense = attention(dense_shape)
    half, plain = rotary_dim // 2, (8 - rotary_dim) // 2
    pairs = [(j, j + half) for j in range(half)]
    pairs += [(rotary_dim + j, rotary_dim + plain + j) for j in range(plain)]
    # Each key/value head keeps pairs of its own choice.
    chosen = [[pairs[0], pairs[3]], [pairs[2], pairs[1]]]
    kept = torch.tensor([[a for a, _ in own] + [b for _, b in own] for own in chosen])  # (K, D')
    small_shape = replace(dense_shape, qk_head_dim=4, rotary_gather=True)
    small = attention(small_shape)
    with torch.no_grad():
        for role, heads in (("q_proj", 4), ("k_proj", 2)):
            owner = torch.arange(heads) // (heads // 2)
            for name in ("weight", "bias"):
                full = getattr(getattr(dense, role), name).view(heads, 8, -1)
                rows = torch.stack([full[h][kept[owner[h]]] for h in range(heads)])
                stored = getattr(getattr(small, role), name)
                stored.copy_(rows.view_as(stored))
                zeroed = torch.zeros_like(full)
                for h in range(heads):
                    zeroed[h, kept[owner[h]]] = full[h, kept[owner[h]]]
                full.copy_(zeroed)
        small.v_proj.load_state_dict(dense.v_proj.state_dict())
        small.o_proj.load_state_dict(dense.o_proj.state_dict())
        small.rotary_index.copy_(kept.clamp(max=rotary_dim))
    x = stream()
    assert (run(small, x) - run(dense, x)).abs().max() <= 1e-5


def test_gathering_all_pairs_in_order_changes_nothing() -> None:
    plain = attention(SHAPES["rotary"])
    gathered = twin(plain, replace(plain.shape, rotary_gather=True))
    torch.testing.assert_close(run(gathered, stream()), run(plain, stream()))


def test_uneven_groups_are_repeated_key_value_heads() -> None:
    owner = torch.tensor([1, 0, 0, 1, 0])
    uneven = attention(SHAPES["uneven-groups"])
    uneven.kv_index.copy_(owner)
    full = attention(replace(uneven.shape, num_kv_heads=5, kv_map=False))
    with torch.no_grad():
        full.q_proj.load_state_dict(uneven.q_proj.state_dict())
        full.o_proj.load_state_dict(uneven.o_proj.state_dict())
        for role in ("k_proj", "v_proj"):
            for name, stored in getattr(full, role).named_parameters():
                few = getattr(getattr(uneven, role), name).view(2, 4, -1)
                stored.copy_(few[owner].reshape(stored.shape))
    torch.testing.assert_close(run(uneven, stream()), run(full, stream()))


def test_uneven_groups_turn_queries_like_their_keys() -> None:
    shape = AttentionShape(16, 3, 2, 4, 4, 0.5, rotary_dim=8, rotary_gather=True, kv_map=True)
    uneven = attention(shape)
    owner, index = torch.tensor([0, 1, 1]), torch.tensor([[0, 1, 4, 5], [3, 2, 7, 6]])
    uneven.kv_index.copy_(owner)
    uneven.rotary_index.copy_(index)
    full = attention(replace(shape, num_kv_heads=3, kv_map=False))
    with torch.no_grad():
        full.q_proj.load_state_dict(uneven.q_proj.state_dict())
        full.o_proj.load_state_dict(uneven.o_proj.state_dict())
        for role in ("k_proj", "v_proj"):
            few = getattr(uneven, role).weight.view(2, 4, -1)
            getattr(full, role).weight.copy_(few[owner].flatten(0, 1))
        full.rotary_index.copy_(index[owner])
    torch.testing.assert_close(run(uneven, stream()), run(full, stream()))


def test_the_window_reaches_the_attention_function() -> None:
    told: dict[str, Any] = {}

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> Any:
        told.update(kwargs)
        return naive_attention(module, q, k, v, mask, **kwargs)

    run(attention(replace(SHAPES["grouped"], sliding_window=3), attend), stream())
    assert told["sliding_window"] == 3
    told.clear()
    run(attention(SHAPES["grouped"], attend), stream())
    assert "sliding_window" not in told


class ListCache:
    """The part of a transformers cache that attention uses."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, k: Tensor, v: Tensor, slot: int) -> tuple[Tensor, Tensor]:
        if slot in self.seen:
            k = torch.cat((self.seen[slot][0], k), dim=2)
            v = torch.cat((self.seen[slot][1], v), dim=2)
        self.seen[slot] = (k, v)
        return k, v


@pytest.mark.parametrize("word", ["cache", "past_key_values", "layer_past"])
@pytest.mark.parametrize("name", ["narrow-values", "gathered-rotary", "uneven-groups"])
@pytest.mark.parametrize("attend", [naive_attention, sdpa_attention])
def test_decoding_in_chunks_through_a_cache_is_the_whole(name: str, word: str, attend: Any) -> None:
    part = attention(SHAPES[name], attend)
    part.layer_idx = 3
    x, cache, pieces = stream(), ListCache(), []
    for start, stop in ((0, 3), (3, 5), (5, 6)):
        positions = angles(part.shape.rotary_dim or 2, stop - start, start)
        pieces.append(
            run(
                part,
                x[:, start:stop],
                position_embeddings=positions,
                **{word: cache},
                use_cache=True,
            )
        )
    torch.testing.assert_close(torch.cat(pieces, dim=1), run(part, x), atol=1e-5, rtol=1e-5)
    keys, values = cache.seen[3]
    assert keys.shape == (2, part.shape.num_kv_heads, 6, part.shape.qk_head_dim)
    assert values.shape == (2, part.shape.num_kv_heads, 6, part.shape.v_head_dim)


def test_dropout_acts_in_training_only() -> None:
    shape = replace(SHAPES["grouped"], dropout=0.5, output_dropout=0.5)
    for attend in (naive_attention, sdpa_attention):
        part = attention(shape, attend)
        plain = twin(part, SHAPES["grouped"])
        assert torch.equal(run(part, stream()), run(plain, stream()))
        part.train()
        assert not torch.equal(run(part, stream()), run(plain, stream()))


@pytest.mark.contract("K3")
def test_a_call_that_is_not_understood_is_refused() -> None:
    part = attention(SHAPES["rotary"])
    with pytest.raises(ValueError, match="position_embeddings"):
        part(stream())
    with pytest.raises(TypeError, match="by keyword"):
        part(stream(), None, None)
    with pytest.raises(TypeError, match="by keyword"):
        part(stream(), angles(part.shape.rotary_dim, 6))


@pytest.mark.contract("K3")
def test_the_mask_may_be_given_by_place() -> None:
    """As ViT's blocks of transformers do."""
    part = attention(SHAPES["plain"])
    mask = masks()["bias"]
    given, named = part(stream(), mask)[0], part(stream(), attention_mask=mask)[0]
    assert torch.equal(given, named)
    assert not torch.equal(given, part(stream())[0])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_heads": 5}, "5 query heads do not divide over 2"),
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"num_kv_heads": 0}, "num_kv_heads must be at least 1"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"v_head_dim": 0}, "v_head_dim must be at least 1"),
        ({"qk_head_dim": -1}, "qk_head_dim must be at least 1"),
        ({"qk_head_dim": 3, "rotary_dim": 4, "rotary_gather": True}, "come in pairs"),
    ],
)
def test_invalid_shapes_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SHAPES["grouped"], **changed)


@st.composite
def shapes(draw: st.DrawFn) -> AttentionShape:
    kv, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kv_map = draw(st.booleans())
    heads = draw(st.integers(kv, 6)) if kv_map else kv * groups
    gather = draw(st.booleans())
    turned = 2 * draw(st.integers(1, 3))
    width = 2 * draw(st.integers(1, 4))
    rotary = draw(st.sampled_from((0, turned))) if not gather else turned
    return AttentionShape(
        hidden_size=draw(st.integers(1, 12)),
        num_heads=heads,
        num_kv_heads=kv,
        qk_head_dim=width if gather else max(width, rotary),
        v_head_dim=draw(st.integers(1, 5)),
        scaling=draw(st.floats(0.1, 2.0)),
        rotary_dim=rotary,
        rotary_gather=gather,
        kv_map=kv_map,
        biases="".join(draw(st.lists(st.sampled_from("qkvo"), unique=True))),
        qk_norm_eps=draw(st.sampled_from((None, 1e-6))),
        causal=draw(st.booleans()),
        project_out=draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(shape=shapes(), length=st.integers(1, 4))
def test_any_valid_shape_gives_its_width_and_survives_json(
    shape: AttentionShape, length: int
) -> None:
    assert AttentionShape(**json.loads(json.dumps(shape.to_dict()))) == shape
    width = shape.hidden_size if shape.project_out else shape.num_heads * shape.v_head_dim
    x = stream(length, width=shape.hidden_size)
    out = run(attention(shape), x)
    assert out.shape == (2, length, width)
    torch.testing.assert_close(out, run(attention(shape, naive_attention), x), atol=1e-4, rtol=1e-4)


def test_json_of_a_shape_holds_only_what_is_not_default() -> None:
    assert SHAPES["plain"].to_dict() == {
        "hidden_size": 16,
        "num_heads": 4,
        "num_kv_heads": 4,
        "qk_head_dim": 4,
        "v_head_dim": 4,
        "scaling": 0.5,
    }
