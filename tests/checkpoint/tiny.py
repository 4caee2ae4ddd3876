"""Makes small models and small files of several kinds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

TOKENS = ["<s>", "</s>", "a", "b", "ab", "c", "bc", "abc"]
MERGES = ["a b", "b c", "ab c"]


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        **changes,
    }
    return LlamaForCausalLM(LlamaConfig(**settings)).eval()


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(2)
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return GPT2LMHeadModel(config).eval()


def tiny_bert() -> BertModel:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return BertModel(config).eval()


MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": tiny_llama,
    "llama-tied": lambda: tiny_llama(tie_word_embeddings=True),
    "gpt2": tiny_gpt2,
    "bert": tiny_bert,
}


def write_tokenizer(directory: Path) -> None:
    vocab = {token: index for index, token in enumerate(TOKENS)}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": vocab, "merges": [m.split() for m in MERGES]},
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def write_gguf(
    file: Path,
    architecture: str,
    settings: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    values: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """A GGUF file with random (or given) tensors, as float32 unless ``kinds`` says otherwise."""
    random = np.random.default_rng(4)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("tiny")
    for key, value in settings.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 2)])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, shape in tensors.items():
        array = (values or {}).get(name)
        if array is None:
            array = random.standard_normal(shape).astype(np.float32)
        kind = (kinds or {}).get(name, gguf.GGMLQuantizationType.F32)
        packed = gguf.quantize(np.ascontiguousarray(array), kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
