"""Mistral: a Llama whose attentions may look back over a window only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modwright.anatomy.families import register_family
from modwright.anatomy.families.llama import Llama
from modwright.anatomy.families.table import tiny
from modwright.anatomy.projection import Projection
from modwright.nn import AttentionShape


@register_family
class Mistral(Llama):
    name = "mistral"
    model_types = ("mistral",)
    presets = {
        "tiny-mistral": tiny(
            num_attention_heads=8, num_key_value_heads=2, head_dim=8, sliding_window=5
        )
    }

    def attention_shape(
        self, module: Any, projections: Mapping[str, Projection], **given: Any
    ) -> AttentionShape:
        window = self.get("sliding_window")
        return super().attention_shape(module, projections, sliding_window=window, **given)
