"""DuoFormer: the tokens of four scales, and the transformer behind those of three."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from golden_checks import GoldenCase
from golden_checks.images import outputs_of
from modwright.models.architectures.duoformer import (
    DuoFormerConfig,
    DuoFormerForImageClassification,
)
from modwright.models.importing import checkpoint_formats
from modwright.nn.stems.backbone_tokens import region_positions

ALLOWED = 1e-5
GRID, STAGES, SHOWN = (7, 7), 4, [0, 8, 24, 48]
RULE = (
    "rng = numpy.random.default_rng({seed}); for stage in 0,1,2,3: rng.standard_normal((1,C,S,S))"
    ".astype(float32), C=64,128,256,512, S=56,28,14,7"
)


def check(case: GoldenCase) -> None:
    CHECKS["input.tokens" in case](case)


def _transformer(case: GoldenCase) -> None:
    c = case.config
    model = _model(
        case,
        {"backbone.", "tokenise.", "scale_prefix."},
        scales=c["scales"],
        hidden_size=c["embed_dim"],
        depths=c["depth"],
        num_heads=c["num_heads"],
        mlp_ratio=c["mlp_ratio"],
        layer_scale=c["init_values"],
        num_labels=c["num_classes"],
    )
    assert model.scale_blocks[0].norm1.eps == c["layer_norm_eps"]
    assert GRID[0] * GRID[1] == c["num_patches"]
    names = {f"inter.patch_block{b}": block for b, block in enumerate(model.blocks)}
    with torch.no_grad(), outputs_of({"scale": model.scale_blocks[0], **names}) as found:
        first = model.mix_scales(case["input.tokens"])
        logits = model.forward_head(model.blocks(model.join_regions(first, GRID), GRID))
    case.close("inter.scale_block0_patch0", found["scale"][:1], atol=ALLOWED)
    case.close("inter.after_scale_blocks_first_token", first, atol=ALLOWED)
    for name in names:
        case.close(name, found[name], atol=ALLOWED)
    case.close("output.logits", logits, atol=ALLOWED)


def _tokens(case: GoldenCase) -> None:
    c = case.config
    kept = {
        "backbone.",
        "scale_positions.",
        "prefix.",
        "positions.",
        "blocks.",
        "unused_norm.",
        "head.",
    }
    assert c["backbone"] == "resnet18 channels 64,128,256,512"
    model = _model(case, kept, scales=c["scales"], hidden_size=c["proj_dim"], depths=0, num_heads=1)
    seed = int(re.findall(r"default_rng\((\d+)\)", c["feature_rule"])[0])
    assert c["feature_rule"] == RULE.format(seed=seed)
    rng = np.random.default_rng(seed)
    features = []
    for stage, width in enumerate(model.config.backbone_widths):
        side = GRID[0] * 2 ** (STAGES - 1 - stage)
        numbers = rng.standard_normal((1, width, side, side)).astype(np.float32)
        features.append(torch.from_numpy(numbers))
        step = STAGES - 1 - stage
        case.equal(f"inter.index_stage{stage}", region_positions(GRID, 2**step, step == 1))
    with torch.no_grad():
        tokens = model.scale_prefix(model.tokenise(features).flatten(0, 1)).unflatten(0, (1, -1))
    case.close("output.tokens_patches_0_8_24_48", tokens[:, SHOWN], atol=ALLOWED)


CHECKS: dict[bool, Callable[[GoldenCase], None]] = {True: _transformer, False: _tokens}


def _model(case: GoldenCase, absent: set[str], **fields: Any) -> DuoFormerForImageClassification:
    """A model with the case's weights; what begins like ``absent`` may be left as it is."""
    model = DuoFormerForImageClassification(DuoFormerConfig(backbone="resnet18", **fields)).eval()
    weights = {n.removeprefix("weight."): case[n] for n in case.names("weight.")}
    converted = checkpoint_formats(model)["official"].to_ours(weights)
    done = model.load_state_dict(converted.tensors, strict=False)
    assert not converted.unexpected and not done.unexpected_keys
    assert all(name.startswith(tuple(absent)) for name in done.missing_keys), done.missing_keys
    return model
