"""What learns is its own: sources and teachers stay bit-equal while a result is trained."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from helpers import edit, outputs, snapshot, unchanged
from labeled_images import noise
from models.tiny import tiny as tiny_image_model
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.data import Data
from modwright.edits import Change, factorize, remove
from modwright.edits.apply import own_tensors, sharing_with
from modwright.training import CrossEntropy, Distillation, Settings, fit, learn

SETTINGS = Settings(epochs=1, batch_size=4, learning_rate=0.05, average=0.5)


def images(model: Any) -> Data:
    size = model.config.image_size
    sides = (size, size) if isinstance(size, int) else tuple(size)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(8, 3, *sides, generator=generator)
    return noise(pixels, torch.arange(8) % 5, "abcde")


def student_of(teacher: Any) -> Any:
    anatomy = Anatomy.of(teacher)
    return edit(teacher, remove(anatomy.blocks[-1].at("attention")), check=False).model


@pytest.mark.parametrize("architecture", ["metaformer", "vision_transformer", "smt", "tnt"])
def test_fault_A2_training_a_result_leaves_its_source_bit_equal(architecture: str) -> None:
    source = tiny_image_model(architecture)
    before, answers = snapshot(source), outputs(source)
    student = student_of(source)
    start = snapshot(student)
    fit(student, images(source), settings=SETTINGS, objective=CrossEntropy())
    assert unchanged(source, before) and torch.equal(outputs(source), answers)
    assert not unchanged(student, start)


@pytest.mark.parametrize("frozen", [False, True])
def test_fault_A2_a_teacher_stays_and_its_student_learns_everything(frozen: bool) -> None:
    teacher = tiny_image_model("metaformer")
    trained = {name for name, p in teacher.named_parameters() if p.requires_grad}
    if frozen:
        teacher.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in teacher.named_parameters()}
    before = snapshot(teacher)
    student = student_of(teacher)
    start = snapshot(student)
    fit(student, images(teacher), settings=SETTINGS, objective=Distillation(teacher))
    assert unchanged(teacher, before)
    assert {name: p.requires_grad for name, p in teacher.named_parameters()} == flags
    learns = {name for name, p in student.named_parameters() if p.requires_grad}
    assert learns == trained & set(start)
    assert all(
        not torch.equal(start[name], p) for name, p in student.named_parameters() if name in learns
    )


def test_fault_A2_a_student_sharing_parameters_by_hand_is_separated_too() -> None:
    teacher, student = (
        tiny_image_model("vision_transformer"),
        tiny_image_model("vision_transformer"),
    )
    for path, module in student.named_modules():
        module._parameters.update(teacher.get_submodule(path)._parameters)
    before = snapshot(teacher)
    fit(student, images(teacher), settings=SETTINGS, objective=Distillation(teacher))
    assert unchanged(teacher, before)


def test_fault_A2_what_a_user_froze_stays_frozen() -> None:
    source = tiny_image_model("vision_transformer")
    student = student_of(source)
    backbone = [n for n, _ in student.named_parameters() if "blocks" in n]
    for name in backbone:
        student.get_parameter(name).requires_grad_(False)
    learn(student)
    assert not any(student.get_parameter(name).requires_grad for name in backbone)
    assert any(p.requires_grad for p in student.parameters())


def test_fault_A2_ties_survive_the_separation(tiny: Any) -> None:
    source = tiny.copy("tiny-llama")
    first = edit(source, remove(Anatomy.of(source).blocks[1].mlp), check=False).model
    second = edit(first, remove(Anatomy.of(first).blocks[2].mlp), check=False).model
    del first
    assert sharing_with(second) == [source]
    before, answers = snapshot(source), outputs(second)
    count = len(list(second.parameters()))
    own_tensors(second)
    assert Anatomy.of(second).is_tied and len(list(second.parameters())) == count
    assert torch.equal(outputs(second), answers)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1)
    assert unchanged(source, before)


def test_fault_A2_a_model_is_not_its_own_teacher() -> None:
    model = tiny_image_model("metaformer")
    with pytest.raises(InvalidInputError, match="its own teacher; give the objective a copy"):
        fit(model, images(model), settings=SETTINGS, objective=Distillation(model))


def test_fault_A2_a_change_of_nothing_shares_and_learns_apart(tiny: Any) -> None:
    source = tiny.copy("tiny-gpt2")
    before = snapshot(source)
    result = edit(source, Change(), check=False).model
    learn(result)
    torch.optim.SGD(result.parameters(), lr=1.0)
    loss = result(
        input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)
    ).loss
    loss.backward()
    with torch.no_grad():
        for parameter in result.parameters():
            parameter -= 0.1
    assert unchanged(source, before)


def test_fault_A25_what_adapters_leave_frozen_is_named(tiny: Any) -> None:
    import peft

    stock = tiny.copy("tiny-llama")  # PEFT freezes what the result shares with it
    up = Anatomy.of(stock).part("blocks.1.mlp.up")
    u, s, v = torch.linalg.svd(up.weight)
    pair = edit(stock, factorize(up, u[:, :8] * s[:8], v[:8]), check=False).model
    everything = peft.LoraConfig(target_modules="all-linear")
    with pytest.warns(UserWarning, match="no linear layers, so these stay frozen: ") as told:
        learn(peft.get_peft_model(pair, everything))
    (message,) = [str(one.message) for one in told if "stay frozen" in str(one.message)]
    assert message.endswith(": base_model.model.model.layers.1.mlp.up_proj")
    with pytest.warns(UserWarning, match=r"layers\.0\.mlp\.experts, .* and 1 more"):
        learn(peft.get_peft_model(tiny.copy("tiny-mixtral"), everything))


@pytest.mark.parametrize("adapters", [False, True])
def test_nothing_is_left_frozen_in_a_model_of_linear_layers(adapters: bool, tiny: Any) -> None:
    import peft

    model = tiny.copy("tiny-llama")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="PEFT has no adapters")
        if adapters:
            model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))
        learn(model)


@pytest.mark.parametrize(
    ("learns", "are"),
    [
        ("all", lambda name: True),
        ("norms", lambda name: "norm" in name),
        ("mlp[1]", lambda name: "layers.1.mlp." in name),
        ("mlp[1]; norms; *.q_proj.weight", None),
    ],
)
def test_what_learns_is_what_is_said_and_the_rest_goes_on_sharing(
    learns: str, are: Any, tiny: Any
) -> None:
    teacher = tiny.copy("tiny-llama").requires_grad_(False)
    before = snapshot(teacher)
    student = student_of(teacher)
    found = learn(student, learns, apart_from=[teacher])
    chosen = are or (lambda name: "layers.1.mlp." in name or "norm" in name or "q_proj" in name)
    expected = {name for name, _ in student.named_parameters() if chosen(name)}
    assert set(found.names) == expected
    assert {n for n, p in student.named_parameters() if p.requires_grad} == expected
    shared = {p.data_ptr() for p in teacher.parameters()}
    for name, parameter in student.named_parameters():
        assert (parameter.data_ptr() in shared) is (name not in expected), name
    assert not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        for name in found.names:
            student.get_parameter(name).add_(1)
    assert unchanged(teacher, before) and Anatomy.of(student).is_tied == Anatomy.of(teacher).is_tied


@pytest.mark.parametrize(
    ("learns", "says"),
    [
        ("mlp[9]", "there is no layer 9"),
        ("nothing.*", "learns: 'nothing.\\*' matches no parameter; write all, norms, a selector"),
        ("", "learns is ''; valid values: all, norms, a selector"),
        ({"qlora": {}}, "learns: the one mapping there is has the key lora, not qlora"),
    ],
)
def test_what_matches_nothing_is_refused(learns: Any, says: str, tiny: Any) -> None:
    with pytest.raises(InvalidInputError, match=says):
        learn(tiny.copy("tiny-llama"), learns)
