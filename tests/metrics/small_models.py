"""Tiny models of every kind of head, and tokenizers of words for them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

BOS = 50
VOCABULARY = 52


def word_tokenizer(kind: type = PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    vocabulary = {f"w{index}": index for index in range(BOS)} | {"<bos>": BOS, "<unk>": 51}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return kind(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>")


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """Words ``w0`` to ``w44``, and what an encoder needs beside them."""
    special = {"pad": 45, "cls": 46, "sep": 47, "mask": 48, "unk": 51}
    vocabulary = {f"w{index}": index for index in range(45)} | {
        f"[{name.upper()}]": index for name, index in special.items()
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 46), ("[SEP]", 47)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def disturbed(model: Any, amount: float = 0.1) -> Any:
    """A copy with noise on every weight."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in changed.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * amount)
    return changed


def llama(**changed: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "initializer_range": 0.5,
    }
    return LlamaForCausalLM(LlamaConfig(**(sizes | changed))).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.5)).eval()


def tiny_bert(cls: type, **changed: object):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    return cls(BertConfig(**(sizes | changed))).eval()


def tiny_t5() -> T5ForConditionalGeneration:
    sizes = {
        "vocab_size": VOCABULARY,
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 8,
        "num_layers": 1,
        "num_heads": 2,
    }
    return T5ForConditionalGeneration(T5Config(**sizes))


def tiny_vit() -> ViTForImageClassification:
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4))
