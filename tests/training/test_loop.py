"""One call trains on any rows, stops well, and leaves the best state."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from helpers import snapshot
from modwright.core.errors import InvalidInputError, ModwrightError, WriteFailed
from modwright.training import NextToken, Training, TrainingInterrupted, train
from modwright.training.loop import BEST_STATE, Measured, quarters

ROWS = [{"input_ids": torch.arange(3 + i, 11 + i)} for i in range(8)]


def keys(**more: Any) -> dict[str, Any]:
    return {"max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 4, **more}


def quiet(said: str) -> None:
    pass


class At(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step: int, what: Any) -> None:
        self.step, self.what = step, what

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.what(kwargs["model"])


def throws(error: BaseException) -> Any:
    def throw(model: Any) -> None:
        raise error

    return throw


class Broken(NextToken):
    """Not finite from one batch on: its loss, or only its gradients."""

    def __init__(self, batch: int, gradients: bool = False) -> None:
        super().__init__()
        object.__setattr__(self, "left", batch)
        object.__setattr__(self, "gradients", gradients)

    def __call__(self, model: Any, batch: Any) -> Any:
        loss, named = super().__call__(model, batch)
        if not model.training:
            return loss, named
        object.__setattr__(self, "left", self.left - 1)
        if self.left >= 0:
            return loss, named
        if self.gradients:
            return loss + (model.lm_head.weight.sum() * 0).sqrt(), named
        return loss * torch.nan, named


def ready(objective: Any) -> Training:
    """The same training; its estimate runs one batch, too."""
    return Training(objective, arguments=keys())


@pytest.mark.parametrize("gradients", [False, True])
def test_a_loss_that_is_not_finite_stops_before_its_step(gradients: bool, tiny: Any) -> None:
    model, other = tiny.copy("tiny-llama"), tiny.copy("tiny-llama")
    said: list[str] = []
    found = train(model, ROWS, ready(Broken(3, gradients)), log=said.append)
    assert found.steps == 2 and "the loss is not finite in step 3" in found.stopped
    assert found.stopped in said
    at_two: dict[str, Any] = {}
    note = At(2, lambda now: at_two.update(snapshot(now)))
    train(other, ROWS, ready(NextToken()), callbacks=[note], log=quiet)
    assert all(torch.equal(t, at_two[name]) for name, t in snapshot(model).items())


def test_a_training_leaves_the_config_as_it_was(tiny: Any) -> None:
    """transformers' Trainer turns ``use_cache`` off, and what is saved would say so."""
    model = tiny.copy("tiny-llama")
    before = model.config.to_dict()
    train(model, ROWS, ready(NextToken()), log=quiet)
    assert before["use_cache"] and model.config.to_dict() == before


def test_nothing_finite_at_all_is_an_error_in_one_line(tiny: Any) -> None:
    with pytest.raises(ModwrightError, match="not finite in step 1: the model or its data give"):
        train(tiny.copy("tiny-llama"), ROWS, ready(Broken(0)), log=quiet)


def scores(*values: float) -> Any:
    given = iter(values)
    states: dict[int, Any] = {}

    def measure(model: Any, step: int) -> dict[str, Any]:
        states[step] = snapshot(model)
        assert not model.training
        return {"score": next(given), "step": step}

    return measure, states


