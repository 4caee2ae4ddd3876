"""T2T-ViT: both token layers, and backbones of plain, squeezed, ghost and dense blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from golden_checks import GoldenCase
from golden_checks.images import fill, outputs_of, tokens
from modwright.models.architectures.t2t_vit import T2TViTConfig, T2TViTForImageClassification

ALLOWED = 1e-5
TOKEN_DIM = 8  # of all files; three of them leave it out
BLOCKS = {
    "T2T_ViT": "plain",
    "T2T_ViT_SE": "squeeze_excite",
    "T2T_ViT_Ghost": "ghost",
    "T2T_ViT_Dense": "dense",
}


def check(case: GoldenCase) -> None:
    model = fill(T2TViTForImageClassification(_config(case.config)), case)
    names: dict[str, nn.Module] = {
        f"inter.t2t.attention{n}": layer for n, layer in enumerate(model.stem.layers, 1)
    }
    names["inter.t2t.out"] = model.stem
    names |= {f"inter.block{b}": block for b, block in enumerate(model.blocks)}
    with torch.no_grad(), outputs_of(names) as found:
        logits = model(case["input.x"]).logits
    found["inter.t2t.out"] = tokens(found["inter.t2t.out"])
    for name, value in found.items():
        case.close(name, value, atol=ALLOWED)
    case.close("output.logits", logits, atol=ALLOWED)


def _config(c: dict[str, Any]) -> T2TViTConfig:
    dense = {}
    if "block_config" in c:
        dense = {"dense_groups": c["block_config"], "growth": c["growth_rate"]}
    return T2TViTConfig(
        image_size=c["img_size"],
        stem=c["tokens_type"],
        token_dim=c.get("token_dim", TOKEN_DIM),
        hidden_size=c["embed_dim"],
        depths=c["depth"],
        num_heads=c["num_heads"],
        mlp_ratio=c["mlp_ratio"],
        qkv_bias=c.get("qkv_bias", False),
        qk_scale=c.get("qk_scale"),
        block_type=BLOCKS[c["model"]],
        num_labels=c["num_classes"],
        **dense,
    )
