"""CRAFT: a small model from end to end with its parts, and the network of position biases."""

from __future__ import annotations

import torch
from torch import nn

from golden_checks import GoldenCase
from golden_checks.images import fill, outputs_of
from modwright.models.architectures.craft import CraftConfig, CraftForImageSuperResolution
from modwright.nn.windows import DynamicPositionBias

PART, WHOLE = 1e-5, 2e-5


def check(case: GoldenCase) -> None:
    with torch.no_grad():
        (_model if "upscale" in case.config else _bias)(case)


def _model(case: GoldenCase) -> None:
    c = case.config
    assert c["resi_connection"] == "1conv"
    config = CraftConfig(
        upscale=c["upscale"],
        hidden_size=c["embed_dim"],
        depths=c["depths"],
        num_heads=c["num_heads"],
        window=[c["split_size_0"], c["split_size_1"]],
        mlp_ratio=c["mlp_ratio"],
        img_range=c["img_range"],
        num_channels=c["input_shape"][1],
        image_size=c["input_shape"][2:],
    )
    model = fill(CraftForImageSuperResolution(config), case)
    group = model.groups[0]
    block = group.blocks[0]
    parts: dict[str, nn.Module] = {
        "inter.shallow": model.stem,
        "inter.srwab0": block.low[0],
        "inter.srwab1_shifted": block.low[1],
        "inter.hferb0": block.high,
        "inter.hfb0": block.fusion,
        "inter.rcrfg0": group,
    }
    with outputs_of(parts) as found:
        large = model(case["input.lr"]).reconstruction
    for name, value in found.items():
        case.close(name, value, atol=PART)
    case.close("output.sr", large, atol=WHOLE)


def _bias(case: GoldenCase) -> None:
    c = case.config
    width = c["dim"] // 4
    part = DynamicPositionBias(width, c["num_heads"], tuple(c["window"]))
    names = {"pos_proj": "proj"}
    for step in range(3):
        names |= {f"pos{step + 1}.{i}": f"steps.{step}.{i}" for i in (0, 2)}
    weights = {
        f"{ours}.{kind}": case[f"weight.{theirs}.{kind}"]
        for theirs, ours in names.items()
        for kind in ("weight", "bias")
    }
    part.load_state_dict(weights)
    case.close("output.bias", part.of(case["input.offsets"]), atol=PART)
