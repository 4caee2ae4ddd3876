from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from modwright import checkpoint
from modwright.checkpoint import gguf as loader
from modwright.checkpoint.gguf_header import read_header
from modwright.core.errors import CheckpointError, ModwrightError

from .tiny import tiny_llama, write_gguf

KINDS = gguf.GGMLQuantizationType


def llama_file(folder: Path, **changes: Any) -> Path:
    """Two layers of width 64 with quantized, half and full tensors."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (8, 64), "output_norm.weight": (64,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (64,),
            f"blk.{layer}.attn_q.weight": (64, 64),
            f"blk.{layer}.attn_k.weight": (32, 64),
            f"blk.{layer}.attn_v.weight": (32, 64),
            f"blk.{layer}.attn_output.weight": (64, 64),
            f"blk.{layer}.ffn_norm.weight": (64,),
            f"blk.{layer}.ffn_gate.weight": (96, 64),
            f"blk.{layer}.ffn_up.weight": (96, 64),
            f"blk.{layer}.ffn_down.weight": (64, 96),
        }
    kinds = {
        "token_embd.weight": KINDS.Q8_0,
        "blk.0.attn_q.weight": KINDS.Q4_1,
        "blk.1.attn_k.weight": KINDS.Q5_0,
        "blk.0.ffn_up.weight": KINDS.F16,
        "blk.1.ffn_down.weight": KINDS.Q4_0,
    }
    settings = {
        "llama.block_count": 2,
        "llama.context_length": 64,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        **changes,
    }
    return write_gguf(folder / "tiny.gguf", "llama", settings, shapes, kinds)


def moe_file(folder: Path) -> Path:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (8, 32),
        "output_norm.weight": (32,),
        "output.weight": (8, 32),
        "blk.0.attn_norm.weight": (32,),
        "blk.0.attn_q.weight": (32, 32),
        "blk.0.attn_k.weight": (16, 32),
        "blk.0.attn_v.weight": (16, 32),
        "blk.0.attn_output.weight": (32, 32),
        "blk.0.attn_q_norm.weight": (8,),
        "blk.0.attn_k_norm.weight": (8,),
        "blk.0.ffn_norm.weight": (32,),
        "blk.0.ffn_gate_inp.weight": (4, 32),
        # 768 is the one expert width that transformers' config parser knows.
        "blk.0.ffn_gate_exps.weight": (4, 768, 32),
        "blk.0.ffn_up_exps.weight": (4, 768, 32),
        "blk.0.ffn_down_exps.weight": (4, 32, 768),
    }
    settings = {
        "qwen3moe.block_count": 1,
        "qwen3moe.context_length": 64,
        "qwen3moe.embedding_length": 32,
        "qwen3moe.feed_forward_length": 64,
        "qwen3moe.expert_feed_forward_length": 768,
        "qwen3moe.attention.head_count": 4,
        "qwen3moe.attention.head_count_kv": 2,
        "qwen3moe.attention.key_length": 8,
        "qwen3moe.expert_count": 4,
        "qwen3moe.expert_used_count": 2,
        "qwen3moe.rope.freq_base": 10000.0,
        "qwen3moe.attention.layer_norm_rms_epsilon": 1e-6,
    }
    kinds = {"blk.0.ffn_up_exps.weight": KINDS.Q8_0}
    return write_gguf(folder / "moe.gguf", "qwen3moe", settings, shapes, kinds)


def gpt2_file(folder: Path) -> Path:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (8, 32),
        "position_embd.weight": (1024, 32),
        "output_norm.weight": (32,),
        "output_norm.bias": (32,),
        "output.weight": (8, 32),
        "blk.0.attn_norm.weight": (32,),
        "blk.0.attn_norm.bias": (32,),
        "blk.0.attn_qkv.weight": (96, 32),
        "blk.0.attn_qkv.bias": (96,),
        "blk.0.attn_output.weight": (32, 32),
        "blk.0.attn_output.bias": (32,),
        "blk.0.ffn_norm.weight": (32,),
        "blk.0.ffn_norm.bias": (32,),
        "blk.0.ffn_up.weight": (128, 32),
        "blk.0.ffn_up.bias": (128,),
        "blk.0.ffn_down.weight": (32, 128),
        "blk.0.ffn_down.bias": (32,),
    }
    settings = {
        "gpt2.block_count": 1,
        "gpt2.context_length": 1024,
        "gpt2.embedding_length": 32,
        "gpt2.feed_forward_length": 128,
        "gpt2.attention.head_count": 4,
        "gpt2.attention.layer_norm_epsilon": 1e-5,
    }
    return write_gguf(folder / "gpt2.gguf", "gpt2", settings, shapes)


def lfm2_file(folder: Path) -> Path:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (8, 32),
        "token_embd_norm.weight": (32,),
    }
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (32,),
            f"blk.{layer}.ffn_norm.weight": (32,),
            f"blk.{layer}.ffn_gate.weight": (64, 32),
            f"blk.{layer}.ffn_up.weight": (64, 32),
            f"blk.{layer}.ffn_down.weight": (32, 64),
        }
    shapes |= {
        "blk.0.shortconv.conv.weight": (32, 3),
        "blk.0.shortconv.in_proj.weight": (96, 32),
        "blk.0.shortconv.out_proj.weight": (32, 32),
        "blk.1.attn_q.weight": (32, 32),
        "blk.1.attn_k.weight": (16, 32),
        "blk.1.attn_v.weight": (16, 32),
        "blk.1.attn_output.weight": (32, 32),
        "blk.1.attn_q_norm.weight": (8,),
        "blk.1.attn_k_norm.weight": (8,),
    }
    settings = {
        "lfm2.block_count": 2,
        "lfm2.context_length": 64,
        "lfm2.embedding_length": 32,
        "lfm2.feed_forward_length": 64,
        "lfm2.attention.head_count": 4,
        "lfm2.attention.head_count_kv": [0, 2],
        "lfm2.attention.layer_norm_rms_epsilon": 1e-5,
        "lfm2.shortconv.l_cache": 3,
        "lfm2.rope.freq_base": 10000.0,
    }
    kinds = {"blk.0.ffn_up.weight": KINDS.Q8_0}
    return write_gguf(folder / "lfm2.gguf", "lfm2", settings, shapes, kinds)


def assert_same_tensors(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    for kind in ("named_parameters", "named_buffers"):
        left, right = dict(getattr(ours, kind)()), dict(getattr(theirs, kind)())
        assert left.keys() == right.keys()
        for name, tensor in left.items():
            assert tensor.dtype == right[name].dtype, name
            assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [llama_file, moe_file, gpt2_file, lfm2_file])
def test_bit_equal_to_transformers(make: Any, dtype: str, tmp_path: Path) -> None:
    file = make(tmp_path)
    ours = checkpoint.open(file, dtype=dtype)
    theirs = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=getattr(torch, dtype)
    )
    assert type(ours.model) is type(theirs)
    assert_same_tensors(ours.model, theirs)
    assert ours.unexpected_keys == ()
    recorded, expected = ours.model.config.to_dict(), theirs.config.to_dict()
    expected.pop("quantization_config", None)
    expected["_name_or_path"] = recorded["_name_or_path"] = ""
    assert recorded == expected
    assert ours.model.generation_config == theirs.generation_config


def test_saves_as_a_plain_checkpoint(tmp_path: Path) -> None:
    opened = checkpoint.open(llama_file(tmp_path))
    out = opened.save(tmp_path / "out")
    assert "quantization_config" not in (out / "config.json").read_text()
    for file in out.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    again = checkpoint.open(out)
    assert_same_tensors(again.model, opened.model)
    if type(opened.tokenizer).__name__ == "CodeLlamaTokenizer":
        return  # transformers 5.5 takes it for one, and cannot use what it wrote of it
    assert again.tokenizer("abca")["input_ids"] == opened.tokenizer("abca")["input_ids"] == [7, 2]


def test_undoes_the_order_of_rotary_rows(tmp_path: Path) -> None:
    """A float file made from a Llama gives the same Llama, logits included."""
    model = tiny_llama(vocab_size=8, num_hidden_layers=1, rms_norm_eps=1e-5)

    def to_gguf(weight: torch.Tensor, heads: int) -> np.ndarray:
        halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
        return halves.swapaxes(1, 2).reshape(weight.shape).detach().numpy()

    layer = model.model.layers[0]
    values = {
        "token_embd.weight": model.model.embed_tokens.weight.detach().numpy(),
        "output_norm.weight": model.model.norm.weight.detach().numpy(),
        "output.weight": model.lm_head.weight.detach().numpy(),
        "blk.0.attn_norm.weight": layer.input_layernorm.weight.detach().numpy(),
        "blk.0.attn_q.weight": to_gguf(layer.self_attn.q_proj.weight, 4),
        "blk.0.attn_k.weight": to_gguf(layer.self_attn.k_proj.weight, 2),
        "blk.0.attn_v.weight": layer.self_attn.v_proj.weight.detach().numpy(),
        "blk.0.attn_output.weight": layer.self_attn.o_proj.weight.detach().numpy(),
        "blk.0.ffn_norm.weight": layer.post_attention_layernorm.weight.detach().numpy(),
        "blk.0.ffn_gate.weight": layer.mlp.gate_proj.weight.detach().numpy(),
        "blk.0.ffn_up.weight": layer.mlp.up_proj.weight.detach().numpy(),
        "blk.0.ffn_down.weight": layer.mlp.down_proj.weight.detach().numpy(),
    }
    settings = {
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 48,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    shapes = {name: value.shape for name, value in values.items()}
    file = write_gguf(tmp_path / "made.gguf", "llama", settings, shapes, values=values)
    opened = checkpoint.open(file)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(opened.model(tokens).logits, model(tokens).logits)


def test_window_smaller_than_a_tensor_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = llama_file(tmp_path)
    whole = checkpoint.open(file, dtype="bfloat16")
    monkeypatch.setattr(loader, "_WINDOW", 150)
    assert_same_tensors(checkpoint.open(file, dtype="bfloat16").model, whole.model)


def test_steps_over_the_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = llama_file(tmp_path)
    full = read_header(file)
    assert full.config.vocab_size == 8
    monkeypatch.setattr("modwright.checkpoint.gguf_header._LONGEST_LIST", 4)
    short = read_header(file)
    assert short.config.to_dict() == full.config.to_dict()
    assert short.tensors == full.tensors


def test_missing_and_surplus_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\.input_layernorm\.weight"):
        checkpoint.open(llama_file(tmp_path, **{"llama.block_count": 3}))
    with pytest.raises(CheckpointError, match=r"no place for blk\.1\.attn_k\.weight.*and 6 more"):
        checkpoint.open(llama_file(tmp_path, **{"llama.block_count": 1}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-100], "cut short"),
        (lambda data: data[:60], "cut short"),
        (lambda data: b"GGML" + data[4:], "does not begin with the bytes GGUF"),
        (lambda data: data.replace(b"llama", b"lemur"), "lemur"),
    ],
)
def test_damaged_files_are_refused(damage: Any, message: str, tmp_path: Path) -> None:
    file = llama_file(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModwrightError, match=message) as refusal:
        checkpoint.open(file)
    assert "\n" not in str(refusal.value)


def test_wrong_width_is_refused(tmp_path: Path) -> None:
    file = llama_file(tmp_path, **{"llama.feed_forward_length": 128})
    with pytest.raises(CheckpointError, match=r"\(64, 96\) in the file and \(64, 128\)"):
        checkpoint.open(file)


def test_other_head(tmp_path: Path) -> None:
    opened = checkpoint.open(llama_file(tmp_path), head="base")
    assert type(opened.model).__name__ == "LlamaModel"


def test_progress_hears_of_every_tensor(tmp_path: Path) -> None:
    from contextlib import contextmanager

    class Counter:
        total = done = 0

        def advance(self, steps: int = 1) -> None:
            self.done += steps

        @contextmanager
        def phase(self, name: str, total: int) -> Any:
            self.total = total
            yield self

    counter = Counter()
    checkpoint.open(llama_file(tmp_path), progress=counter)
    assert counter.done == counter.total == 20
