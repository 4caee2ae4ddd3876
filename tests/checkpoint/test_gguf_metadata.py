"""A GGUF file opens as the function that it says, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from modwright import checkpoint
from modwright.core.errors import CheckpointError

from .tiny import write_gguf

SIZES = {
    "vocab_size": 8,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def pieces(width: int = 64, heads: int = 2, groups: int = 1, mlp: int = 96) -> dict[str, Any]:
    head = width // heads
    return {
        "token_embd.weight": (8, width),
        "output_norm.weight": (width,),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.attn_q.weight": (width, width),
        "blk.0.attn_k.weight": (groups * head, width),
        "blk.0.attn_v.weight": (groups * head, width),
        "blk.0.attn_output.weight": (width, width),
        "blk.0.ffn_norm.weight": (width,),
        "blk.0.ffn_gate.weight": (mlp, width),
        "blk.0.ffn_up.weight": (mlp, width),
        "blk.0.ffn_down.weight": (width, mlp),
    }


def write(
    folder: Path,
    architecture: str = "llama",
    values: dict[str, np.ndarray] | None = None,
    tensors: dict[str, Any] | None = None,
    **changed: Any,
) -> Path:
    settings = {
        "block_count": 1,
        "context_length": 256,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 500000.0,
    }
    keys = {f"{architecture}.{key}": value for key, value in settings.items()}
    keys |= {name.replace("__", "."): value for name, value in changed.items()}
    shapes = pieces() | (tensors or {}) | {n: v.shape for n, v in (values or {}).items()}
    return write_gguf(folder / "tiny.gguf", architecture, keys, shapes, values=values)


def rotary_factors(settings: dict[str, Any], head_dim: int = 32) -> np.ndarray:
    """As llama.cpp's converter writes them."""
    config = transformers.LlamaConfig(**SIZES, head_dim=head_dim, rope_parameters=settings)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, torch.device("cpu"))
    usual = settings["rope_theta"] ** (-np.arange(head_dim // 2) / (head_dim // 2))
    return (usual / scaled.double().numpy()).astype(np.float32)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"factor": 32.0},
        {"rope_theta": 10000.0, "factor": 16.0},
        {"high_freq_factor": 8.0, "original_max_position_embeddings": 1024, "rope_theta": 10000.0},
        {"rope_type": "linear", "factor": 2.0},
    ],
    ids=["llama-3.1", "llama-3.2", "other-base", "other-bounds", "linear"],
)
def test_fault_A6_rotary_factors_are_read(changed: dict[str, Any], tmp_path: Path) -> None:
    settings = LLAMA3 | changed
    factors = rotary_factors(settings)
    file = write(
        tmp_path,
        values={"rope_freqs.weight": factors},
        llama__rope__freq_base=settings["rope_theta"],
    )
    opened = checkpoint.open(file)
    read = opened.model.config.rope_parameters
    assert read["rope_type"] == settings["rope_type"]
    frequencies = opened.model.model.rotary_emb.inv_freq
    usual = settings["rope_theta"] ** (-np.arange(16) / 16)
    np.testing.assert_allclose(frequencies.numpy() * factors, usual, rtol=1e-5)
    assert opened.unexpected_keys == ()
    again = checkpoint.open(opened.save(tmp_path / "out"))
    assert torch.equal(again.model.model.rotary_emb.inv_freq, frequencies)


def test_fault_A6_rotary_factors_of_one_change_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, values={"rope_freqs.weight": np.ones(16, np.float32)})
    assert checkpoint.open(file).model.config.rope_parameters["rope_type"] == "default"


def test_fault_A6_rotary_factors_of_no_known_scaling_are_refused(tmp_path: Path) -> None:
    odd = np.linspace(1, 3, 16, dtype=np.float32)
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight divides .* by 1 to 3, which no"):
        checkpoint.open(write(tmp_path, values={"rope_freqs.weight": odd}))


def test_fault_A6_linear_scaling_is_read(tmp_path: Path) -> None:
    file = write(tmp_path, llama__rope__scaling__type="linear", llama__rope__scaling__factor=4.0)
    opened = checkpoint.open(file)
    assert opened.model.config.rope_parameters["rope_type"] == "linear"
    np.testing.assert_allclose(opened.model.model.rotary_emb.inv_freq[0], 0.25)


UNREAD: list[tuple[str, str, Any]] = [
    ("llama", "rope.scaling.type", "yarn"),
    ("llama", "rope.dimension_count_swa", 16),
    ("llama", "attention.key_length", 48),
    ("llama", "attention.sliding_window", 16),
    ("llama", "attention.causal", False),
    ("llama", "attention.scale", 0.5),
    ("llama", "attention.clamp_kqv", 8.0),
    ("llama", "logit_scale", 0.25),
    ("llama", "residual_scale", 0.22),
    ("llama", "expert_count", 4),
    ("llama", "a_key_of_tomorrow", 7),
    ("qwen2", "rope.scaling.factor", 4.0),
    ("qwen2", "rope.dimension_count", 16),
    ("qwen2", "attention.sliding_window", 16),
    ("qwen3", "final_logit_softcapping", 30.0),
]


