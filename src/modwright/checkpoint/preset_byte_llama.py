"""A small Llama that reads bytes: what a language model is trained from scratch on."""

from __future__ import annotations

from transformers import LlamaConfig

from modwright.checkpoint.source import register_preset
from modwright.data.tokenizers import BYTE_VOCABULARY, SPECIAL, byte_tokenizer

__all__ = ["byte_llama_config"]


def byte_llama_config() -> LlamaConfig:
    """4 layers of 128 channels, a token for each byte.

    Example:
        >>> byte_llama_config().num_hidden_layers
        4
    """
    end, pad = (256 + SPECIAL.index(word) for word in ("<|endoftext|>", "<|pad|>"))
    return LlamaConfig(
        vocab_size=BYTE_VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=pad,
    )


register_preset("byte-llama", byte_llama_config, byte_tokenizer)
