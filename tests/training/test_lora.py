"""Adapters: every matrix has some or is named, and merged they are what they were live."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrize

from helpers import batch_of, edit, outputs, snapshot, unchanged, worst
from models.tiny import tiny as tiny_image_model
from modwright.anatomy import Anatomy
from modwright.checkpoint import with_classes
from modwright.core.errors import InvalidInputError
from modwright.edits import factorize, keep_neurons, remove
from modwright.training.learning import learn
from modwright.training.lora import Lora, LowRankDelta, inject_lora


def factored(model: Any) -> Any:
    up = Anatomy.of(model).part("blocks.1.mlp.up")
    u, s, v = torch.linalg.svd(up.weight)
    return edit(model, factorize(up, u[:, :8] * s[:8], v[:8]), check=False).model


def narrowed(model: Any) -> Any:
    anatomy = Anatomy.of(model)
    change = keep_neurons(anatomy.blocks[0].mlp, range(40))
    return edit(model, change, check=False).model


def alive(model: Any) -> Any:
    """With branches that count, which begin near nothing."""
    with torch.no_grad():
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


WHOLE = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")

MODELS = {
    "linear layers": lambda tiny: tiny.copy("tiny-llama"),
    "transposed layers": lambda tiny: tiny.copy("tiny-gpt2"),
    "experts": lambda tiny: tiny.copy("tiny-mixtral"),
    "factor pairs": lambda tiny: factored(tiny.copy("tiny-llama")),
    "a narrowed part": lambda tiny: narrowed(tiny.copy("tiny-llama")),
    "components": lambda tiny: tiny_image_model("vision_transformer"),
    "pointwise convolutions": lambda tiny: alive(tiny_image_model("metaformer")),
}


def disturb(model: Any) -> None:
    """As if something had been learned."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)


@pytest.mark.parametrize("kind", MODELS)
def test_fault_A25_merged_adapters_are_what_they_were_live(kind: str, tiny: Any) -> None:
    model = MODELS[kind](tiny)
    names, before = set(model.state_dict()), outputs(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    kinds = {name: type(module) for name, module in model.named_modules()}
    learned = learn(model, {"lora": {"r": 3, "alpha": 6}})
    assert worst(outputs(model), before) < 1e-6
    assert 0 < learned.num_parameters < sum(p.numel() for p in model.parameters())
    disturb(model)
    live = outputs(model)
    assert worst(live, before) > 1e-3
    learned.finish()
    assert worst(outputs(model), live) <= 1e-5 * max(1.0, float(live.abs().max()))
    assert set(model.state_dict()) == names
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert {name: type(module) for name, module in model.named_modules()} == kinds


@pytest.mark.parametrize("kind", MODELS)
def test_fault_A25_every_matrix_in_the_blocks_has_an_adapter_that_learns(
    kind: str, tiny: Any
) -> None:
    model = MODELS[kind](tiny)
    blocks = {id(p) for b in Anatomy.of(model).blocks for p in b.module.parameters()}
    matrices = {n for n, p in model.named_parameters() if id(p) in blocks and p.dim() > 1}
    adapters = inject_lora(model, Lora(r=2))
    covered = {f"{path}.weight" for path in adapters.of_peft}
    covered |= {f"{path}.{name}" for path, name in adapters.own}
    assert covered | set(adapters.left) == matrices and not covered & set(adapters.left)
    sum(t.square().sum() for t in model(**batch_of(model), return_dict=True)[:1]).backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent


def test_what_an_adapter_adds_is_its_formula() -> None:
    weight = torch.randn(3, 5, 4)
    delta = LowRankDelta(weight, 2, 1.5)
    with torch.no_grad():
        delta.b.normal_()
    truth = torch.stack([w + 1.5 * b @ a for w, a, b in zip(weight, delta.a, delta.b)])
    assert torch.allclose(delta(weight), truth, atol=1e-6)
    assert LowRankDelta(torch.randn(3, 2), 16, 1.0).a.shape == (2, 2)


def test_a_teacher_keeps_its_memory_when_adapters_are_merged(tiny: Any) -> None:
    teacher = tiny.copy("tiny-llama")
    student = edit(teacher, remove(Anatomy.of(teacher).blocks[0].attention), check=False).model
    flags, before = [p.requires_grad for p in teacher.parameters()], snapshot(teacher)
    learned = learn(student, {"lora": {"r": 2}}, apart_from=[teacher])
    shared = {p.data_ptr() for p in teacher.parameters()}
    assert sum(p.data_ptr() in shared for p in student.parameters()) > 20
    disturb(student)
    learned.finish()
    assert unchanged(teacher, before)
    assert [p.requires_grad for p in teacher.parameters()] == flags


def test_targets_are_selectors_or_ends_of_names(tiny: Any) -> None:
    model = tiny.copy("tiny-llama")
    assert len(inject_lora(tiny.copy("tiny-llama"), Lora(target="mlp[0, 2]")).of_peft) == 6
    assert len(inject_lora(model, Lora(target="q_proj, v_proj")).of_peft) == 8
    with pytest.raises(InvalidInputError, match="the model has PEFT adapters; merge them"):
        learn(model, {"lora": {}})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"r": 0}, "lora: r is 1 or more, not 0"),
        ({"alpha": -1}, "lora: alpha is above 0, not -1"),
        ({"target": "nothing"}, "lora: 'nothing' matches no matrix of the model"),
        ({"rank": 4}, "unknown option of lora 'rank'"),
    ],
)
def test_what_cannot_be_adapted_is_refused(options: Any, says: str, tiny: Any) -> None:
    with pytest.raises(InvalidInputError, match=says):
        learn(tiny.copy("tiny-llama"), {"lora": options})


def test_the_same_seed_gives_the_same_adapters_and_draws_nothing_else(tiny: Any) -> None:
    found = []
    for _ in range(2):
        model = tiny.copy("tiny-mixtral")
        state = torch.random.get_rng_state()
        learn(model, {"lora": {"r": 2}}, seed=7)
        assert torch.equal(torch.random.get_rng_state(), state)
        found.append({n: p for n, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(p, found[1][n]) for n, p in found[0].items())
    assert any(parametrize.is_parametrized(m) for m in model.modules())


def test_what_is_saved_whole_learns_beside_the_adapters(tiny: Any) -> None:
    model = with_classes(tiny.copy("tiny-vit"), 3)
    twin = copy.deepcopy(model)
    keys = {"r": 2, "modules_to_save": "classifier.*; mlp[0]"}
    found = learn(model, {"lora": keys}, apart_from=[twin])
    learns = {name for name in found.names if "lora_" not in name}
    whole = {f"vit.layers.0.mlp.{name}" for name in WHOLE}
    assert learns == {"classifier.weight", "classifier.bias"} | whole
    assert not any("layers.0.mlp" in name and "lora_" in name for name in found.names)
    assert any("layers.1.mlp" in name and "lora_" in name for name in found.names)
    disturb(model)
    live = model(**(batch := batch_of(model))).logits
    found.finish()
    assert torch.allclose(model(**batch).logits, live, atol=1e-5)
    assert model.state_dict().keys() == twin.state_dict().keys()
    assert all(p.requires_grad for p in model.parameters())
    assert not torch.equal(model.classifier.weight, twin.classifier.weight)
    with pytest.raises(InvalidInputError, match=r"'head\.\*' matches no parameter"):
        learn(model, {"lora": {"modules_to_save": "head.*"}})
