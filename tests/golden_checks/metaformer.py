"""MetaFormer: PoolFormers, and a pyramid with four kinds of mixers; values and gradients."""

from __future__ import annotations

from typing import Any

from torch import nn

from golden_checks import GoldenCase
from golden_checks.images import fill, outputs_of
from modwright.models.architectures.metaformer import (
    MetaFormerConfig,
    MetaFormerForImageClassification,
)
from modwright.models.importing import checkpoint_formats

ALLOWED = 1e-5


def check(case: GoldenCase) -> None:
    model = fill(MetaFormerForImageClassification(_config(case.config)), case)
    names: dict[str, nn.Module] = {"inter.stem": model.stem}
    names |= {f"inter.stage{s}": stage for s, stage in enumerate(model.stages)}
    names |= _network(model)
    with outputs_of(names) as found:
        logits = model(case["input.x"]).logits
    for name, value in found.items():
        if name in case:
            case.close(name, value, atol=ALLOWED)
    case.close("output.logits", logits.detach(), atol=ALLOWED)
    if "grad.input_loss" in case:
        loss = (logits**2).mean()
        loss.backward()
        case.close("grad.input_loss", loss.detach().view_as(case["grad.input_loss"]), atol=ALLOWED)
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        official = checkpoint_formats(model)["official"].to_theirs(gradients).tensors
        for name in set(case.names("grad.")) - {"grad.input_loss"}:
            case.close(name, official[name.removeprefix("grad.")], atol=ALLOWED)


NORMS = {"LayerNormChannel": "ln", "GroupNorm(1,C,eps=1e-5)": "gn1"}


def _config(c: dict[str, Any]) -> MetaFormerConfig:
    stages = len(c["layers"])
    assert c.get("down_patch", [3, 2, 1]) == [3, 2, 1]
    return MetaFormerConfig(
        image_size=list(c["img"]),
        depths=c["layers"],
        hidden_sizes=c["embed_dims"],
        mlp_ratios=c.get("mlp_ratios", [4] * stages),
        token_mixers=c.get("token_mixers", ["pool"] * stages),
        norm=NORMS[c["norm"]],
        act=c.get("act", "gelu"),
        stem=c.get("in_patch", [7, 4, 2]),
        positions=c.get("add_pos_embs", [False] * stages),
        pool_size=c.get("pool_size", 3),
        attention_head_dim=c.get("attention_head_dim", 32),
        num_labels=c["num_classes"],
    )


def _network(model: Any) -> dict[str, nn.Module]:
    """The parts in the order of the reference's one list."""
    parts: list[nn.Module] = []
    for stage in model.stages:
        parts += [part for part in (stage.downsample, stage.positions) if part is not None]
        parts.append(stage.blocks)
    return {f"inter.network{i}": part for i, part in enumerate(parts)}
