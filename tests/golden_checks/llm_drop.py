"""LLM-Drop: similarities of a tiny Llama, and which parts go."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from golden_checks import GoldenCase
from modwright.anatomy import Anatomy
from modwright.calibration import BlockDistance, Similarity, Statistics, TokenWindows, calibrate
from modwright.data.text import Batch
from modwright.surgery import make_method
from modwright.surgery.llm_drop import gap_table

TOLERANCE = 1e-5
PARTS = {"attn": "attention", "mlp": "mlp"}
TARGETS = {"attn": "attention", "mlp": "mlp", "all": "joint", "block": "block"}


def check(case: GoldenCase) -> None:
    anatomy = Anatomy.of(_model(case))
    layers = case.config["layers"]
    mask = case.tensors.get("input.mask")
    ids = case["input.ids"]
    windows = TokenWindows((Batch(ids, mask),), {"data": "golden", "tokens": ids.numel()})

    def statistics(drop_norm: bool) -> Statistics:
        return calibrate(anatomy, windows, [Similarity(drop_norm), BlockDistance(layers)])

    with_norm = statistics(drop_norm=True)
    for drop_norm, found in ((True, with_norm), (False, statistics(drop_norm=False))):
        for theirs, ours in PARTS.items():
            name = f"output.sim.{theirs}.drop_norm_{drop_norm}"
            if name in case:
                case.close(name, torch.tensor(found.column(ours)), atol=TOLERANCE)
    if "output.sim.block" in case:
        case.close("output.sim.block", torch.tensor(with_norm.column("block")), atol=TOLERANCE)
    if "output.sim.consecutive" in case:
        table = gap_table([values["gaps"].tolist() for values in with_norm])
        case.close("output.sim.consecutive", torch.tensor(table), atol=TOLERANCE)
    for theirs, target in TARGETS.items():
        name = f"output.dropped.{theirs}"
        if name in case:
            case.equal(name, _dropped(anatomy, with_norm, target, case.config["drop_n"]))


def _model(case: GoldenCase) -> LlamaForCausalLM:
    c = case.config
    config = LlamaConfig(
        vocab_size=c["vocab"],
        hidden_size=c["d"],
        intermediate_size=c["I"],
        num_hidden_layers=c["layers"],
        num_attention_heads=c["H"],
        num_key_value_heads=c["K"],
        rms_norm_eps=c["rms_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": c["rope_theta"]},
    )
    model = LlamaForCausalLM(config).eval()
    weights = {
        name.removeprefix("weight."): tensor
        for name, tensor in case.tensors.items()
        if name.startswith("weight.")
    }
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert unexpected == [] and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    return model


def _dropped(anatomy: Anatomy, statistics: Statistics, target: str, n: int) -> Tensor:
    """Most similar first; in a joint ranking the MLPs count on after the attentions."""
    plan = make_method("llm_drop", {"n": n, "target": target}).plan_from(anatomy, statistics)
    picked = (entry.split() for entry in plan.reasons["order"])
    offset = len(anatomy.blocks) if target == "joint" else 0
    return torch.tensor([int(i) + (offset if kind == "mlp" else 0) for kind, i in picked])
