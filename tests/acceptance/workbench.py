"""The real model with its two calibrations, opened once, and measurements that are taken once."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import modwright
from modwright.anatomy import Anatomy, Attention, Mlp
from modwright.calibration import (
    BlockDistance,
    Collector,
    SecondMoments,
    Similarity,
    Statistics,
    calibrate,
    token_windows,
)
from modwright.edits import Change, Plan, keep_neurons, remove, replace_attention
from modwright.edits import apply as apply_plan
from modwright.metrics.perplexity import PerplexityRecipe, perplexity
from modwright.surgery import make_method

__all__ = ["Workbench"]

MODEL = "smollm2-135m"
HELD_OUT = PerplexityRecipe("lee", windows=6, length=512)


class Workbench:
    """Plans from shared statistics, measures each of them once, and writes the figures down.

    Every measurement is a JSON line in the file that MODWRIGHT_FIGURES names, if it names one.
    """

    def __init__(self) -> None:
        self.opened = modwright.open(MODEL)
        self.model = self.opened.model
        self.anatomy = Anatomy.of(self.model)
        self._measured: dict[str, float] = {}

    def _calibrate(self, collectors: list[Collector], **windows: int) -> Statistics:
        data = token_windows(self.opened.tokenizer, "lee-background", **windows)
        return calibrate(self.anatomy, data, collectors)

    @cached_property
    def scores(self) -> Statistics:
        """Similarities for LLM-Drop: 32 windows of 512 tokens."""
        collectors: list[Collector] = [Similarity(), BlockDistance(4)]
        return self._calibrate(collectors, windows=32, length=512, batch_size=4)

    @cached_property
    def moments(self) -> Statistics:
        """Second moments for MoDeGPT: 64 windows of 256 tokens."""
        return self._calibrate([SecondMoments()], windows=64, length=256, batch_size=8)

    # Plans

    def drop(self, n: int, target: str = "attention", **options: Any) -> Plan:
        method = make_method("llm_drop", {"n": n, "target": target, **options})
        found: Plan = method.plan_from(self.anatomy, self.scores)
        return found

    def drop_these(self, attentions: list[int]) -> Plan:
        parts = [self.anatomy.blocks[i].attention for i in attentions]
        change = sum((remove(part) for part in parts if part is not None), Change())
        return Plan.of(self.anatomy, "chosen at random", change)

    def narrow(self, sparsity: float, *pairs: str, **options: Any) -> Plan:
        """Widths as the paper has them: not rounded to a multiple."""
        given: dict[str, Any] = {"sparsity": sparsity, "round_to": 1, **options}
        if pairs:
            given["pairs"] = pairs
        found: Plan = make_method("modegpt", given).plan_from(self.anatomy, self.moments)
        return found

    def slice_neurons(self, choose: Any, keep: int) -> Plan:
        """Every MLP narrowed to ``choose(mlp, keep)``; nothing makes up for the rest."""
        mlps = [block.mlp for block in self.anatomy.blocks if block.mlp is not None]
        change = sum((keep_neurons(mlp, choose(mlp, keep)) for mlp in mlps), Change())
        return Plan.of(self.anatomy, "slicing", change)

    def slice_like(self, plan: Plan) -> Plan:
        """The widths of a plan for all three pairs, chosen by magnitude and cut without mending."""
        change = Change()
        for block, told in zip(self.anatomy.blocks, plan.reasons["blocks"]):
            assert block.mlp is not None and block.attention is not None
            change += keep_neurons(block.mlp, by_magnitude(block.mlp, told["intermediate_size"]))
            change += slice_heads(block.attention, told["qk_head_dim"], told["v_head_dim"])
        return Plan.of(self.anatomy, "slicing", change)

    def neurons_of(self, plan: Plan) -> Plan:
        """The neurons that a MoDeGPT plan keeps, cut without its compensation."""

        def kept(mlp: Mlp, keep: int) -> Tensor:
            new = plan.tensors[f"{mlp.up.address}.weight"]
            return (mlp.up.weight[:, None, :4] == new[None, :, :4]).all(-1).any(-1).nonzero()[:, 0]

        return self.slice_neurons(kept, 0)

    # Measurements

    def perplexity(self, name: str, plan: Plan | None = None, check: bool = False) -> float:
        """On held-out text. A name stands for one measurement; it is not taken twice."""
        if name not in self._measured:
            model = self.model
            if plan is not None:
                model = apply_plan(model, plan, check=check).model
            value = perplexity(model, self.opened.tokenizer, HELD_OUT).value
            self._measured[name] = value
            self.note(
                name,
                perplexity=round(value, 4),
                ratio=round(value / self.perplexity("dense"), 4),
                parameters=sum(p.numel() for p in model.parameters()),
            )
        return self._measured[name]

    def ratio(self, name: str, plan: Plan, check: bool = False) -> float:
        """Perplexity over that of the dense model."""
        return self.perplexity(name, plan, check) / self.perplexity("dense")

    def note(self, name: str, **figures: Any) -> None:
        path = os.environ.get("MODWRIGHT_FIGURES")
        if not path:
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        held_out = f"{HELD_OUT.data} {HELD_OUT.windows} x {HELD_OUT.length}"
        line = {"figure": name, "model": MODEL, "held_out": held_out, **figures}
        with Path(path).open("a") as out:
            out.write(json.dumps(line) + "\n")


def by_magnitude(mlp: Mlp, keep: int) -> Tensor:
    """The neurons with the largest weights, all their maps together."""
    assert mlp.gate is not None
    rows = (mlp.up.weight, mlp.gate.weight, mlp.down.weight.T)
    size = torch.stack([weight.square().sum(1) for weight in rows]).sum(0)
    return size.topk(keep).indices.sort().values


def at_random(mlp: Mlp, keep: int) -> Tensor:
    """The same neurons in every layer, seed 0."""
    drawn = torch.randperm(mlp.intermediate_size, generator=torch.Generator().manual_seed(0))
    return drawn[:keep].sort().values


def slice_heads(attention: Attention, qk: int, v: int) -> Change:
    """Keeps the rotary pairs and the value channels with the largest weights."""
    owner, half = attention.kv_of_head(), attention.shape.qk_head_dim // 2
    queries, keys = attention.read_q(), attention.read_k()
    values, outputs = attention.read_v(), attention.read_o()
    pairs, channels = [], []
    for head in range(attention.num_kv_heads):
        size = queries[owner == head].square().sum((0, 2)) + keys[head].square().sum(1)
        best = size.view(2, half).sum(0).topk(qk // 2).indices
        pairs.append(torch.cat((best, best + half)))
        size = outputs[owner == head].square().sum((0, 2)) + values[head].square().sum(1)
        channels.append(size.topk(v).indices)
    turned, kept = torch.stack(pairs), torch.stack(channels)

    def take(weight: Tensor, index: Tensor) -> Tensor:
        return weight.gather(1, index[..., None].expand(-1, -1, weight.shape[-1]))

    return replace_attention(
        attention,
        q=take(queries, turned[owner]),
        k=take(keys, turned),
        v=take(values, kept),
        o=take(outputs, kept[owner]),
        rotary_index=turned,
    )
