"""The keys of a training are TrainingArguments' own, and what is wrong is said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modwright.core.errors import InvalidInputError
from modwright.training import CrossEntropy, Distillation, NextToken, Training
from modwright.training.options import argument_names


def test_a_flat_mapping_is_an_objective_what_learns_and_arguments() -> None:
    asked = Training.of(
        {
            "objective": "distillation",
            "teacher": "source",
            "learns": {"lora": {"r": 4}},
            "ema_decay": 0.99,
            "max_steps": 200,
            "learning_rate": "1e-4",
        }
    )
    assert asked.objective == Distillation("source") and asked.learns == {"lora": {"r": 4}}
    assert asked.arguments == {"max_steps": 200, "learning_rate": 1e-4}
    assert Training.of({}).objective == NextToken() and Training.of({}).learns == "all"
    smoothed = Training.of({"objective": {"cross_entropy": {"label_smoothing": 0.1}}})
    assert smoothed.objective == CrossEntropy(0.1)


def test_options_of_an_objective_stand_beside_its_teacher() -> None:
    asked = Training.of(
        {"objective": {"distillation": {"temperature": 2.0}}, "teacher": "some/path"}
    )
    assert (asked.objective.teacher, asked.objective.temperature) == ("some/path", 2.0)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"learnin_rate": 1}, "unknown key of a training 'learnin_rate'; .* 'learning_rate'"),
        ({"output_dir": "x"}, "output_dir: the output is where the training is asked to keep"),
        ({"learning_rate": "fast"}, "learning_rate: must be a number, not 'fast'"),
        ({"max_steps": 0}, "max_steps is above 0, not 0"),
        ({"ema_decay": 2}, "ema_decay lies between 0 and 1, not 2"),
        ({"lr_scheduler_type": "round"}, "TrainingArguments: .*round"),
        ({"objective": "none_such"}, "unknown objective 'none_such'"),
        ({"learns": ""}, "learns is ''; valid values"),
        ({"objective": "l1", "teacher": "x"}, "unknown option of l1 'teacher'"),
    ],
)
def test_what_is_wrong_is_refused_before_a_model_is_there(keys: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says) as told:
        Training.of(keys)
    assert "\n" not in str(told.value)


def test_arguments_become_transformers_own(tmp_path: Path) -> None:
    asked = Training.of({"lr_scheduler_type": "one_cycle", "save_steps": 3, "bf16": False})
    kept = asked.training_arguments(str(tmp_path), keep=True)
    assert asked.one_cycle and kept.lr_scheduler_type == "constant" and kept.save_steps == 3
    lost = asked.training_arguments(str(tmp_path), keep=False)
    assert lost.save_strategy == "no" and lost.report_to == [] and not lost.remove_unused_columns
    assert {"max_steps", "gradient_accumulation_steps", "bf16"} <= set(argument_names())
