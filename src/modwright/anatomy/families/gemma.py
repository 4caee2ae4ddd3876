"""Gemma, the first version: a Llama with norms of gain (1 + w) and scaled token embeddings."""

from __future__ import annotations

from modwright.anatomy.families import register_family
from modwright.anatomy.families.llama import Llama
from modwright.anatomy.families.table import tiny
from modwright.core.errors import UnsupportedArchitecture


@register_family
class Gemma(Llama):
    name = "gemma"
    model_types = ("gemma",)
    presets = {
        "tiny-gemma": tiny(num_key_value_heads=1, head_dim=16, eos_token_id=1, bos_token_id=2)
    }

    def check(self) -> None:
        super().check()
        if getattr(self.config, "use_bidirectional_attention", False):
            raise UnsupportedArchitecture(
                "gemma with use_bidirectional_attention=True is not supported, only decoders"
            )