@pytest.mark.parametrize("kept", [False, True])
def test_the_best_state_comes_out_and_not_the_last(kept: bool, tiny: Any, tmp_path: Path) -> None:
    model = tiny.copy("tiny-llama")
    measure, states = scores(3.0, 2.0, 1.0, 4.0, float("nan"))
    output = tmp_path if kept else None
    asked = Training(arguments=keys())
    best = Measured(measure, quarters(4))
    found = train(model, ROWS, asked, best=best, output=output, log=quiet)
    assert found.best_step == 2 and [step for step, _ in found.measured] == [0, 1, 2, 3, 4]
    assert all(torch.equal(t, states[2][n]) for n, t in snapshot(model).items())
    assert (tmp_path / BEST_STATE).is_file() is kept


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (KeyboardInterrupt(), TrainingInterrupted, "interrupted after step 3; the model has the"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            WriteFailed,
            "cannot write after step 3: No",
        ),
    ],
)
def test_whatever_stops_it_leaves_the_best_state_and_one_line(
    error: BaseException, kind: Any, says: str, tiny: Any, tmp_path: Path
) -> None:
    model = tiny.copy("tiny-llama")
    measure, states = scores(3.0, 1.0, 2.0, 4.0)
    with pytest.raises(kind, match=says) as told:
        train(
            model,
            ROWS,
            Training(arguments=keys()),
            best=Measured(measure, [0, 1, 2]),
            output=tmp_path,
            callbacks=[At(3, throws(error))],
            log=quiet,
        )
    assert "\n" not in str(told.value) and "the state of step 1" in str(told.value)
    assert all(torch.equal(t, states[1][n]) for n, t in snapshot(model).items())
    assert told.value.exit_code in (1, 130)