@pytest.mark.parametrize(("architecture", "key", "value"), UNREAD)
def test_fault_A6_keys_that_are_not_read_are_refused_by_name(
    architecture: str, key: str, value: Any, tmp_path: Path
) -> None:
    if (architecture, key) == ("qwen2", "rope.scaling.factor"):
        changed = {"qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.factor": value}
    else:
        changed = {f"{architecture}.{key}": value}
    file = write(tmp_path, architecture, **changed)
    if key == "attention.key_length":
        with pytest.raises(CheckpointError, match="do not fit the config"):
            checkpoint.open(file)
        return
    with pytest.raises(CheckpointError, match=rf"{architecture}\.[\w.]+ = .* is not read here"):
        checkpoint.open(file)


@pytest.mark.parametrize(
    "changed",
    [
        {"adapter.type": "lora"},
        {"clip.has_vision_encoder": True},
        {"tokenizer.ggml.some_new_normalizer": "nfd"},
    ],
)
def test_fault_A6_foreign_keys_are_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=next(iter(changed))):
        checkpoint.open(write(tmp_path, **changed))


def test_fault_A6_one_part_of_a_split_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is one of 3 parts"):
        checkpoint.open(write(tmp_path, **{"split.count": 3}))


@pytest.mark.parametrize(
    "name",
    ["blk.0.attn_q.bias", "blk.0.attn_q_norm.weight", "output.bias", "blk.1.attn_norm.weight"],
)
def test_fault_A6_tensors_without_a_place_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"no place for {name}"):
        checkpoint.open(write(tmp_path, tensors={name: (64,)}))


def test_fault_A6_what_changes_nothing_is_let_pass(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        tensors={"blk.0.attn_rot_embd.weight": (16,)},
        **{
            "general.quantized_by": "someone",
            "quantize.imatrix.file": "i.dat",
            "mradermacher.quantize_version": "2",
            "llama.attention.key_length": 32,
            "llama.attention.value_length": 32,
            "llama.rope.dimension_count": 32,
            "llama.rope.scaling.type": "none",
            "llama.attention.causal": True,
            "llama.expert_count": 0,
            "llama.vocab_size": 8,
            "tokenizer.ggml.eot_token_id": 1,
            "split.count": 1,
        },
    )
    opened = checkpoint.open(file)
    assert opened.unexpected_keys == ("blk.0.attn_rot_embd.weight",)


def test_fault_A6_numbers_that_the_parser_passes_over_are_read(tmp_path: Path) -> None:
    """Qwen3's parser leaves out the width of a head, whose default is another."""
    tensors = {f"blk.0.attn_{name}_norm.weight": (32,) for name in "qk"}
    file = write(tmp_path, "qwen3", tensors=tensors, **{"qwen3.attention.key_length": 32})
    assert checkpoint.open(file).model.config.head_dim == 32


def test_fault_A6_values_are_compared_with_the_config() -> None:
    """Every field of the tables is one that some config has."""
    from modwright.checkpoint.gguf_metadata import settle

    config = transformers.Gemma2Config(hidden_size=32, num_attention_heads=2, head_dim=16)
    keys = {"gemma2.final_logit_softcapping": 20.0, "gemma2.attention.key_length": 16}
    settle(Path("f"), "gemma2", keys, config)
    assert config.final_logit_softcapping == 20.0
    stable = transformers.StableLmConfig(hidden_size=64, num_attention_heads=2)
    settle(Path("f"), "stablelm", {"stablelm.rope.dimension_count": 8}, stable)
    with pytest.raises(CheckpointError, match=r"stablelm\.rope\.dimension_count = 32"):
        settle(Path("f"), "stablelm", {"stablelm.rope.dimension_count": 32}, stable)
    coder = transformers.Starcoder2Config()
    settle(Path("f"), "starcoder2", {"starcoder2.rope.freq_base": 999999.5}, coder)
    assert coder.rope_parameters["rope_theta"] == 999999.5


def test_fault_A6_every_key_of_the_format_is_decided() -> None:
    """A key of gguf's list is known to say nothing, is read, or leads to a refusal by name."""
    from modwright.checkpoint.gguf_metadata import settle

    kinds = (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope, gguf.Keys.SSM)
    names = {v for kind in kinds for k, v in vars(kind).items() if isinstance(v, str)}
    names = {name for name in names if name.startswith("{arch}.")}
    assert len(names) > 60
    refused = []
    for name in names:
        config = transformers.LlamaConfig(**SIZES)
        try:
            settle(Path("f"), "llama", {name.format(arch="llama", dense="d"): 77}, config)
        except CheckpointError:
            refused.append(name)
    assert len(refused) > 50
    assert "{arch}.block_count" not in refused
