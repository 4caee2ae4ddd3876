"""Routing of a live model: changed in place, counted, and tied to the weights while they train."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_cases import close, experts_of, merge, split, windows
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from helpers import batch_of, edit, outputs, snapshot, worst
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.edits import remove
from modwright.surgery import apply, make_method
from modwright.surgery.routing import TieKeys, expert_usage, set_routing, set_top_k, tie_keys


def fresh(tiny: Any, preset: str = "tiny-llama", **options: Any) -> Any:
    """A split model of its own."""
    return copy.deepcopy(split(tiny(preset), **options).model)


# Changing how tokens are routed


def test_top_k_is_set_in_place_and_saved(tiny: Any, tmp_path: Path) -> None:
    model, dense = fresh(tiny, layers="all"), tiny("tiny-llama")
    far = [worst(outputs(model), outputs(dense))]
    for k in (4, 6):
        set_top_k(model, k)
        far.append(worst(outputs(model), outputs(dense)))
    assert far[0] > far[1] > far[2]
    model.save_pretrained(tmp_path / "six")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "six")
    assert [mlp.top_k for mlp in experts_of(back)] == [6] * 4
    assert torch.equal(outputs(back), outputs(model))
    set_top_k(model, 8)
    assert close(outputs(model), outputs(dense))


def test_routing_that_is_set_is_routing_that_was_planned(tiny: Any) -> None:
    for selection in ("bottom", "not_top"):
        model = fresh(tiny, score="up")
        set_top_k(model, 3, selection)
        planned = split(tiny("tiny-llama"), top_k=3, selection=selection, score="up").model
        assert torch.equal(outputs(model), outputs(planned))
        assert model.config.edits == planned.config.edits


def test_the_score_is_changed_with_what_it_stores(tiny: Any, tmp_path: Path) -> None:
    model = fresh(tiny, score="inter")
    set_routing(model, score="avg_key", mode="dispatch", normalize_keys=True)
    planned = split(tiny("tiny-llama"), score="avg_key", mode="dispatch", normalize_keys=True).model
    assert close(outputs(model), outputs(planned), 1e-6)
    assert snapshot(model).keys() == snapshot(planned).keys()
    model.save_pretrained(tmp_path / "saved")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert close(outputs(back), outputs(model), 1e-6)
    set_routing(model, score="gate", mode="mask", normalize_keys=False)
    assert torch.equal(outputs(model), outputs(split(tiny("tiny-llama")).model))
    assert merge(model).plain


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"top_k": 9}, r"blocks.0.mlp: top_k 9 must lie between 1 and 8"),
        ({"score": "value"}, "score 'value' is none of"),
        ({"num_experts": 4}, "routing has no 'num_experts'; it has capacity, mode, "),
        ({"depth": 4}, "routing has no 'depth'"),
    ],
)
def test_routing_that_cannot_be_changes_nothing(
    tiny: Any, changes: dict[str, Any], said: str
) -> None:
    model = fresh(tiny)
    before, config = outputs(model), copy.deepcopy(model.config.edits)
    with pytest.raises(InvalidInputError, match=said):
        set_routing(model, **changes)
    assert torch.equal(outputs(model), before) and model.config.edits == config


def test_a_dense_model_has_no_routing(tiny: Any) -> None:
    model = tiny("tiny-llama")
    for call in (
        lambda: set_top_k(model, 2),
        lambda: tie_keys(model),
        lambda: expert_usage(model, [batch_of(model)]),
    ):
        with pytest.raises(InvalidInputError, match="no MLP of this model is split into experts"):
            call()
    with pytest.raises(InvalidInputError, match=r"momentum 1.0 must lie in \[0, 1\)"):
        tie_keys(fresh(tiny), momentum=1.0)


# Counting


def test_usage_counts_every_token_but_padding(tiny: Any, preset: str) -> None:
    model = tiny(preset)
    if not isinstance(Anatomy.of(model).blocks[0].mlp, type(experts_holder(tiny))):
        pytest.skip("this family has experts of its own")
    parted = split(model, layers="all").model
    batch = batch_of(model)
    usage = expert_usage(parted, [batch, batch])
    mask = batch.get("attention_mask")
    inputs = Anatomy.of(model).family.inputs()
    tokens = 2 * inputs.positions(1) if mask is None else int(mask.sum())
    assert usage.tokens == 2 * tokens
    assert list(usage.counts) == [f"blocks.{i}.mlp" for i in range(4)]
    for address, counts in usage.counts.items():
        assert int(counts.sum()) == 2 * usage.tokens  # top 2
        assert float(usage.shares(address).sum()) == pytest.approx(2.0)


def experts_holder(tiny: Any) -> Any:
    return Anatomy.of(tiny("tiny-llama")).blocks[0].mlp


def test_usage_is_what_the_layer_did(tiny: Any) -> None:
    """Experts that nobody used can be emptied: nothing changes."""
    model = fresh(tiny, num_experts=48, top_k=1, layers=[1])
    batch = batch_of(model)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    usage = expert_usage(model, [batch])
    (idle,) = usage.below(1).values()
    assert 0 < len(idle) < 48
    assert usage.below(0) == {}
    before = outputs(model, batch)
    (mlp,) = experts_of(model)
    busy = next(e for e in range(48) if e not in idle)
    with torch.no_grad():
        for expert in idle:
            mlp.down.module.weight[:, 2 * expert : 2 * expert + 2] = 0
        assert torch.equal(outputs(model, batch), before)
        mlp.down.module.weight[:, 2 * busy : 2 * busy + 2] = 0
    assert not torch.equal(outputs(model, batch), before)


def test_usage_leaves_the_model_as_it_was(tiny: Any) -> None:
    model = fresh(tiny, "tiny-bert", capacity=1.0)
    model.train()
    before = snapshot(model)
    usage = expert_usage(model, windows())
    assert usage.tokens == 8 * 24
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())
    assert not any(mlp.module._forward_pre_hooks for mlp in experts_of(model))
    assert repr(usage).startswith("ExpertUsage(192 tokens; tokens per expert: blocks.0.mlp ")
    with pytest.raises(InvalidInputError, match="give at least one batch"):
        expert_usage(model, [])


# Training


def rows(model: Any, count: int = 8) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (count, 10), generator=generator)
    return [{"input_ids": one, "labels": one.clone()} for one in ids]


class Watching(TrainerCallback):
    """Looks, at the end of every step, how far stored keys are from the mean of the keys."""

    def __init__(self) -> None:
        self.drifts: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        (mlp,) = experts_of(kwargs["model"])
        self.drifts.append(worst(mlp.buffers()["avg_key"], mlp.module.mean_keys()))


def train(model: Any, place: Path, *callbacks: TrainerCallback, **changed: Any) -> Any:
    given: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }
    arguments = TrainingArguments(output_dir=str(place), **{**given, **changed})
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows(model), callbacks=list(callbacks)
    )
    trainer.train()
    return trainer


def test_stored_keys_do_not_drift_under_a_trainer(tiny: Any, tmp_path: Path) -> None:
    model = fresh(tiny, score="avg_key", layers=[2])
    start = experts_of(model)[0].buffers()["avg_key"].clone()
    watching = Watching()
    train(model, tmp_path, TieKeys(), watching)
    assert watching.drifts == [0.0] * 4
    assert worst(experts_of(model)[0].buffers()["avg_key"], start) > 1e-3
    left_alone = fresh(tiny, score="avg_key", layers=[2])
    watching = Watching()
    train(left_alone, tmp_path, watching)
    assert all(drift > 1e-3 for drift in watching.drifts)


def test_stored_keys_that_are_tied_train_as_keys_that_are_averaged(
    tiny: Any, tmp_path: Path
) -> None:
    """The two forms of the same score, step by step, and both execute alike at the end."""
    stored, averaged = fresh(tiny, score="avg_key"), fresh(tiny, score="gate")
    train(stored, tmp_path, TieKeys())
    train(averaged, tmp_path)
    assert close(outputs(stored.eval()), outputs(averaged.eval()))
    set_routing(stored, mode="dispatch")
    assert close(outputs(stored), outputs(averaged))
    moved = worst(outputs(averaged), outputs(split(tiny("tiny-llama")).model))
    assert moved > 1e-2


def test_momentum_lets_stored_keys_follow_slowly(tiny: Any, tmp_path: Path) -> None:
    slow, watching = fresh(tiny, score="avg_key", layers=[2]), Watching()
    train(slow, tmp_path, TieKeys(momentum=0.9), watching)
    assert all(drift > 1e-4 for drift in watching.drifts)


def test_a_stopped_training_goes_on_with_the_keys_it_had(tiny: Any, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = fresh(tiny, score="avg_key")
    train(whole, tmp_path / "whole", TieKeys(0.5), **saving)
    part = fresh(tiny, score="avg_key")
    arguments = {"max_steps": 4, **saving}
    trainer = train(part, tmp_path / "part", TieKeys(0.5), **arguments)
    again = fresh(tiny, score="avg_key")
    trainer = Trainer(
        model=again, args=trainer.args, train_dataset=rows(again), callbacks=[TieKeys(0.5)]
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))
    for name, value in snapshot(whole).items():
        torch.testing.assert_close(snapshot(again)[name], value, rtol=0, atol=1e-6)


def test_what_was_trained_in_experts_merges_into_a_dense_model(tiny: Any, tmp_path: Path) -> None:
    model = fresh(tiny, layers="all", top_k=6)
    train(model, tmp_path / "run")
    merged = merge(model).model
    set_top_k(model, 8)
    assert close(outputs(merged), outputs(model.eval()))
    assert worst(outputs(merged), outputs(tiny("tiny-llama"))) > 1e-2
    merged.save_pretrained(tmp_path / "merged")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(back) is type(tiny("tiny-llama"))
    assert torch.equal(outputs(back), outputs(merged))


def test_adapters_leave_the_gate_alone(tiny: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = fresh(tiny, score="avg_key")
    before = [mlp.buffers()["avg_key"].clone() for mlp in experts_of(model)]
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    train(tuned, tmp_path, TieKeys(), max_steps=2)
    merged = tuned.merge_and_unload()
    after = [mlp.buffers()["avg_key"] for mlp in experts_of(merged)]
    assert all(close(one, other, 1e-6) for one, other in zip(after, before))
    assert worst(outputs(merged.eval()), outputs(split(tiny("tiny-llama")).model)) > 1e-4


def test_a_removed_expert_layer_needs_no_tying(tiny: Any) -> None:
    model = fresh(tiny, score="avg_key", layers=[0, 1])
    left = edit(model, remove(experts_of(model)[0])).model
    tie_keys(left)
    assert [mlp.address for mlp in experts_of(left)] == ["blocks.1.mlp"]
    assert merge(apply(left, make_method("drop", {"parts": "attention[2]"})).model)
