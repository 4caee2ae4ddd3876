"""Qwen2 and Qwen2.5: a Llama with biases on queries, keys and values; layers may have a window."""

from __future__ import annotations

from typing import Any

from modwright.anatomy.families import register_family
from modwright.anatomy.families.llama import Llama
from modwright.anatomy.families.table import tiny

_MIXED = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
_TINY = tiny(num_key_value_heads=2, eos_token_id=[2, 5])


@register_family
class Qwen2(Llama):
    name = "qwen2"
    model_types = ("qwen2",)
    presets = {
        "tiny-qwen2": {**_TINY, "tie_word_embeddings": True},
        "tiny-qwen2-mixed": {
            **_TINY,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": _MIXED,
        },
    }

    def get(self, word: str, default: Any = None) -> Any:
        """The config has no field for the width of a head, but the model reads one if it is there:
        heads that do not make up the hidden size can be said."""
        found = super().get(word, default)
        if word == "head_dim" and found is None:
            return self.config.hidden_size // self.config.num_attention_heads
        return found
