"""EMoE on a gated feed-forward part: neurons grouped by given labels, chosen by each score."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from golden_checks import GoldenCase
from modwright.nn import ExpertFeedForward, ExpertShape
from modwright.nn.channel_mixers.expert_feed_forward import mean_keys

ATOL = 1e-5
WITHOUT_SCORE = {"output.dense", "output.topk_all"}


def check(case: GoldenCase) -> None:
    c = case.config
    order = case["input.labels"].argsort(stable=True)
    maps = {role: case[f"weight.{role}_proj"] for role in ("gate", "up", "down")}
    assert tuple(maps["gate"].shape) == (c["I"], c["d"])
    grouped = {role: w[:, order] if role == "down" else w[order] for role, w in maps.items()}
    case.close("inter.gate_proj_rearranged", grouped["gate"])
    case.close("inter.down_proj_rearranged", grouped["down"])
    for name in case.names("output."):
        score, top_k = name.removeprefix("output."), c["topk"]
        if name in WITHOUT_SCORE:
            score, top_k = "gate", c["n_expert"]
        for mode in ("mask", "dispatch"):
            case.close(name, run(case, grouped, score, top_k, mode), atol=ATOL)
    if "output.gate" in case:  # stored mean keys rank as the pre-activations of the gate do
        case.close("output.gate", run(case, grouped, "avg_key", c["topk"], "mask"), atol=ATOL)


@torch.no_grad()
def run(case: GoldenCase, maps: dict[str, Tensor], score: str, top_k: int, mode: str) -> Tensor:
    c = case.config
    shape = ExpertShape(
        c["d"], c["I"], c["act"], True, "", c["n_expert"], top_k, score=score, mode=mode
    )
    part = ExpertFeedForward(shape, ACT2FN[c["act"]]).to(maps["gate"].dtype)
    weights = {f"{role}_proj.weight": weight for role, weight in maps.items()}
    if part.avg_key is not None:
        weights["avg_key"] = mean_keys(shape, maps["gate"], maps["down"])
    part.load_state_dict({**weights, "order": part.order})
    out: Tensor = part(case["input.x"])
    return out
