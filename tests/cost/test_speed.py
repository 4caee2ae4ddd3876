from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.core.paired import PairedRatio
from modwright.cost import compare_speed, measure_speed

SMALL = {"prompt": 6, "new_tokens": 3, "repeats": 2}


class Recorder:
    def __init__(self) -> None:
        self.phases: list[tuple[str, int]] = []
        self.steps = 0

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Recorder]:
        self.phases.append((name, total))
        yield self

    def advance(self, steps: int = 1) -> None:
        self.steps += steps


def test_both_phases_are_timed_and_told(model: Any) -> None:
    speed = measure_speed(model, batch=2, **SMALL)
    reads = Anatomy.of(model).family.inputs()
    length = reads.positions(6)
    assert speed.prefill_tokens_per_second == 2 * length / speed.prefill_seconds.median
    assert 0 < speed.prefill_seconds.least <= speed.prefill_seconds.median
    assert speed.prefill_seconds.median <= speed.prefill_seconds.most
    assert (speed.batch, speed.prompt, speed.repeats) == (2, length, 2)
    assert f"{length} random {reads.noun} read at once" in speed.method
    assert (speed.dtype, speed.device) == ("float32", "cpu")
    if speed.decode_seconds is None:
        assert speed.decode_tokens_per_second is None
        assert speed.new_tokens == 0
        assert "one by one" not in speed.method
    else:
        assert speed.decode_tokens_per_second == 2 * 3 / speed.decode_seconds.median
        assert speed.new_tokens == 3
        assert "one by one with the key/value cache" in speed.method
    assert "median of 2 repeats" in speed.method
    json.dumps(speed.to_dict())


def test_only_models_that_decode_have_a_decoding_speed(make: Any) -> None:
    assert [name for name, *_ in measure_speed(make("tiny-bert"), **SMALL).phases()] == ["prefill"]
    found = measure_speed(make("tiny-gpt2"), **SMALL).phases()
    assert [name for name, *_ in found] == ["prefill", "decode"]


def test_tokens_are_fed_as_the_method_says(make: Any) -> None:
    model = make("tiny-llama")
    seen: list[torch.Tensor] = []

    def watch(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["input_ids"])

    model.register_forward_pre_hook(watch, with_kwargs=True)
    measure_speed(model, batch=2, prompt=6, new_tokens=3, repeats=2, warmup=1)
    one_run = [(2, 6), (2, 1), (2, 1), (2, 1)]
    assert [tuple(ids.shape) for ids in seen] == 3 * one_run
    assert torch.equal(torch.cat(seen[:4], dim=1), torch.cat(seen[8:], dim=1))
    measure_speed(model, batch=2, prompt=6, new_tokens=3, repeats=1, warmup=0, seed=1)
    assert not torch.equal(seen[0], seen[12])


def test_random_tokens_hold_no_padding(make: Any) -> None:
    model = make("tiny-llama", vocab_size=3)
    seen: list[torch.Tensor] = []
    model.model.embed_tokens.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    measure_speed(model, prompt=60, new_tokens=1, repeats=1, warmup=0)
    assert set(seen[0].flatten().tolist()) == {1, 2}


def test_threads_and_modes_are_put_back(make: Any) -> None:
    model = make("tiny-gpt2").train()
    model.transformer.h[1].eval()
    assert measure_speed(model, threads=2, **SMALL).threads == 2
    assert torch.get_num_threads() == 1
    assert model.training and not model.transformer.h[1].training

    def fail(*args: Any) -> None:
        raise RuntimeError("stop")

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        measure_speed(model, threads=2, **SMALL)
    assert torch.get_num_threads() == 1
    assert model.training and not model.transformer.h[1].training


def test_progress_is_told(make: Any) -> None:
    recorder = Recorder()
    measure_speed(make("tiny-gpt2"), warmup=1, progress=recorder, **SMALL)
    assert recorder.phases == [("speed", 3)]
    assert recorder.steps == 3


def test_two_models_are_timed_in_turns(make: Any, edit: Any) -> None:
    first = make("tiny-llama")
    second = edit(first, "several")
    order: list[str] = []
    for name, model in (("a", first), ("b", second)):
        model.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    compared = compare_speed(
        first, second, prompt=4, new_tokens=1, repeats=2, warmup=1, max_seconds=0
    )
    assert order == list("aabbbbaaaabb")
    one, two, ratios = compared
    assert set(ratios) == {"prefill", "decode"}
    # the median of two ratios lies between those of the extremes
    low = one.prefill_seconds.least / two.prefill_seconds.most
    high = one.prefill_seconds.most / two.prefill_seconds.least
    assert low <= ratios["prefill"].low <= ratios["prefill"].median <= high
    assert ratios["prefill"].pairs == ratios["decode"].pairs == 2
    encoders = compare_speed(make("tiny-bert"), make("tiny-bert"), **SMALL)
    assert set(encoders.ratios) == {"prefill"}


def test_fault_A18_pairs_are_added_until_the_interval_is_narrow(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("tiny-gpt2")
    clock = iter(range(1_000_000))
    monkeypatch.setattr("modwright.cost.speed.time.perf_counter", lambda: float(next(clock)))
    found = compare_speed(model, model, **SMALL)
    assert found.ratios["prefill"] == PairedRatio(1.0, 1.0, 1.0, 6)
    assert found.first.repeats == found.second.repeats == 6
    noise = torch.Generator().manual_seed(0)
    now = [0.0]

    def noisy() -> float:
        now[0] += 0.5 + float(torch.rand(1, generator=noise))
        return now[0]

    monkeypatch.setattr("modwright.cost.speed.time.perf_counter", noisy)
    many = compare_speed(model, model, **SMALL)
    assert 20 < many.ratios["prefill"].pairs <= 60
    assert not many.ratios["prefill"].differs
    none = compare_speed(model, model, **SMALL, max_seconds=0)
    assert none.ratios["prefill"].pairs == 2 and not none.ratios["prefill"].is_settled


def test_refusals_name_what_is_valid(make: Any) -> None:
    model = make("tiny-gpt2")
    for name in ("batch", "prompt", "new_tokens", "repeats", "threads"):
        with pytest.raises(
            InvalidInputError, match=f"{name} must be a whole number, 1 or more, not 0"
        ):
            measure_speed(model, **{**SMALL, name: 0})  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="warmup must be a whole number, 0 or more, not -1"):
        measure_speed(model, warmup=-1, **SMALL)
    with pytest.raises(InvalidInputError, match="need 260 positions; the model has 1 to 256"):
        measure_speed(model, prompt=250, new_tokens=10)
    with torch.device("meta"):
        empty = type(model)(model.config)
    with pytest.raises(InvalidInputError, match="no weights"):
        measure_speed(empty)