def test_a_refused_training_leaves_the_model_as_it_was(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.copy("tiny-llama")
    before, names = snapshot(model), set(model.state_dict())
    monkeypatch.setattr("modwright.checkpoint.memory.available_bytes", lambda: 1000)
    for learns in ("norms", {"lora": {"r": 2}}):
        with pytest.raises(InvalidInputError, match="the training needs about"):
            train(model, ROWS, keys(learns=learns), log=quiet)
        assert set(model.state_dict()) == names
        assert all(p.requires_grad for p in model.parameters())
        assert all(torch.equal(t, before[n]) for n, t in snapshot(model).items())


def test_a_best_state_that_cannot_be_written_is_not_the_best(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modwright.training import callbacks

    write, calls = callbacks.save_file, []

    def full(tensors: Any, file: Path) -> None:
        calls.append(file)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, file)

    monkeypatch.setattr(callbacks, "save_file", full)
    measure, states = scores(3.0, 1.0)
    model = tiny.copy("tiny-llama")
    best = Measured(measure, [0, 2])
    with pytest.raises(WriteFailed, match=r"No space left on device; .* state of step 0"):
        train(model, ROWS, Training(arguments=keys()), best=best, output=tmp_path, log=quiet)
    assert all(torch.equal(t, states[0][n]) for n, t in snapshot(model).items())


def test_rows_that_cannot_be_read_are_no_full_disk(tiny: Any) -> None:
    class Rows(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", "row.png")

    with pytest.raises(FileNotFoundError, match=r"row\.png"):
        train(tiny.copy("tiny-llama"), Rows(ROWS), Training(arguments=keys()), log=quiet)


def test_another_error_is_not_taken_for_a_full_disk(tiny: Any) -> None:
    with pytest.raises(RuntimeError, match="a fault of somebody"):
        callbacks = [At(1, throws(RuntimeError("a fault of somebody")))]
        asked = Training(arguments=keys())
        train(tiny.copy("tiny-llama"), ROWS, asked, callbacks=callbacks, log=quiet)


def test_a_stopped_training_goes_on_to_the_same_bits_and_the_same_best_state(
    tiny: Any, tmp_path: Path
) -> None:
    asked = Training(
        learns={"lora": {"r": 2}},
        ema_decay=0.5,
        arguments=keys(save_strategy="steps", save_steps=2),
    )
    values = {0: 3.0, 2: 1.0, 3: 0.5, 4: 0.7}

    def measured() -> Measured:
        return Measured(lambda model, step: {"score": values[step]}, [0, 2, 3, 4])

    whole, part = tiny.copy("tiny-llama"), tiny.copy("tiny-llama")
    first = train(whole, ROWS, asked, best=measured(), output=tmp_path / "whole", log=quiet)
    stop = [At(3, throws(KeyboardInterrupt()))]
    output = tmp_path / "part"
    with pytest.raises(TrainingInterrupted):
        train(part, ROWS, asked, best=measured(), output=output, callbacks=stop, log=quiet)
    again = tiny.copy("tiny-llama")
    second = train(again, ROWS, asked, best=measured(), output=output, resume=True, log=quiet)
    assert second.best_step == first.best_step == 3 and second.measured == first.measured
    assert all(torch.equal(t, snapshot(whole)[n]) for n, t in snapshot(again).items())
    with pytest.raises(InvalidInputError, match="holds no checkpoint to resume from"):
        train(again, ROWS, asked, output=tmp_path / "none", resume=True, log=quiet)


def test_a_training_whose_last_step_is_stored_takes_no_step_more(tiny: Any, tmp_path: Path) -> None:
    asked = Training(arguments=keys(max_steps=3, save_strategy="steps", save_steps=1))
    whole, again = tiny.copy("tiny-llama"), tiny.copy("tiny-llama")
    first = train(whole, ROWS, asked, output=tmp_path / "out", log=quiet)
    second = train(again, ROWS, asked, output=tmp_path / "out", resume=True, log=quiet)
    assert first.steps == second.steps == 3 and first.losses == second.losses
    assert all(torch.equal(t, snapshot(whole)[n]) for n, t in snapshot(again).items())


def test_accumulated_batches_are_one_batch(tiny: Any) -> None:
    states = []
    for size, passes in ((4, 1), (2, 2)):
        model = tiny.copy("tiny-llama")
        more = {"per_device_train_batch_size": size, "gradient_accumulation_steps": passes}
        train(model, ROWS, Training(arguments=keys(**more)), log=quiet)
        states.append(snapshot(model))
    for name, tensor in states[0].items():
        assert torch.allclose(tensor, states[1][name], atol=1e-4), name


def test_checkpointed_activations_change_no_bit_and_keep_less(tiny: Any) -> None:
    states, memory = [], []
    for more in ({}, {"gradient_checkpointing": True}):
        model = tiny.copy("tiny-llama")
        found = train(model, ROWS, Training(arguments=keys(**more)), log=quiet)
        states.append(snapshot(model))
        memory.append(found.estimate.memory_bytes)
    assert all(torch.allclose(t, states[1][n], atol=1e-6) for n, t in states[0].items())
    assert memory[1] < memory[0]


def test_bfloat16_learns_in_float32(tiny: Any) -> None:
    model = tiny.copy("tiny-llama")
    before = snapshot(model)
    found = train(model, ROWS, Training(arguments=keys(bf16=True)), log=quiet)
    assert found.steps == 4 and model.dtype == torch.float32
    assert any(not torch.equal(t, before[n]) for n, t in snapshot(model).items())


def test_rows_that_are_only_iterated_over_are_learned_from(tiny: Any) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(ROWS)

    found = train(tiny.copy("tiny-llama"), Stream(), Training(arguments=keys()), log=quiet)
    assert found.steps == 4
    with pytest.raises(InvalidInputError, match="there is no row to learn from"):
        train(tiny.copy("tiny-llama"), [], Training(arguments=keys()), log=quiet)


def test_metrics_are_computed_of_logits_and_labels(tiny: Any) -> None:
    seen: list[Any] = []

    def metrics(given: Any) -> dict[str, float]:
        seen.append((given.predictions.shape, given.label_ids.shape))
        return {"right": 0.5}

    asked = Training(ema_decay=0.9, arguments=keys(eval_strategy="steps", eval_steps=2))
    model = tiny.copy("tiny-llama")
    found = train(model, ROWS, asked, eval_data=ROWS[:3], compute_metrics=metrics, log=quiet)
    assert seen == [((3, 8, 128), (3, 8))] * 2
    entries = [entry for entry in found.log if "eval_right" in entry]
    assert [entry["step"] for entry in entries] == [2, 4] and entries[0]["eval_loss"] > 0


def test_what_it_will_take_is_said_first_and_refused_where_it_cannot_fit(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    train(tiny.copy("tiny-llama"), ROWS, keys(), log=said.append)
    assert said[0].startswith("the training: 4 steps, about ")
    monkeypatch.setattr("modwright.checkpoint.memory.available_bytes", lambda: 1000)
    model = tiny.copy("tiny-llama")
    before = snapshot(model)
    with pytest.raises(InvalidInputError, match=r"the training needs about .* available"):
        train(model, ROWS, keys(), log=quiet)
    assert all(torch.equal(t, before[n]) for n, t in snapshot(model).items())
