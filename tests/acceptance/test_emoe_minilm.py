"""EMoE on real models: its experts are in the weights, they can be trained, and they merge back.

Sizes are those of a test; with MODWRIGHT_FIGURES set, those of the figures in docs/papers/emoe.md.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from figures import FULL, note
from torch import Tensor
from torch.nn import functional as F
from two_domains import Arm, Task, fine_tune

import modwright
from modwright.anatomy import Anatomy, Mlp
from modwright.calibration import token_windows
from modwright.edits.registry import build_part
from modwright.surgery import apply, make_method
from modwright.surgery.clustering import inertia, split_evenly
from modwright.surgery.routing import expert_usage, set_top_k

pytestmark = [pytest.mark.slow, pytest.mark.models]

SPLIT: dict[str, Any] = {"num_experts": 64, "top_k": 16}
SPLITS = ("kmeans", "contiguous", "random")


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["minilm", "smollm2-135m"])
def opened(request: pytest.FixtureRequest) -> Any:
    return modwright.open(request.param)


@torch.no_grad()
def run(model: Any, length: int = 64) -> Tensor:
    ids = torch.randint(1000, 20000, (1, length), generator=torch.Generator().manual_seed(0))
    out: Tensor = model.eval()(input_ids=ids)[0]
    return out


def test_the_dense_model_is_in_it_and_comes_back(opened: Any, tmp_path: Path) -> None:
    model = opened.model
    dense = run(model)
    split = apply(model, make_method("emoe", {**SPLIT, "layers": "-3:"})).model
    assert (run(split) - dense).abs().max() > 1e-2
    set_top_k(split, 64)
    assert (run(split) - dense).abs().max() <= 1e-5 * dense.abs().max()
    merged = apply(split, make_method("emoe_merge"))
    assert merged.plain and type(merged.model) is type(model)
    before, after = model.state_dict(), merged.model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_layer_may_be_split() -> None:
    """Here a cache moves logits by more than rounding, where experts tie: the check knows."""
    options = {"num_experts": 16, "top_k": 4, "layers": "all", "cluster": "contiguous"}
    result = apply(modwright.open("smollm2-135m").model, make_method("emoe", options))
    assert result.verification is not None and result.verification.ok


def test_a_split_model_is_saved_reloaded_and_generates(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = modwright.open("smollm2-135m")
    method = make_method("emoe", {**SPLIT, "score": "avg_key", "mode": "dispatch"})
    split = apply(source.model, method).model
    split.save_pretrained(tmp_path / "split")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "split").eval()
    assert (run(back) - run(split)).abs().max() <= 1e-5 * run(split).abs().max()
    prompt = source.tokenizer("The capital of France is", return_tensors="pt")
    texts = {
        use: back.generate(**prompt, max_new_tokens=16, do_sample=False, use_cache=use)
        for use in (True, False)
    }
    assert torch.equal(texts[True], texts[False])
    said = source.tokenizer.decode(texts[True][0], skip_special_tokens=True)
    note("emoe generates", split="last two even layers, 16 of 64", text=said)
    assert "Paris" in said


# Emergent structure


def layers_of(anatomy: Anatomy) -> list[Mlp]:
    """All MLPs for the figures; for a test, six of them spread over the depth."""
    mlps = [block.mlp for block in anatomy.blocks if isinstance(block.mlp, Mlp)]
    step = 1 if FULL else max(1, len(mlps) // 6)
    return mlps[step // 2 :: step]


@torch.no_grad()
def inputs_of(opened: Any, mlps: list[Mlp]) -> dict[str, Tensor]:
    """What each MLP reads over held-out text: 1024 tokens of the Lee corpus."""
    seen: dict[str, Tensor] = {}
    hooks = []
    for mlp in mlps:

        def hook(module: Any, args: Any, address: str = mlp.address) -> None:
            seen[address] = args[0].flatten(0, -2)

        hooks.append(mlp.sublayer_input.module.register_forward_pre_hook(hook))
    (batch,) = token_windows(opened.tokenizer, "lee", windows=4, length=256, batch_size=4)
    opened.model.eval()(**batch.tensors())
    for one in hooks:
        one.remove()
    kept = slice(None) if batch.attention_mask is None else batch.attention_mask.flatten().bool()
    return {address: x[kept] for address, x in seen.items()}


@torch.no_grad()
def output_error(mlp: Mlp, x: Tensor, labels: Tensor) -> float:
    """||y_experts - y|| / ||y|| over the tokens x."""
    from modwright.edits import expert_shape, split_mlp

    shape = expert_shape(mlp, **SPLIT, score="gate")
    part = build_part("expert_feed_forward", None, shape.to_dict())
    state = {
        f"{name.removeprefix(mlp.address + '.').replace('.', '_proj.')}": value
        for name, value in split_mlp(mlp, labels, shape).tensors.items()
    }
    part.load_state_dict(state)
    sparse = part(x)
    part.reroute(type(shape)(**{**shape.to_dict(), "top_k": shape.num_experts}))
    dense = part(x)
    return float((sparse - dense).norm() / dense.norm())


def test_clustered_experts_keep_more_of_the_function(opened: Any) -> None:
    """A quarter of the neurons, chosen in groups: groups of like keys lose least."""
    mlps = layers_of(opened.anatomy)
    inputs = inputs_of(opened, mlps)
    errors: dict[str, list[float]] = {how: [] for how in SPLITS}
    inertias: dict[str, list[float]] = {how: [] for how in SPLITS}
    for mlp in mlps:
        keys = F.normalize((mlp.up if mlp.gate is None else mlp.gate).weight, dim=1)
        for how in SPLITS:
            labels = split_evenly(keys, 64, how)
            assert torch.bincount(labels).tolist() == [mlp.intermediate_size // 64] * 64
            errors[how].append(output_error(mlp, inputs[mlp.address], labels))
            inertias[how].append(inertia(keys, labels))
        assert inertias["kmeans"][-1] < min(inertias["contiguous"][-1], inertias["random"][-1])
    means = {how: statistics.mean(found) for how, found in errors.items()}
    note(
        "emoe output error",
        model=opened.anatomy.family.name,
        layers=len(mlps),
        tokens=len(inputs[mlps[0].address]),
        split="16 of 64",
        **{how: round(mean, 4) for how, mean in means.items()},
        lowest_in=sum(
            one < min(two, three) for one, two, three in zip(*errors.values(), strict=True)
        ),
        by_layer={how: [round(e, 4) for e in found] for how, found in errors.items()},
        inertia={how: round(statistics.mean(found), 2) for how, found in inertias.items()},
    )
    assert means["kmeans"] < means["contiguous"] and means["kmeans"] < means["random"]


def test_every_expert_is_used_by_some_tokens(opened: Any) -> None:
    split = apply(opened.model, make_method("emoe", SPLIT), check=False).model
    data = token_windows(opened.tokenizer, "lee", windows=8, length=256, batch_size=4)
    usage = expert_usage(split, data)
    told = {}
    for address, counts in usage.counts.items():
        share = usage.shares(address)
        assert float(share.sum()) == pytest.approx(16)
        told[address] = {
            "least": round(float(share.min()), 4),
            "most": round(float(share.max()), 4),
            "unused": int((counts == 0).sum()),
        }
    note("emoe usage", model=opened.anatomy.family.name, tokens=usage.tokens, **told)
    assert usage.tokens > 1000
    assert max(entry["unused"] for entry in told.values()) <= 16


# Fine-tuning


def test_fine_tuning_with_the_best_experts_beats_that_with_the_worst(tmp_path: Path) -> None:
    """Of merged models, which is what is served. Three seeds; no promise over dense."""
    source = modwright.open("minilm")
    steps, test = (120, 900) if FULL else (50, 300)
    task = Task(source.tokenizer, train=16 * steps, test=test)
    arms = [Arm("top", SPLIT), Arm("bottom", {**SPLIT, "selection": "bottom"})]
    if FULL:
        arms += [Arm("dense"), Arm("not top", {**SPLIT, "selection": "not_top"})]
        arms += [Arm("contiguous", {**SPLIT, "cluster": "contiguous"})]
    means: dict[str, float] = {}
    for arm in arms:
        runs = [fine_tune(source.model, task, arm, seed, steps, str(tmp_path)) for seed in range(3)]
        found = {key: statistics.mean(one[key] for one in runs) for key in runs[0]}
        served = [found.get(f"{name}, merged", found[name]) for name in task.tests]
        means[arm.name] = statistics.mean(served)
        note(
            f"emoe fine-tuning {arm.name}",
            model="minilm",
            steps=steps,
            passages=test,
            seeds=3,
            **{name: round(value, 4) for name, value in found.items()},
            by_seed=[{name: round(value, 4) for name, value in one.items()} for one in runs],
        )
    assert means["top"] >= means["bottom"]
    assert means["top"] > 0.6  # something was learned
