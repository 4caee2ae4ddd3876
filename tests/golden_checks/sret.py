"""SReT: slices with the permutations of the reference's one draw, and the model without slices."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from golden_checks import GoldenCase
from golden_checks.images import fill, outputs_of
from modwright.models.architectures.sret import SReTConfig, SReTForImageClassification

ALLOWED = 1e-5
SLICED = {"SReT": True, "RecursiveTransformer": False}


def check(case: GoldenCase) -> None:
    model = fill(SReTForImageClassification(_config(case.config)), case, case.meta.get("aliases"))
    _permute(model, case)
    names: dict[str, nn.Module] = {"inter.embed": model.stem.positions}
    for s, stage in enumerate(model.stages):
        names[f"inter.stage{s}"] = stage
        if s:
            names[f"inter.pool{s - 1}"] = stage.downsample
    with torch.no_grad(), outputs_of(names) as found:
        logits = model(case["input.x"]).logits
    for name, value in found.items():
        case.close(name, value, atol=ALLOWED)
    case.close("output.logits", logits, atol=ALLOWED)


def _permute(model: Any, case: GoldenCase) -> None:
    """The reference draws one order for each second pass with slices, in the order of blocks."""
    mixers = [block.mixer for stage in model.stages for block in stage.blocks.shared]
    shuffling = [mixer for mixer in mixers if mixer.groups[-1] > 1 and len(mixer.groups) > 1]
    drawn = case.names("input.perm.")
    assert case.meta["perm_order"] == "call order during one forward"
    assert len(drawn) == len(shuffling)
    for index, mixer in enumerate(shuffling):
        mixer.fix_permutation(case[f"input.perm.{index}"])


def _config(c: dict[str, Any]) -> SReTConfig:
    (head_dim,) = set(c["base_dims"])
    whole = [1] * len(c["depth"])
    assert ("groups1" in c) == ("groups2" in c) == SLICED[c["cls"]]
    return SReTConfig(
        image_size=c["image_size"],
        head_dim=head_dim,
        num_heads=c["heads"],
        depths=c["depth"],
        blocks=c["recursive_num"],
        groups_first=c.get("groups1", whole),
        groups_later=c.get("groups2", whole),
        mlp_ratio=c["mlp_ratio"],
        projection_ratio=c["np_mlp_ratio"],
        num_labels=c["num_classes"],
    )
