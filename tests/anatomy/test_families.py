"""What the newer families store, and where: each against its own modules and formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers import batch_of, edit, outputs, worst
from modwright.anatomy import Anatomy, Attention, Linear, Mlp, Norm, PatchEmbedding
from modwright.core.errors import InvalidInputError
from modwright.edits import keep_heads, remove, replace_attention


def attention_of(model: Any, index: int = 1) -> Attention:
    found = Anatomy.of(model).blocks[index].attention
    assert found is not None
    return found


def mlp_of(model: Any, index: int = 1) -> Mlp:
    found = Anatomy.of(model).blocks[index].mlp
    assert found is not None
    return found


# Windows


def windows(model: Any) -> list[int | None]:
    return [attention_of(model, i).shape.sliding_window for i in range(4)]


def test_a_window_is_that_of_the_layer(tiny: Any) -> None:
    assert windows(tiny("tiny-mistral")) == [5] * 4
    assert windows(tiny("tiny-mistral", sliding_window=None)) == [None] * 4
    assert windows(tiny("tiny-qwen2")) == windows(tiny("tiny-qwen3")) == [None] * 4
    assert windows(tiny("tiny-qwen2-mixed")) == [5, None, None, 5]


@pytest.mark.parametrize("name", ["tiny-mistral", "tiny-qwen2-mixed"])
def test_our_attention_keeps_the_window(tiny: Any, name: str) -> None:
    """The first token does not reach the last one's logits through one block with a window."""
    source = tiny(name, num_hidden_layers=1, layer_types=["sliding_attention"])
    attention = attention_of(source, 0)
    model = edit(source, keep_heads(attention, range(1, attention.num_heads))).model
    assert attention_of(model, 0).shape.sliding_window == 5
    ids = torch.arange(3, 15)[None]
    other = ids.clone()
    other[0, 0] = 90
    for kind in (source, model):
        with torch.no_grad():
            before, after = kind(ids).logits, kind(other).logits
        assert worst(before[:, 5:], after[:, 5:]) <= 1e-6
        assert worst(before[:, 4], after[:, 4]) > 1e-4


# Qwen


@pytest.mark.contract("A3")
def test_qwen2_has_biases_on_queries_keys_and_values_and_none_on_outputs(tiny: Any) -> None:
    attention = attention_of(tiny("tiny-qwen2"))
    assert attention.shape.biases == "qkv" and attention.o.bias is None
    kept = keep_heads(attention, [2, 3])
    model = edit(tiny("tiny-qwen2"), kept).model
    after = attention_of(model)
    assert torch.equal(after.q.bias, attention.q.bias.view(4, -1)[2:].flatten())
    assert torch.equal(after.k.bias, attention.k.bias.view(2, -1)[1:].flatten())
    assert torch.equal(after.v.bias, attention.v.bias.view(2, -1)[1:].flatten())


