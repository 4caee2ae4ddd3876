"""Gemma, the first version: a Llama with norms of gain (1 + w) and scaled token embeddings."""

from __future__ import annotations

from modwright.anatomy.families import register_family
from modwright.anatomy.families.llama import Llama
from modwright.core.errors import UnsupportedArchitecture


@register_family
class Gemma(Llama):
    name = "gemma"
    model_types = ("gemma",)
    presets = {
        "tiny-gemma": {
            "vocab_size": 128,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 256,
            "eos_token_id": 1,
            "bos_token_id": 2,
            "pad_token_id": 0,
        }
    }

    def check(self) -> None:
        super().check()
        if getattr(self.config, "use_bidirectional_attention", False):
            raise UnsupportedArchitecture(
                "gemma with use_bidirectional_attention=True is not supported, only decoders"
            )
