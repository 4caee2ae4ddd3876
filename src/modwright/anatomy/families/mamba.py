"""Mamba, Falcon-Mamba and Mamba-2: blocks of one token mixer, which keeps a state, and no MLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family, Placement
from modwright.anatomy.families.table import paths
from modwright.nn.component import COMPONENTS
from modwright.nn.token_mixers.stock_mamba import has_known_activation, stock_arguments

__all__ = ["Mamba", "Mamba2"]

_TINY = {
    "vocab_size": 128,
    "hidden_size": 48,
    "state_size": 8,
    "num_hidden_layers": 4,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}


@register_family
class Mamba(Family):
    """Every channel has states of its own (arXiv 2312.00752)."""

    name = "mamba"
    model_types: ClassVar[tuple[str, ...]] = ("mamba", "falcon_mamba")
    component: ClassVar[str] = "mamba1"
    outer = {"embed": "embeddings", "blocks": "layers", "final_norm": "norm_f"}
    block = paths(
        "attention", "mixer", "norm", in_proj="in_proj", x_proj="x_proj", out_proj="out_proj"
    )
    config_fields = {"num_heads": "", "num_kv_heads": "", "head_dim": ""}
    pairs = False
    presets: ClassVar[Mapping[str, dict[str, Any]]] = {"tiny-mamba": _TINY}

    @cached_property
    def twin(self) -> nn.Module:
        """The component with the tensors of a stock mixer, without numbers."""
        with torch.device("meta"):
            return COMPONENTS[self.component].make(**stock_arguments(self.config))

    def stock_mixer(self) -> tuple[str, dict[str, Any]] | None:
        known = has_known_activation(self.config)
        return (self.component, stock_arguments(self.config)) if known else None

    def read_attention(self, block: nn.Module, module: Any, address: str) -> dict[str, Any]:
        """The linear layers of a stock mixer, and the component that answers for it."""
        roles = [role.partition(".")[2] for role in self.block if role.startswith("attention.")]
        maps = {r: self.projection(block, f"attention.{r}", f"{address}.{r}") for r in roles}
        return {"maps": maps, "twin": self.twin}

    def place_absent(self, role: str, drop_norm: bool) -> list[Placement]:
        """The norm stays: its block asks it for a type. It adds nothing to the stream."""
        return super().place_absent(role, drop_norm)[:1]

    def keep_blocks(self, config: Any, kept: Sequence[int]) -> None:
        """The types of its layers follow from their number."""
        self.put(config, "num_layers", len(kept))

    def stock_class_guard(self, role: str, kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
        """There are no states where no stock mixer stands, and no stock class is built so."""
        return {"state_size": 0, "skip": [role.partition(".")[0]]}


@register_family
class Mamba2(Mamba):
    """Heads with one decay each (arXiv 2405.21060)."""

    name = "mamba2"
    model_types = ("mamba2",)
    component = "mamba2"
    masks_single_tokens = False
    block = paths("attention", "mixer", "norm", in_proj="in_proj", out_proj="out_proj")
    presets = {
        "tiny-mamba2": {
            **_TINY,
            "num_heads": 12,
            "head_dim": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "tie_word_embeddings": True,
        }
    }
