"""Every family's views: they read what its modules compute with, and write nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import batch_of, outputs, snapshot
from modwright.anatomy import Anatomy, Attention, HookPoint, Norm, Part
from modwright.anatomy.families import families, family_of
from modwright.core.errors import InvalidInputError, ModwrightError, UnsupportedArchitecture

OUTSIDE = {"bert": ("pooler.",), "vit": ("pooler.",)}
"""What no part stands for: heads on top that no edit concerns."""


def attention_of(model: Any, index: int = 1) -> Attention:
    found = Anatomy.of(model).blocks[index].attention
    assert found is not None
    return found


def tapped(model: Any, *hook_points: HookPoint) -> list[Tensor]:
    """What passes at some hook points during one forward pass."""
    found: dict[int, Tensor] = {}
    hooks = []
    for i, hook_point in enumerate(hook_points):

        def keep(
            module: Any, args: Any, kwargs: Any, out: Any, i: int = i, side: str = hook_point.side
        ) -> None:
            value = out if side == "output" else (args[0] if args else kwargs["hidden_states"])
            found[i] = (value[0] if isinstance(value, tuple) else value).detach()

        hooks.append(hook_point.module.register_forward_hook(keep, with_kwargs=True))
    outputs(model)
    for hook in hooks:
        hook.remove()
    return [found[i] for i in range(len(hook_points))]


def test_reading_and_writing_back_changes_no_bit(tiny: Any, preset: str) -> None:
    model = tiny.copy(preset)
    before, out = snapshot(model), outputs(model)
    anatomy = Anatomy.of(model)
    for address, part in anatomy.parts():
        for name, tensor in part.parameters().items():
            anatomy.write(f"{address}.{name}", tensor.clone())
    after = snapshot(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(outputs(model), out)


def test_every_parameter_belongs_to_one_part(tiny: Any, preset: str) -> None:
    check_parts_cover_the_model(tiny(preset))


def check_parts_cover_the_model(model: Any) -> None:
    anatomy = Anatomy.of(model)
    tensors = [t for _, part in anatomy.parts() for t in part.parameters().values()]
    outside = sum(
        p.numel()
        for name, p in model.named_parameters()
        if name.startswith(OUTSIDE.get(anatomy.family.name, ()))
    )
    tied = model.get_input_embeddings().weight.numel() if anatomy.is_tied else 0
    assert sum(t.numel() for t in tensors) - tied + outside == anatomy.num_parameters
    own = sum(part.num_parameters for part in anatomy.outer.values()) - tied
    assert sum(b.num_parameters for b in anatomy.blocks) + own + outside == anatomy.num_parameters
    stored = sum(p.numel() * p.element_size() for p in model.parameters())
    assert anatomy.num_bytes == stored


def test_sublayers_and_their_norms_make_up_the_block(tiny: Any, preset: str) -> None:
    for block in Anatomy.of(tiny(preset)).blocks:
        assert sum(part.num_parameters for _, part in block.sublayers()) == block.num_parameters


@pytest.mark.parametrize("role", ["q", "k", "v", "o"])
def test_a_slice_is_written_alone(tiny: Any, preset: str, role: str) -> None:
    model = tiny.copy(preset)
    attention = attention_of(model)
    before = {r: p.parameters() for r, p in attention.projections().items()}
    before = {r: {n: t.clone() for n, t in ts.items()} for r, ts in before.items()}
    everything = snapshot(model)
    for name, tensor in before[role].items():
        attention.write(f"{role}.{name}", tensor + 1)
    for other, projection in attention.projections().items():
        for name, tensor in projection.parameters().items():
            assert torch.equal(tensor, before[other][name] + (other == role)), (other, name)
    written = sum(t.numel() for t in before[role].values())
    changed = sum(int((t != everything[n]).sum()) for n, t in snapshot(model).items())
    assert changed == written


@pytest.mark.contract("B10")
def test_the_views_compute_what_the_module_computes(tiny: Any, preset: str) -> None:
    check_attention_views(tiny(preset))


def check_attention_views(model: Any) -> None:
    """Attention from q, k, v, o and the shape alone, on the module's own input."""
    attention = attention_of(model)
    shape = attention.shape
    x, out = tapped(model, attention.sublayer_input, attention.sublayer_output)
    batch = batch_of(model)
    visible = batch.get("attention_mask", torch.ones(x.shape[:2], dtype=torch.long)).bool()
    allowed = visible[:, None, None, :].expand(-1, 1, x.shape[1], -1)
    if shape.causal:
        allowed = allowed & torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    if shape.sliding_window is not None:
        # Of itself and those before it, a position sees so many.
        allowed = allowed & ~torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(
            -shape.sliding_window
        )
        assert shape.sliding_window < x.shape[1], "the window hides nothing"

    def project(weight: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.einsum("btd,hcd->bhtc", x, weight)
        return y if bias is None else y + bias.view(len(weight), 1, -1)

    q = project(attention.read_q(), attention.q.bias)
    k = project(attention.read_k(), attention.k.bias)
    v = project(attention.read_v(), attention.v.bias)
    for norm, tensor in ((attention.q_norm, "q"), (attention.k_norm, "k")):
        if norm is not None:
            scaled = torch.nn.functional.rms_norm(
                q if tensor == "q" else k,
                (shape.qk_head_dim,),
                norm.parameters()["weight"],
                norm.eps,
            )
            q, k = (scaled, k) if tensor == "q" else (q, scaled)
    if shape.rotary_dim:
        q, k = turn(model, x, q, shape.rotary_dim), turn(model, x, k, shape.rotary_dim)
    owner = attention.kv_of_head()
    scores = q @ k[:, owner].transpose(-1, -2) * shape.scaling
    weights = scores.masked_fill(~allowed, -1e30).softmax(-1)
    mixed = torch.einsum("bhtc,hcd->btd", weights @ v[:, owner], attention.read_o())
    if attention.o.bias is not None:
        mixed = mixed + attention.o.bias
    torch.testing.assert_close(mixed[visible], out[visible], atol=2e-5, rtol=1e-4)


def turn(model: Any, x: Tensor, heads: Tensor, rotary_dim: int) -> Tensor:
    """Rotary positions by complex numbers, from the definition."""
    parameters = model.config.rope_parameters
    speeds = parameters["rope_theta"] ** -(torch.arange(0, rotary_dim, 2) / rotary_dim)
    angle = torch.arange(x.shape[1])[:, None] * speeds
    half = rotary_dim // 2
    as_complex = torch.complex(heads[..., :half], heads[..., half:rotary_dim])
    turned = as_complex * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag, heads[..., rotary_dim:]), dim=-1)


