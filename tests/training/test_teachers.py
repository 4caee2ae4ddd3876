"""Teachers: live ones stay bit-equal, stored ones answer as they did, and nothing but that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import edit
from modwright.anatomy import Anatomy
from modwright.core.digest import sha256_of
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.edits import remove
from modwright.training import StoredTeacher, Training, store_teacher, train
from modwright.training.objectives import Distillation, HiddenStates, make_objective
from modwright.training.teachers import LiveTeacher, as_teacher, with_teacher
from wordy import word_tokenizer

ROWS = [{"input_ids": torch.arange(6 + i, 16 + i)} for i in range(6)]


def digest(model: Any) -> str:
    return sha256_of(*(t for _, t in sorted(model.state_dict().items())))


@pytest.fixture(scope="module")
def stored(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> StoredTeacher:
    place = tmp_path_factory.mktemp("teacher") / "whole.safetensors"
    return store_teacher(tiny("tiny-llama"), ROWS, place, tokenizer=word_tokenizer(), k=128)


@pytest.mark.parametrize("name", ["distillation", "hidden_states", "attention_maps"])
@pytest.mark.parametrize("learns", ["all", "norms", "lora"])
def test_teachers_stay_bit_equal(name: str, learns: str, tiny: Any) -> None:
    source = tiny.copy("tiny-llama")
    before, modes = digest(source), [m.training for m in source.modules()]
    student = edit(source, remove(Anatomy.of(source).blocks[2].attention), check=False).model
    start = digest(student)
    asked = Training.of(
        {
            "objective": name,
            "teacher": "source",
            "learns": {"lora": {"r": 2}} if learns == "lora" else learns,
            "max_steps": 2,
            "learning_rate": 1e-2,
        }
    )
    train(student, ROWS, asked, source=source, log=lambda said: None)
    assert digest(source) == before and digest(student) != start
    assert [m.training for m in source.modules()] == modes


def test_all_answers_stored_are_those_of_the_live_teacher(tiny: Any, stored: StoredTeacher) -> None:
    student = edit(tiny.copy("tiny-llama"), remove("blocks.0.attention"), check=False).model
    batch = {"input_ids": torch.stack([ROWS[i]["input_ids"] for i in (4, 1)])}
    losses, gradients = [], []
    for teacher in (tiny("tiny-llama"), stored):
        student.zero_grad()
        loss, _ = Distillation(teacher, 1.0)(student, batch)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(student.lm_head.weight.grad.clone())
    assert float(losses[0]) > 1e-3 and torch.allclose(*losses, rtol=1e-4)
    assert torch.allclose(*gradients, atol=1e-5)


def test_rows_are_found_whatever_pads_them(tiny: Any, stored: StoredTeacher) -> None:
    plain = stored.answers({"input_ids": ROWS[2]["input_ids"][None]})
    row = torch.cat([torch.zeros(3, dtype=torch.long), ROWS[2]["input_ids"]])
    mask = (torch.arange(13) > 2).long()
    padded = stored.answers({"input_ids": row[None], "attention_mask": mask[None]})
    assert torch.equal(padded.log_probs[:, 3:], plain.log_probs) and not padded.rest[:, :3].any()
    assert torch.equal(padded.index[:, 3:], plain.index)


def test_the_best_k_are_kept_with_what_is_left_for_the_others(tiny: Any, tmp_path: Path) -> None:
    place = tmp_path / "few.safetensors"
    few = store_teacher(tiny("tiny-llama"), ROWS, place, tokenizer=word_tokenizer(), k=4)
    batch = {"input_ids": ROWS[0]["input_ids"][None]}
    logs = LiveTeacher(tiny("tiny-llama")).answers(batch).log_softmax(-1)
    found = few.answers(batch)
    assert torch.allclose(found.log_probs, logs.topk(4).values, atol=1e-5)
    assert torch.equal(found.index, logs.topk(4).indices)
    assert torch.allclose(found.rest, 1 - found.log_probs.exp().sum(-1), atol=1e-5)
    assert torch.equal(found.argmax(), logs.argmax(-1)) and few.vocab_size == logs.shape[-1]
    with pytest.raises(CheckpointError, match="exists; name another file"):
        store_teacher(tiny("tiny-llama"), ROWS, place, tokenizer=word_tokenizer())


def test_other_data_another_length_and_another_tokenizer_are_refused(stored: StoredTeacher) -> None:
    stored.check_data(word_tokenizer(), ROWS[:3])
    other, longer = torch.arange(20, 30), torch.arange(6, 26)
    with pytest.raises(InvalidInputError, match="answers on tokens of another tokenizer"):
        stored.check_data(word_tokenizer(90), ROWS)
    with pytest.raises(InvalidInputError, match="on rows of 10 tokens, and these have 20"):
        stored.check_data(word_tokenizer(), [{"input_ids": longer}])
    with pytest.raises(InvalidInputError, match="answers on other data: 1 rows are not in it"):
        stored.check_data(word_tokenizer(), [*ROWS, {"input_ids": other}])
    with pytest.raises(InvalidInputError, match="a row of 10 tokens is not in it; its 6 rows"):
        stored.answers({"input_ids": other[None]})


def test_what_stored_answers_cannot_do_is_refused(tiny: Any, stored: StoredTeacher) -> None:
    with pytest.raises(InvalidInputError, match="holds answers at temperature 1, not at 2"):
        Distillation(stored, temperature=2.0).prepare(tiny("tiny-llama"))
    with pytest.raises(InvalidInputError, match="what is asked for needs the teacher itself"):
        HiddenStates(stored).prepare(tiny("tiny-llama"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 200}, "k is 200; valid values: 1 to 128"),
        ({"temperature": 0.0}, "temperature is above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(
    options: Any, says: str, tiny: Any, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=says):
        place = tmp_path / "x.safetensors"
        store_teacher(tiny("tiny-llama"), ROWS, place, tokenizer=word_tokenizer(), **options)


def test_files_that_are_no_teachers_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "text.safetensors").write_text("no")
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    for name in ("text", "weights"):
        with pytest.raises(CheckpointError, match="holds no answers of a teacher"):
            as_teacher(str(tmp_path / f"{name}.safetensors"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        as_teacher(tmp_path / "gone.safetensors")


def test_a_teacher_is_the_source_a_path_or_a_file(stored: StoredTeacher, tiny: Any) -> None:
    asked = make_objective({"distillation": {"teacher": str(stored.path)}})
    assert isinstance(with_teacher(asked).teacher, StoredTeacher)
    asked = make_objective({"distillation": {"teacher": "preset:tiny-llama"}})
    assert isinstance(with_teacher(asked).teacher, LiveTeacher)
    model = tiny("tiny-llama")
    assert with_teacher(make_objective("distillation"), model).teacher.model is model
    with pytest.raises(InvalidInputError, match="'source' is the model that a recipe opened"):
        with_teacher(make_objective("distillation"))
