"""One small config of every architecture: what tests of all of them are run on."""

from __future__ import annotations

from typing import Any

__all__ = ["TINY", "tiny"]

# model_type -> fields; sizes are chosen so that one forward pass takes milliseconds
TINY: dict[str, dict[str, Any]] = {
    "metaformer": {
        "depths": [1, 1, 2],
        "widths": [8, 16, 24],
        "token_mixers": ["pool", "spatial_fc", "attention"],
        "mlp_ratios": [2, 2, 2],
        "positions": [False, False, True],
        "attention_head_dim": 8,
        "image_size": 64,
    },
    "t2t_vit": {
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "token_dim": 8,
        "image_size": 32,
    },
    "vision_transformer": {
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "patch_size": 8,
        "distilled": True,
        "image_size": 32,
    },
    "swin_transformer": {
        "embed_dim": 8,
        "depths": [2, 1],
        "num_heads": [2, 4],
        "window_size": 3,  # 8 and 4 places are not made of whole windows
        "image_size": 32,
    },
    "residual_network": {
        "depths": [2, 1],
        "widths": [8, 16],
        "stem_width": 8,
        "image_size": 32,
    },
    "fmvit": {
        "depths": [1, 2],
        "widths": [16, 16],
        "out_widths": [16, 32],
        "stem_widths": [8, 8, 8, 16],
        "head_dim": 8,
        "reductions": [4, 2],
        "groups": [1, 2],
        "image_size": 32,
    },
    "craft": {
        "upscale": 2,
        "dim": 32,
        "depths": [1],
        "num_heads": [4],
        "window": [2, 4],
        "image_size": 8,
    },
    "smt": {
        "depths": [1, 2, 1],
        "widths": [8, 16, 16],
        "attention_heads": [2, 2, 4],
        "mlp_ratios": 2,
        "layer_scale_init": 0.1,
        "image_size": 64,
    },
    "sret": {
        "head_dim": 4,
        "num_heads": [2, 4],
        "depths": [4, 2],
        "blocks": [2, 1],
        "groups_first": [4, 2],
        "groups_later": [2, 1],
        "permutation": "fixed",  # so that two passes in training are one function
        "image_size": 64,
    },
    "tnt": {
        "patch_size": 8,
        "inner_stride": 2,
        "inner_dim": 4,
        "outer_dim": 16,
        "depth": 2,
        "inner_heads": 2,
        "outer_heads": 2,
        "image_size": [16, 24],
    },
    "duoformer": {
        "backbone": "pyramid",
        "backbone_fields": {"widths": [4, 4, 8, 8]},
        "dim": 16,
        "depth": 2,
        "heads": 2,
        "image_size": 16,
    },
}


def tiny(model_type: str, **fields: Any) -> Any:
    """The small model of an architecture, with its random weights, in eval mode."""
    from transformers import AutoConfig

    from modwright.models.registry import model_class

    config = AutoConfig.for_model(model_type, **{"num_labels": 5, **TINY[model_type], **fields})
    return model_class(config)(config).eval()