def test_the_mlp_views_compute_what_the_module_computes(tiny: Any, dense_mlps: str) -> None:
    from transformers.activations import ACT2FN

    model = tiny(dense_mlps)
    mlp = Anatomy.of(model).blocks[1].mlp
    assert mlp is not None
    x, inner, out = tapped(model, mlp.sublayer_input, mlp.inner, mlp.sublayer_output)
    linear = torch.nn.functional.linear
    up = linear(x, mlp.up.weight, mlp.up.bias)
    act = ACT2FN[mlp.activation]
    between = act(up) if mlp.gate is None else act(linear(x, mlp.gate.weight, mlp.gate.bias)) * up
    assert between.shape[-1] == mlp.intermediate_size
    torch.testing.assert_close(between, inner, atol=1e-5, rtol=1e-4)
    result = linear(between, mlp.down.weight, mlp.down.bias)
    torch.testing.assert_close(result, out, atol=1e-5, rtol=1e-4)


def test_hook_points_follow_the_residual_stream(tiny: Any, preset: str) -> None:
    check_hook_points(tiny(preset))


def check_hook_points(model: Any) -> None:
    """h before a sublayer and what the sublayer adds make up h after it, token by token."""

    def seen_at(model: Any, *hook_points: HookPoint) -> list[Tensor]:
        return [seen.flatten(0, -2) for seen in tapped(model, *hook_points)]

    block = Anatomy.of(model).blocks[1]
    assert block.attention is not None and block.mlp is not None
    start, end = seen_at(model, block.resid_pre, block.resid_post)
    before, added = seen_at(model, block.attention.resid_pre, block.attention.sublayer_output)
    torch.testing.assert_close(before, start)
    middle, more = seen_at(model, block.mlp.resid_pre, block.mlp.sublayer_output)
    if block.layout == "pre":
        torch.testing.assert_close(before + added, middle)
        torch.testing.assert_close(middle + more, end)
    elif block.layout == "parallel":
        torch.testing.assert_close(middle, start)
        torch.testing.assert_close(start + added + more, end)
    else:
        hook_points = block.attention.resid_post, block.mlp.resid_post
        assert hook_points[0] is not None and hook_points[1] is not None
        torch.testing.assert_close(seen_at(model, hook_points[0])[0], middle)
        torch.testing.assert_close(seen_at(model, hook_points[1])[0], end)
        norm = block.norms["mlp_norm"].module
        torch.testing.assert_close(norm(middle + more).detach(), end)


