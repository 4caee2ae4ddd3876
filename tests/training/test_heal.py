"""Healing: nearer to the baseline on texts that nobody trained on, or a sentence that it is not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import edit, outputs, snapshot, unchanged, worst
from modwright.core.errors import InvalidInputError
from modwright.data import make_data
from modwright.edits import remove
from modwright.training import Heal, TrainingInterrupted, heal, store_teacher
from modwright.training.heal_result import HealPoint, HealResult, summary_sentence
from modwright.training.held_out import HeldOut
from wordy import word_tokenizer, write_text

SMALL: dict[str, Any] = {
    "tokens": 512,
    "length": 32,
    "batch_tokens": 128,
    "held_out_windows": 2,
    "held_out_length": 32,
    "learning_rate": 3e-3,
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("texts")
    return {n: str(write_text(place / f"{n}.txt", 600, seed=i)) for i, n in enumerate("abc")}


def cut(tiny: Any, preset: str = "tiny-llama") -> tuple[Any, Any]:
    baseline = tiny.copy(preset)
    return edit(baseline, remove("blocks.1.attention"), check=False).model, baseline


def healed(tiny: Any, texts: dict[str, str], **options: Any) -> tuple[HealResult, Any, Any]:
    model, baseline = cut(tiny)
    held_out = {"near": texts["b"], "far": texts["c"]}
    more = {k: options.pop(k) for k in ("output", "resume", "answers", "log") if k in options}
    more.setdefault("log", lambda said: None)
    asked = Heal(**{**SMALL, **options})
    found = heal(model, baseline, word_tokenizer(), texts["a"], held_out, asked, **more)
    return found, model, baseline


@pytest.mark.parametrize("learns", ["block[*]", "norms", {"lora": {"r": 4}}])
def test_a_healed_model_is_nearer_to_its_baseline(
    learns: Any, tiny: Any, texts: dict[str, str]
) -> None:
    found, model, _ = healed(tiny, texts, learns=learns)
    assert [point.step for point in found.curve] == [0, 1, 2, 3, 4] and found.steps == 4
    assert [point.tokens for point in found.curve] == [0, 128, 256, 384, 512]
    assert found.best_step > 0 and not model.training
    # Of a baseline that predicts nothing, only the divergence tells.
    assert "farther" not in found.sentence and "no state" not in found.sentence
    for name in ("near", "far"):
        assert found.after[name].divergence < found.before[name].divergence
        assert found.baseline[name].divergence < 1e-6
    assert found.parameters < sum(p.numel() for p in model.parameters())
    assert set(found.to_dict()["gap_closed"]) == {"near", "far"}


def test_the_teacher_stays_and_the_state_is_that_of_the_best_step(
    tiny: Any, texts: dict[str, str]
) -> None:
    model, baseline = cut(tiny)
    before = snapshot(baseline)
    held_out = {"near": texts["b"]}
    found = heal(model, baseline, word_tokenizer(), texts["a"], held_out, SMALL, log=lambda s: None)
    assert unchanged(baseline, before)
    from modwright.training.held_out import HeldOutTexts

    again = HeldOutTexts(baseline, word_tokenizer(), held_out, 2, 32).measure(model)["near"]
    assert again.divergence == pytest.approx(found.after["near"].divergence, rel=1e-5)
    assert found.after["near"].divergence == min(p.texts["near"].divergence for p in found.curve)


def test_a_stored_teacher_heals_as_the_live_one(
    tiny: Any, texts: dict[str, str], tmp_path: Path
) -> None:
    _, one, baseline = healed(tiny, texts)
    rows = make_data({"text": texts["a"], "length": 32}, word_tokenizer()).train
    place = tmp_path / "answers.safetensors"
    store_teacher(baseline, rows, place, tokenizer=word_tokenizer(), k=128)
    _, two, _ = healed(tiny, texts, answers=place)
    assert worst(outputs(one), outputs(two)) < 1e-3
    with pytest.raises(InvalidInputError, match="on rows of 32 tokens, and these have 40"):
        healed(tiny, texts, answers=place, length=40)


def test_the_texts_own_loss_has_a_control(tiny: Any, texts: dict[str, str]) -> None:
    found, _, _ = healed(tiny, texts, own_loss=0.5, control=True)
    assert found.control is not None
    assert found.control["near"].perplexity != found.baseline["near"].perplexity
    assert found.control["near"].divergence > 0 and found.best_step > 0
    said: list[str] = []
    alone, _, _ = healed(tiny, texts, own_loss=1.0, log=said.append)
    assert alone.control is None and any("teaches its domain, too" in one for one in said)
    plain, _, _ = healed(tiny, texts, control=True)
    assert plain.control == plain.baseline


def test_minutes_become_steps_and_the_clock_is_not_read_again(
    tiny: Any, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter([0.0, 1.0, 2.0, 3.0, 23.0, 24.0])  # ten steps take 20 s, measuring one
    module = sys.modules["modwright.training.heal"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "clock", lambda: next(ticks))
        found, _, _ = healed(tiny, texts, tokens=None, minutes=0.6)
    assert found.steps == 3 and found.options["arguments"]["max_steps"] == 3
    assert found.options["minutes"] is None and next(ticks, None) is None
    again, _, _ = healed(tiny, texts, **{k: found.options[k] for k in ("tokens", "arguments")})
    assert again.curve == found.curve
    ticks = iter([0.0, 1.0, 2.0, 3.0, 23.0, 24.0, 25.0])
    monkeypatch.setattr(module, "clock", lambda: next(ticks))
    with pytest.raises(InvalidInputError, match=r"0\.5 minutes are too few: a step takes 2.0 s"):
        healed(tiny, texts, tokens=None, minutes=0.5)


def test_an_interrupted_healing_goes_on_to_the_same_bits(
    tiny: Any, texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, one, _ = healed(tiny, texts, output=tmp_path / "whole")
    from modwright.training.held_out import HeldOutTexts

    measure, calls = HeldOutTexts.measure, []

    def interrupted(self: Any, model: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return measure(self, model)

    with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted, match="goes on from"):
        patch.setattr(HeldOutTexts, "measure", interrupted)
        healed(tiny, texts, output=tmp_path / "part")
    again, two, _ = healed(tiny, texts, output=tmp_path / "part", resume=True)
    assert again.curve == whole.curve and again.best_step == whole.best_step
    assert worst(outputs(one), outputs(two)) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tokens": 5, "minutes": 1.0}, "give tokens or minutes, not both"),
        ({"tokens": 0}, "heal: tokens is above 0, not 0"),
        ({"own_loss": 2.0}, "own_loss lies between 0 and 1, not 2"),
        ({"learns": {"qlora": 1}}, "the one mapping there is has the key lora"),
        ({"arguments": {"max_step": 1}}, "unknown argument 'max_step'"),
        ({"length": 1}, "heal: length is too small: 1"),
    ],
)
def test_options_out_of_range_are_refused(options: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        Heal(**{"tokens": None, **options})


def test_a_mapping_of_options_is_read_as_a_recipe_has_it(tiny: Any, texts: dict[str, str]) -> None:
    model, baseline = cut(tiny)
    given = model, baseline, word_tokenizer(), texts["a"], texts["b"]
    with pytest.raises(InvalidInputError, match=r"unknown option of heal 'token'.*did you mean"):
        heal(*given, {"token": 512})
    with pytest.raises(InvalidInputError, match="heal: tokens: must be a whole number, not 'x'"):
        heal(*given, {"tokens": "x"})
    found = heal(*given, {**SMALL, "tokens": 128, "minutes": None}, log=lambda said: None)
    assert found.steps == 1 and list(found.baseline) == [texts["b"]]
    with pytest.raises(InvalidInputError, match="own_loss 1 asks no teacher, so it takes no"):
        heal(*given, {**SMALL, "own_loss": 1.0}, answers="x.safetensors")


def padded(rows: Any) -> dict[str, torch.Tensor]:
    """A batch of rows of several lengths."""
    longest = max(len(row["input_ids"]) for row in rows)

    def stacked(name: str, value: int) -> torch.Tensor:
        return torch.stack(
            [
                torch.nn.functional.pad(row[name], (0, longest - len(row[name])), value=value)
                for row in rows
            ]
        )

    mask = [(torch.arange(longest) < len(row["input_ids"])).long() for row in rows]
    batch = {"input_ids": stacked("input_ids", 0), "attention_mask": torch.stack(mask)}
    return {**batch, "labels": stacked("labels", -100)}


def test_answers_alone_are_learned_from_where_labels_say_so(
    tiny: Any, texts: dict[str, str]
) -> None:
    ids = [
        row["input_ids"]
        for row in make_data({"text": texts["a"], "length": 32}, word_tokenizer()).train
    ]
    rows = [
        {"input_ids": row[: 32 - i % 3], "labels": row[: 32 - i % 3].clone()}
        for i, row in enumerate(ids)
    ]
    nothing = [{**row, "labels": torch.full_like(row["labels"], -100)} for row in rows]
    for data, moves in ((rows, True), (nothing, False)):
        model, baseline = cut(tiny)
        before = outputs(model)
        given = model, baseline, word_tokenizer(), data, texts["b"], SMALL
        found = heal(*given, collate=padded, log=lambda said: None)
        assert (worst(outputs(model), before) > 0) is moves
        assert (found.best_step > 0) is moves and bool(found.sentence) >= (not moves)


def test_what_is_trained_on_is_not_held_out(tiny: Any, texts: dict[str, str]) -> None:
    model, baseline = cut(tiny)
    with pytest.raises(
        InvalidInputError, match="the held-out text 'same' is what the model learns"
    ):
        heal(model, baseline, word_tokenizer(), texts["a"], {"same": texts["a"]}, SMALL)


def point(step: int, divergence: float, perplexity: float) -> HealPoint:
    return HealPoint(step, step * 10, {"x": HeldOut(perplexity, divergence, 0.5, 10)})


@pytest.mark.parametrize(
    ("curve", "best", "control", "own", "says"),
    [
        ([(0.2, 12.0), (0.1, 11.0)], 1, None, 0.0, ""),
        ([(0.2, 12.0), (0.3, 13.0)], 0, None, 0.0, "did not pay: no state of it is nearer"),
        ([(0.2, 12.0), (0.2, 11.0)], 1, None, 0.0, "on x it is farther from the baseline"),
        ([(0.2, 12.0), (0.1, 13.0)], 1, None, 0.0, r"its perplexity rose \(12.00 -> 13.00\)"),
        ([(0.2, 12.0), (0.1, 11.0)], 1, 7.0, 0.5, "the baseline gains as much"),
        ([(0.2, 12.0), (0.1, 11.0)], 1, 9.9, 0.5, ""),
    ],
)
def test_it_is_said_where_healing_did_not_pay(
    curve: Any, best: int, control: float | None, own: float, says: str
) -> None:
    import re

    points = tuple(point(i, *values) for i, values in enumerate(curve))
    baseline = {"x": HeldOut(10.0, 0.0, 1.0, 10)}
    of_control = None if control is None else {"x": HeldOut(control, 0.1, 0.9, 10)}
    result = HealResult(baseline, points, best, 1, 1.0, 1, of_control)
    told = summary_sentence(result, own)
    assert re.search(says, told) if says else told == ""


def test_the_gap_that_is_closed_is_its_formula() -> None:
    baseline = {"x": HeldOut(10.0, 0.0, 1.0, 10)}
    points = (point(0, 0.2, 20.0), point(1, 0.1, 14.142135))
    plain = HealResult(baseline, points, 1, 1, 1.0, 1)
    assert plain.gap_closed("x") == pytest.approx(0.5, abs=1e-6) and plain.tokens == 10
    assert torch.isfinite(torch.tensor(plain.to_dict()["gap_closed"]["x"]))
    none = HealResult(baseline, (point(0, 0.1, 9.0),), 0, 0, 1.0, 1)
    assert none.gap_closed("x") is None