@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-qwen3", "tiny-mistral", "tiny-gemma"])
def test_fewer_heads_everywhere_are_a_plain_checkpoint(tiny: Any, name: str, tmp_path: Any) -> None:
    """The width of a head is stored, so that H times D need not be the hidden size."""
    import transformers

    source = tiny(name)
    changes = [keep_heads(attention_of(source, i), [0, 1]) for i in range(4)]
    applied = edit(source, sum(changes[1:], changes[0]))
    assert applied.plain
    applied.model.save_pretrained(tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(back) is type(source)
    assert back.config.head_dim == attention_of(source).shape.qk_head_dim
    assert back.config.num_attention_heads == 2 and back.config.num_key_value_heads == 1
    assert torch.equal(outputs(back), outputs(applied.model))


@pytest.mark.contract("B8")
def test_qwen3_normalizes_queries_and_keys_with_one_weight_for_all_heads(tiny: Any) -> None:
    model = tiny("tiny-qwen3")
    attention = attention_of(model)
    assert attention.q_norm is not None and attention.k_norm is not None
    stored = model.model.layers[1].self_attn
    assert attention.q_norm.module is stored.q_norm and attention.k_norm.module is stored.k_norm
    assert attention.shape.qk_norm_eps == stored.q_norm.variance_epsilon
    assert attention.q_norm.parameters()["weight"].shape == (16,)
    assert attention.num_heads * attention.shape.qk_head_dim == 64 != 48
    assert {"q_norm.weight", "k_norm.weight"} <= set(attention.parameters())
    ours = attention_of(edit(model, replace_attention(attention, v=attention.read_v() * 1.5)).model)
    assert torch.equal(ours.parameters()["k_norm.weight"], stored.k_norm.weight)


# Gemma


@pytest.mark.contract("B8")
def test_gemma_norms_multiply_by_one_more_than_they_store(tiny: Any) -> None:
    norms = [p for _, p in Anatomy.of(tiny("tiny-gemma")).parts() if isinstance(p, Norm)]
    assert len(norms) == 2 * 4 + 1
    assert all(norm.offset == 1.0 and norm.keeps_mean for norm in norms)
    assert all(
        norm.offset == 0.0
        for name in ("tiny-llama", "tiny-qwen3", "tiny-opt", "tiny-vit")
        for _, norm in Anatomy.of(tiny(name)).parts()
        if isinstance(norm, Norm)
    )


def test_gemma_scales_what_it_looks_up_and_the_scale_survives_an_edit(
    tiny: Any, tmp_path: Any
) -> None:
    """The scale is a buffer that no checkpoint holds; on the meta device it has no value."""
    import transformers

    source = tiny("tiny-gemma")
    model = edit(source, remove(attention_of(source, 2))).model
    model.save_pretrained(tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(3, 9)[None]
    for kind in (source, model, back):
        table = Anatomy.of(kind).outer["embed"].parameters()["weight"]
        seen = kind.get_input_embeddings()(ids)
        torch.testing.assert_close(seen.detach(), table[ids] * 48**0.5)


# OPT


def test_opt_keeps_its_mlp_right_in_the_layer(tiny: Any) -> None:
    model = tiny("tiny-opt")
    layer, mlp = model.model.decoder.layers[1], mlp_of(model)
    assert mlp.up.module is layer.fc1 and mlp.down.module is layer.fc2
    assert mlp.gate is None and mlp.activation == "relu"
    gone = edit(model, remove(mlp)).model.model.decoder.layers[1]
    assert not [*gone.fc1.parameters(), *gone.fc2.parameters(), *gone.final_layer_norm.parameters()]


def test_opt_counts_positions_from_two(tiny: Any) -> None:
    model = tiny("tiny-opt")
    table = Anatomy.of(model).outer["positions"].parameters()["weight"]
    assert table.shape == (256 + 2, 48)
    embed = Anatomy.of(model).outer["embed"].parameters()["weight"]
    with torch.no_grad():
        first = model(torch.tensor([[7, 9]]), output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(first[0], embed[[7, 9]] + table[[2, 3]])


def test_opt_projects_a_narrow_table_into_the_stream_and_back(tiny: Any) -> None:
    model = tiny("tiny-opt-post")
    anatomy = Anatomy.of(model)
    assert anatomy.hidden_size == 48 and anatomy.is_tied
    assert [anatomy.blocks[0].layout, Anatomy.of(tiny("tiny-opt")).blocks[0].layout] == [
        "post",
        "pre",
    ]
    into, out = anatomy.outer["project_in"], anatomy.outer["project_out"]
    assert isinstance(into, Linear) and isinstance(out, Linear)
    assert into.parameters()["weight"].shape == (48, 24)
    assert out.parameters()["weight"].shape == (24, 48)
    assert anatomy.outer["head"].parameters()["weight"].shape == (128, 24)
    assert "final_norm" not in anatomy.outer
    addresses = [address for address, _ in anatomy.parts()]
    assert addresses[:3] == ["embed", "positions", "project_in"]
    assert addresses[-2:] == ["project_out", "head"]
    assert list(Anatomy.of(tiny("tiny-opt")).outer) == ["embed", "positions", "final_norm", "head"]


@pytest.mark.parametrize("role", ["attention", "mlp"])
def test_a_post_norm_opt_may_lose_its_norm_too(tiny: Any, role: str) -> None:
    """Without ``drop_norm`` the block computes norm(h) there; with it, h."""
    source = tiny("tiny-opt-post")
    part = getattr(Anatomy.of(source).blocks[1], role)
    kept, dropped = edit(source, remove(part)), edit(source, remove(part, drop_norm=True))
    reference = tiny.copy("tiny-opt-post")
    layer = reference.model.decoder.layers[1]
    silent = layer.self_attn.out_proj if role == "attention" else layer.fc2
    with torch.no_grad():
        silent.weight.zero_()
        silent.bias.zero_()
    assert worst(outputs(kept.model), outputs(reference)) <= 1e-5
    name = "self_attn_layer_norm" if role == "attention" else "final_layer_norm"
    setattr(layer, name, torch.nn.Identity())
    assert worst(outputs(dropped.model), outputs(reference)) <= 1e-5
    assert worst(outputs(kept.model), outputs(dropped.model)) > 1e-3
    assert f"{role}_norm" in Anatomy.of(kept.model).blocks[1].norms
    assert f"{role}_norm" not in Anatomy.of(dropped.model).blocks[1].norms


def test_opt_without_parameters_in_its_norms_is_edited_too(tiny: Any) -> None:
    source = tiny("tiny-opt", layer_norm_elementwise_affine=False, enable_bias=False)
    anatomy = Anatomy.of(source)
    assert anatomy.blocks[0].norms["mlp_norm"].parameters() == {}
    model = edit(source, remove(attention_of(source, 0)) + remove(mlp_of(source, 2))).model
    assert Anatomy.of(model).num_parameters < anatomy.num_parameters


# ViT


def test_vit_reads_images_through_patches(tiny: Any) -> None:
    model = tiny("tiny-vit")
    anatomy = Anatomy.of(model)
    patches = anatomy.outer["embed"]
    assert isinstance(patches, PatchEmbedding) and patches.count == 16
    assert patches.parameters()["weight"].shape == (48, 3, 4, 4)
    assert set(anatomy.outer["positions"].parameters()) == {"cls_token", "position_embeddings"}
    assert anatomy.outer["positions"].num_parameters == 48 + 17 * 48
    assert not attention_of(model).shape.causal
    with torch.no_grad():
        hidden = model(**batch_of(model)).last_hidden_state
    assert hidden.shape == (2, 17, 48)


def test_a_vit_classifier_keeps_its_head(tiny: Any) -> None:
    source = tiny("tiny-vit", auto="AutoModelForImageClassification", num_labels=5)
    model = edit(source, remove(attention_of(source, 0))).model
    assert type(model).__name__ == "ModwrightViTForImageClassification"
    assert outputs(model).shape == (2, 5)
    assert model.classifier.weight is source.classifier.weight


def test_a_mask_token_belongs_to_the_positions(tiny: Any) -> None:
    model = tiny("tiny-vit", auto="AutoModelForMaskedImageModeling", encoder_stride=4)
    held = Anatomy.of(model).outer["positions"].parameters()
    assert set(held) == {"cls_token", "position_embeddings", "mask_token"}
    assert edit(model, remove(mlp_of(model, 1))).verification.ok


def test_an_attention_cannot_be_narrowed_below_nothing(tiny: Any) -> None:
    with pytest.raises(InvalidInputError, match="remove the part instead"):
        keep_heads(attention_of(tiny("tiny-vit")), [])