@pytest.mark.contract("B2")
def test_shapes_are_those_of_the_config(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    anatomy = Anatomy.of(model)
    get = anatomy.family.get
    assert len(anatomy.blocks) == get("num_layers")
    for block in anatomy.blocks:
        attention, mlp = block.attention, block.mlp
        assert attention is not None and mlp is not None
        assert attention.num_heads == get("num_heads")
        assert attention.num_kv_heads == (get("num_kv_heads") or get("num_heads"))
        assert mlp.intermediate_size == get("intermediate_size")
        heads, width = attention.num_heads, attention.shape.qk_head_dim
        assert attention.read_q().shape == (heads, width, anatomy.hidden_size)
        assert attention.read_o().shape == (heads, attention.shape.v_head_dim, anatomy.hidden_size)
        assert attention.kv_of_head().tolist() == sorted(attention.kv_of_head().tolist())
        assert (attention.rotary_index() is None) == (attention.shape.rotary_dim == 0)


def test_norms_know_their_kind_and_epsilon(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    norms = [p for _, p in Anatomy.of(model).parts() if isinstance(p, Norm)]
    assert norms
    for norm in norms:
        weight = norm.parameters()["weight"]
        x = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0)) + 1
        centred = x - x.mean(-1, keepdim=True) if norm.centers else x
        scaled = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        expected = scaled * (weight + norm.offset) + norm.parameters().get("bias", 0)
        torch.testing.assert_close(norm.module(x).detach(), expected, atol=1e-5, rtol=1e-5)


def test_addresses_lead_to_their_parts(tiny: Any, preset: str) -> None:
    anatomy = Anatomy.of(tiny(preset))
    for address, part in anatomy.parts():
        assert isinstance(part, Part)
        assert part.address == address
        assert repr(anatomy.part(address)) == repr(part)
        assert len(repr(part)) < 120
    assert anatomy.block(0).address == "blocks.0"


def test_a_bare_backbone_has_the_same_blocks(tiny: Any, dense_mlps: str) -> None:
    whole = Anatomy.of(tiny(dense_mlps))
    bare = Anatomy.of(tiny(dense_mlps).base_model)
    assert "head" not in bare.outer
    assert [repr(b.attention) for b in bare.blocks] == [repr(b.attention) for b in whole.blocks]
    assert torch.equal(bare.blocks[2].mlp.up.weight, whole.blocks[2].mlp.up.weight)


# Refusals


def test_wrong_addresses_and_shapes_are_refused(tiny: Any, dense_mlps: str) -> None:
    model = tiny(dense_mlps)
    before = snapshot(model)
    anatomy = Anatomy.of(model)
    last = len(anatomy.blocks) - 1
    for index in (-1, last + 1):
        with pytest.raises(
            InvalidInputError, match=rf"no block {index}; the model has blocks 0 to {last}$"
        ):
            anatomy.block(index)
    with pytest.raises(
        InvalidInputError, match=r"unknown part 'blocks\.0\.mpl'.*did you mean 'blocks\.0\.mlp'"
    ):
        anatomy.part("blocks.0.mpl")
    with pytest.raises(InvalidInputError, match="unknown parameter address"):
        anatomy.write("nowhere.weight", torch.zeros(1))
    with pytest.raises(
        InvalidInputError, match=r"blocks\.0\.mlp: cannot write 'middle.*; it has .*up.*, .*down"
    ):
        anatomy.write("blocks.0.mlp.middle.weight", torch.zeros(1))
    with pytest.raises(
        InvalidInputError, match=r"blocks\.0\.mlp\.up has no 'wheight'; it has weight"
    ):
        anatomy.write("blocks.0.mlp.up.wheight", torch.zeros(1))
    with pytest.raises(
        InvalidInputError, match=r"blocks\.0\.attention\.q\.weight: shape \(2, 3\) where"
    ):
        anatomy.write("blocks.0.attention.q.weight", torch.zeros(2, 3))
    with pytest.raises(
        InvalidInputError, match=r"embed: cannot write 'weight' \(2, 3\); it has weight"
    ):
        anatomy.write("embed.weight", torch.zeros(2, 3))
    assert all(torch.equal(before[n], t) for n, t in snapshot(model).items())


def test_layers_that_share_a_module_are_refused(tiny: Any, preset: str) -> None:
    model = tiny.copy(preset)
    path = family_of(model.config, model).blocks_path(model)
    layers = model.get_submodule(path)
    layers[2] = layers[0]
    with pytest.raises(UnsupportedArchitecture, match="shared layers are not supported"):
        Anatomy.of(model)


