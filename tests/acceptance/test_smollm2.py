"""LLM-Drop and MoDeGPT on SmolLM2-135M-Instruct, by perplexity on text that neither has seen.

The thresholds leave room around figures measured before. One model, one calibration for each
method, one measurement for each setting.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from workbench import Workbench, at_random, by_magnitude

from modwright.anatomy import Anatomy
from modwright.cost import kv_cache_bytes
from modwright.edits import Plan
from modwright.edits import apply as apply_plan

pytestmark = [pytest.mark.slow, pytest.mark.models]

DENSE = 134_515_008


@pytest.fixture(scope="module")
def bench() -> Iterator[Workbench]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    yield Workbench()
    torch.set_num_threads(threads)


def test_the_dense_model_is_the_one_that_is_meant(bench: Workbench) -> None:
    assert bench.perplexity("dense") == pytest.approx(30.92, abs=0.01)
    assert bench.anatomy.num_parameters == DENSE and bench.anatomy.is_tied


# LLM-Drop


def attention_ratio(bench: Workbench, n: int) -> float:
    return bench.ratio(f"llm_drop attention {n}", bench.drop(n))


@pytest.mark.parametrize(("n", "most"), [(4, 1.25), (10, 1.75)])
def test_redundant_attentions_cost_little(bench: Workbench, n: int, most: float) -> None:
    assert attention_ratio(bench, n) <= most


def test_similarity_chooses_better_than_chance(bench: Workbench) -> None:
    ratios = []
    for seed in range(5):
        drawn = torch.randperm(30, generator=torch.Generator().manual_seed(seed))[:4].tolist()
        name = f"random attention 4, seed {seed}: {' '.join(map(str, sorted(drawn)))}"
        ratios.append(bench.ratio(name, bench.drop_these(drawn)))
    mean = sum(ratios) / len(ratios)
    bench.note("random attention 4, mean of 5", ratio=round(mean, 4))
    assert attention_ratio(bench, 4) < mean


@pytest.mark.parametrize("target", ["mlp", "block"])
def test_attentions_are_more_redundant_than_the_rest(bench: Workbench, target: str) -> None:
    other = bench.ratio(f"llm_drop {target} 4", bench.drop(4, target))
    assert other >= 1.3 * attention_ratio(bench, 4)


def test_a_joint_ranking_picks_attentions_first(bench: Workbench) -> None:
    joint, attention = bench.drop(4, "joint"), bench.drop(4)
    bench.note(
        "llm_drop order",
        **{kind: bench.drop(12, kind).reasons["order"] for kind in ("attention", "mlp", "joint")},
    )
    assert joint.edits == attention.edits


def test_blocks_in_a_row_are_blocks_in_a_row(bench: Workbench) -> None:
    plan = bench.drop(4, "block", consecutive=True)
    gone = plan.reasons["removed"]["block"]
    assert gone == list(range(gone[0], gone[0] + 4))
    bench.ratio(f"llm_drop blocks {gone[0]} to {gone[-1]}", plan)


def test_six_attentions_are_a_fifth_of_the_cache(bench: Workbench) -> None:
    applied = apply_plan(bench.model, bench.drop(6))
    assert applied.verification is not None and applied.verification.ok
    after, before = Anatomy.of(applied.model), bench.anatomy
    sizes = [kv_cache_bytes(anatomy, 512, batch=8) for anatomy in (before, after)]
    assert sizes[1] * 5 == sizes[0] * 4
    assert [stored_in_cache(anatomy.model) for anatomy in (before, after)] == [
        kv_cache_bytes(anatomy, 16, batch=2) for anatomy in (before, after)
    ]
    per_attention = 2 * 576 * 9 * 64 + 2 * 576 * 3 * 64 + 576
    assert after.num_parameters == DENSE - 6 * per_attention
    bench.note("llm_drop attention 6, cache", before=sizes[0], after=sizes[1])
    attention_ratio(bench, 6)


@torch.no_grad()
def stored_in_cache(model: Any) -> int:
    cache = model(torch.full((2, 16), 5), use_cache=True).past_key_values
    held = [t for layer in cache.layers for t in (layer.keys, layer.values) if t is not None]
    return sum(t.numel() * t.element_size() for t in held)


# MoDeGPT


def mlp_ratio(bench: Workbench, sparsity: float, allocation: str = "uniform") -> float:
    return bench.ratio(
        f"modegpt mlp {sparsity} {allocation}", mlp_plan(bench, sparsity, allocation)
    )


PLANS: dict[str, Plan] = {}


def mlp_plan(bench: Workbench, sparsity: float, allocation: str = "uniform") -> Plan:
    """Solved once."""
    key = f"{sparsity} {allocation}"
    if key not in PLANS:
        PLANS[key] = bench.narrow(sparsity, "mlp", allocation=allocation)
    return PLANS[key]


def parameters_of(bench: Workbench, plan: Plan) -> int:
    return Anatomy.of(apply_plan(bench.model, plan, check=False).model).num_parameters


@pytest.mark.parametrize(("sparsity", "most"), [(0.2, 1.50), (0.3, 1.85)])
def test_mlps_narrowed_alike(bench: Workbench, sparsity: float, most: float) -> None:
    assert mlp_ratio(bench, sparsity) <= most
    width = int(1536 * (1 - sparsity))
    expected = DENSE - 30 * 3 * 576 * (1536 - width)
    assert parameters_of(bench, mlp_plan(bench, sparsity)) == expected


@pytest.mark.parametrize("sparsity", [0.2, 0.3])
def test_the_compensation_is_worth_more_than_the_choice(bench: Workbench, sparsity: float) -> None:
    ours = mlp_ratio(bench, sparsity)
    keep = int(1536 * (1 - sparsity))
    same_neurons = bench.neurons_of(mlp_plan(bench, sparsity))
    assert parameters_of(bench, same_neurons) == parameters_of(bench, mlp_plan(bench, sparsity))
    sliced = bench.ratio(f"leverage {sparsity}, sliced", same_neurons)
    magnitude = bench.ratio(
        f"magnitude {sparsity}, sliced", bench.slice_neurons(by_magnitude, keep)
    )
    assert ours < sliced and ours < magnitude
    assert magnitude >= 10 * ours


def test_random_neurons_are_worse(bench: Workbench) -> None:
    name = "random neurons 0.2, sliced"
    assert mlp_ratio(bench, 0.2) < bench.ratio(name, bench.slice_neurons(at_random, 1228))


def test_mlps_narrowed_by_importance(bench: Workbench) -> None:
    found = mlp_ratio(bench, 0.2, "global")
    assert found <= 1.40
    assert found < mlp_ratio(bench, 0.2)


def test_query_key_pairs_are_nearly_free(bench: Workbench) -> None:
    plan = bench.narrow(0.2, "query_key", allocation="uniform")
    assert bench.ratio("modegpt query_key 0.2 uniform", plan) <= 1.12


def test_shared_values_are_narrowed_jointly(bench: Workbench) -> None:
    found = {
        how: bench.ratio(
            f"modegpt value_output 0.2 uniform {how}",
            bench.narrow(0.2, "value_output", allocation="uniform", shared_values=how),
        )
        for how in ("joint", "two_step")
    }
    assert found["joint"] <= 1.20
    assert found["joint"] < found["two_step"]


def test_all_three_pairs_together(bench: Workbench) -> None:
    plan = bench.narrow(0.2)
    ours = bench.ratio("modegpt all 0.2 global joint", plan, check=True)
    assert ours <= 1.80

    removed = 0
    for share in plan.reasons["sparsity"]:
        inner, qk, v = (int(size * (1 - share)) for size in (1536, 64, 64))
        removed += 3 * 576 * (1536 - inner)
        removed += 576 * (9 + 3) * (64 - (qk - qk % 2) + 64 - v)
    assert sum(plan.reasons["sparsity"]) / 30 == pytest.approx(0.2)
    assert parameters_of(bench, plan) == DENSE - removed

    rival = bench.slice_like(plan)
    assert parameters_of(bench, rival) == DENSE - removed
    assert bench.ratio("magnitude all 0.2, sliced", rival) >= 10 * ours
