"""Tiny ViTs of timm, one for each way in which its ViTs differ."""

from __future__ import annotations

from typing import Any

import timm
import torch

__all__ = ["KINDS", "SMALL", "build"]

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 4}
"""Arguments that make any of timm's ViTs a tiny one."""

KINDS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {},
    "deit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},  # gains, no position for the class token
    "vit_small_patch16_224.dino": {"num_classes": 0},
    "vit_base_patch16_224.mae": {"global_pool": "avg"},  # the norm after the pooling
    "vit_base_patch16_clip_224": {},  # a norm before the blocks
    "vit_small_patch14_reg4_dinov2": {"num_classes": 7},  # registers, gains
    "vit_base_patch16_siglip_224": {"num_classes": 7},  # pools by attention, no class token
    "vit_little_patch16_reg4_gap_256": {},
    "vit_medium_patch16_gap_256": {},
}


def build(name: str, **arguments: Any) -> Any:
    """A tiny model with seed 0, in eval mode; norms, biases and gains get some noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        given = {"num_classes": 5, **SMALL, **KINDS.get(name, {}), **arguments}
        model = timm.create_model(name, **given).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                wide = torch.randn_like(parameter) * 0.1
                parameter.add_(wide if parameter.ndim == 1 else 2 * wide)
                if parameter.ndim == 1 and parameter.abs().max() < 0.5:
                    parameter.add_(0.2)
    return model
