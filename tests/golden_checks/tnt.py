"""TNT: both streams behind every block, at two patch sizes."""

from __future__ import annotations

from typing import Any

import torch

from golden_checks import GoldenCase
from golden_checks.images import fill, outputs_of
from modwright.models.architectures.tnt import TNTConfig, TNTForImageClassification

ALLOWED = 1e-5


def check(case: GoldenCase) -> None:
    model = fill(TNTForImageClassification(_config(case.config)), case)
    blocks = {f"inter.block{b}": block for b, block in enumerate(model.blocks)}
    with torch.no_grad(), outputs_of({"words": model.stem, **blocks}) as found:
        (_, sentences), _ = model.embed(case["input.x"])
        logits = model(case["input.x"]).logits
    case.close("inter.patch_embed", found["words"], atol=ALLOWED)
    case.close("inter.outer_in", sentences, atol=ALLOWED)
    for name in blocks:
        inner, outer = found[name]
        case.close(f"{name}.inner", inner, atol=ALLOWED)
        case.close(f"{name}.outer", outer, atol=ALLOWED)
    case.close("output.logits", logits, atol=ALLOWED)


def _config(c: dict[str, Any]) -> TNTConfig:
    return TNTConfig(
        image_size=c["img_size"],
        patch_size=c["patch_size"],
        inner_stride=c["inner_stride"],
        inner_dim=c["inner_dim"],
        hidden_size=c["outer_dim"],
        depths=c["depth"],
        inner_heads=c["inner_num_heads"],
        num_heads=c["outer_num_heads"],
        mlp_ratio=c["mlp_ratio"],
        qkv_bias=c["qkv_bias"],
        se_reduction=c["se"] or None,
        num_labels=c["num_classes"],
    )