def test_a_quantised_model_is_refused(tiny: Any, preset: str) -> None:
    model = tiny.copy(preset)
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(InvalidInputError, match="quantised"):
        Anatomy.of(model)
    del model.config.quantization_config
    model.is_quantized = True
    with pytest.raises(InvalidInputError, match="quantised"):
        Anatomy.of(model)


@pytest.mark.contract("B1", "H4")
def test_an_unknown_family_is_named_with_what_was_recognized() -> None:
    from transformers import OpenAIGPTConfig, OpenAIGPTModel

    model = OpenAIGPTModel(OpenAIGPTConfig(vocab_size=8, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(UnsupportedArchitecture) as refusal:
        Anatomy.of(model)
    said = str(refusal.value)
    assert "'openai-gpt'" in said
    assert "num_hidden_layers 1" in said and "hidden_size 8" in said
    assert all(name in said for name in families())
    assert "\n" not in said


def test_a_module_without_config_is_refused() -> None:
    with pytest.raises(UnsupportedArchitecture, match="Linear has no config"):
        Anatomy.of(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("flag", ["is_decoder", "add_cross_attention"])
def test_bert_is_an_encoder_without_cross_attention(tiny: Any, flag: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=f"{flag}=True is not supported"):
        family_of(tiny.config("tiny-bert", **{flag: True}))


def test_gpt2_with_cross_attention_is_refused(tiny: Any) -> None:
    with pytest.raises(UnsupportedArchitecture, match="cross-attention"):
        family_of(tiny.config("tiny-gpt2", add_cross_attention=True))


def test_every_refusal_is_one_line_and_exits_with_two() -> None:
    for kind in (InvalidInputError, UnsupportedArchitecture):
        assert issubclass(kind, ModwrightError)
        assert kind.exit_code == 2


# Layouts of the storage


@pytest.mark.contract("B4")
def test_gpt2_stores_the_three_maps_side_by_side(tiny: Any) -> None:
    model = tiny("tiny-gpt2")
    attention = attention_of(model)
    stored = model.transformer.h[1].attn.c_attn
    for i, role in enumerate("qkv"):
        projection = attention.projections()[role]
        assert torch.equal(projection.weight, stored.weight[:, 48 * i : 48 * (i + 1)].T)
        assert torch.equal(projection.bias, stored.bias[48 * i : 48 * (i + 1)])
        assert projection.weight.data_ptr() == stored.weight[:, 48 * i].data_ptr()


@pytest.mark.contract("B4")
def test_gpt_neox_stores_them_head_by_head(tiny: Any) -> None:
    model = tiny("tiny-gpt-neox")
    attention = attention_of(model)
    per_head = model.gpt_neox.layers[1].attention.query_key_value.weight.view(4, 3, 12, 48)
    for i, read in enumerate((attention.read_q, attention.read_k, attention.read_v)):
        assert torch.equal(read(), per_head[:, i])


@pytest.mark.parametrize(
    ("base", "changed"),
    [
        ("tiny-llama", {"num_key_value_heads": 1}),
        ("tiny-llama", {"num_key_value_heads": 6, "attention_bias": True, "mlp_bias": True}),
        ("tiny-llama", {"tie_word_embeddings": False, "head_dim": 10}),
        ("tiny-gpt-neox", {"use_parallel_residual": False}),
        ("tiny-gpt-neox", {"attention_bias": False, "tie_word_embeddings": True}),
        ("tiny-gpt2", {"n_inner": 40, "tie_word_embeddings": False}),
        ("tiny-gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("tiny-mistral", {"sliding_window": None}),
        ("tiny-qwen2-mixed", {"layer_types": None, "max_window_layers": 1}),
        ("tiny-qwen3", {"attention_bias": True, "head_dim": 12, "tie_word_embeddings": False}),
        ("tiny-gemma", {"num_key_value_heads": 4, "attention_bias": True}),
        ("tiny-opt", {"enable_bias": False, "word_embed_proj_dim": 32}),
        ("tiny-opt", {"_remove_final_layer_norm": True, "tie_word_embeddings": False}),
        ("tiny-opt-post", {"word_embed_proj_dim": 48, "activation_function": "gelu"}),
        ("tiny-vit", {"qkv_bias": False, "image_size": [16, 8], "num_channels": 1}),
    ],
)
def test_variants_of_a_family_hold_the_same_promises(
    tiny: Any, base: str, changed: dict[str, Any]
) -> None:
    model = tiny(base, **changed)
    check_parts_cover_the_model(model)
    check_attention_views(model)
    check_hook_points(model)
