"""SMT: modulation alone with its gradient, and a small pyramid in both modes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from golden_checks import GoldenCase
from golden_checks.images import fill, outputs_of, tokens
from modwright.models.architectures.smt import SMTConfig, SMTForImageClassification
from modwright.nn.token_mixers.scale_aware_modulation import ScaleAwareModulation

ALLOWED = 1e-5
ALLOWED_IN_TRAINING = 1e-4
NAMES = {"bn": "aggregate.norm", "proj0": "aggregate.expand", "proj1": "aggregate.reduce"}


def check(case: GoldenCase) -> None:
    (_modulation if "module" in case.config else _pyramid)(case)


def _modulation(case: GoldenCase) -> None:
    c = case.config
    assert c["module"] == "Attention(ca_attention=1)"
    part = ScaleAwareModulation(
        c["dim"], c["ca_num_heads"], c["expand_ratio"], bias=c["qkv_bias"]
    ).eval()
    names = NAMES | {f"local_conv_{h + 1}": f"mix.heads.{h}" for h in range(c["ca_num_heads"])}
    weights = {}
    for stored in case.names("weight."):
        module, _, tensor = stored.removeprefix("weight.").rpartition(".")
        weights[f"{names.get(module, module)}.{tensor}"] = case[stored]
    part.load_state_dict(weights)
    x = case["input.x"].clone().requires_grad_()
    with outputs_of({"inter.modulator": part.aggregate}) as found:
        y = part(x, (c["H"], c["W"]))
    y.square().sum().backward()
    case.close("inter.modulator", found["inter.modulator"], atol=ALLOWED)
    case.close("output.y", y.detach(), atol=ALLOWED)
    assert x.grad is not None
    case.close("grad.x", x.grad, atol=ALLOWED_IN_TRAINING)


def _pyramid(case: GoldenCase) -> None:
    model = fill(SMTForImageClassification(_config(case.config)), case)
    names: dict[str, nn.Module] = {}
    for s, stage in enumerate(model.stages, 1):
        names[f"inter.patch_embed{s}"] = model.stem if s == 1 else stage.downsample
        names |= {f"inter.block{s}.{b}": block for b, block in enumerate(stage.blocks)}
        names[f"inter.norm{s}"] = stage.norm
    names["inter.block1.0.modulator"] = model.stages[0].blocks[0].mixer.aggregate
    with torch.no_grad(), outputs_of(names) as found:
        logits = model(case["input.x"]).logits
    for name, value in found.items():
        as_tokens = name.startswith("inter.patch_embed")
        case.close(name, tokens(value) if as_tokens else value, atol=ALLOWED)
    case.close("output.logits", logits, atol=ALLOWED)
    with torch.no_grad():
        logits = model.train()(case["input.x"]).logits
    case.close("output.logits_train_mode", logits, atol=ALLOWED_IN_TRAINING)


def _config(c: dict[str, Any]) -> SMTConfig:
    # the config's own mixers: attention in the last stage, turns in the one before it
    assert c["ca_attentions"] == [1, 1, 1, 0]
    return SMTConfig(
        image_size=c["img"],
        depths=c["depths"],
        hidden_sizes=c["embed_dims"],
        modulation_heads=c["ca_num_heads"],
        num_heads=c["sa_num_heads"],
        mlp_ratios=c["mlp_ratios"],
        modulation_ratio=c["expand_ratio"],
        stem_kernel=c["head_conv"],
        qkv_bias=c["qkv_bias"],
        layer_scale_init=_layer_scale(c),
        num_labels=c["num_classes"],
    )


def _layer_scale(c: dict[str, Any]) -> float | None:
    start: float = c.get("layerscale_value", 1e-4)
    return start if c.get("use_layerscale") else None
