"""Blocks and their arguments go where a walk computes, and come back as they were.

No accelerator is needed: the meta device stands for one where only places are looked at.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layerwise_cases import walk

from modwright.anatomy import Anatomy
from modwright.calibration import BlockDistance, SecondMoments, Similarity
from modwright.calibration.layerwise import compute_device
from modwright.calibration.recording import moved, on_device
from modwright.core import distributed
from modwright.surgery import make_method

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")


def test_a_block_comes_back_to_the_very_tensors(tiny: Any) -> None:
    """Weights that are mapped from a file stay mapped."""
    block = Anatomy.of(tiny("tiny-gpt2")).blocks[1].module

    def held() -> dict[str, torch.Tensor]:
        return {**dict(block.named_parameters()), **dict(block.named_buffers())}

    def is_as_before() -> bool:
        return held().keys() == own.keys() and all(held()[name] is own[name] for name in own)

    own = held()
    with on_device(block, ELSEWHERE):
        assert {tensor.device for tensor in held().values()} == {ELSEWHERE}
        assert held().keys() == own.keys()
    assert is_as_before()
    with pytest.raises(ZeroDivisionError), on_device(block, ELSEWHERE):
        raise ZeroDivisionError
    assert is_as_before()
    with on_device(block, CPU):
        assert is_as_before()


def test_arguments_are_moved_wherever_they_stand() -> None:
    inner = torch.ones(2)
    given = ((inner, None, "word"), {"pair": (inner, [inner]), "none": None, "flag": True})
    args, kwargs = moved(given, ELSEWHERE)
    found = [args[0], kwargs["pair"][0], kwargs["pair"][1][0]]
    assert all(tensor.device == ELSEWHERE for tensor in found)
    assert args[1:] == (None, "word") and kwargs["none"] is None and kwargs["flag"] is True
    assert moved(given, CPU)[0][0] is inner  # what is there is not copied


def test_a_model_on_the_cpu_goes_where_the_process_computes(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    anatomy = Anatomy.of(tiny("tiny-llama"))
    assert compute_device(anatomy) == CPU
    monkeypatch.setattr(distributed, "device", lambda: torch.device("cuda", 1))
    assert compute_device(anatomy) == torch.device("cuda", 1)


def test_sums_stand_where_the_block_computes_and_results_on_the_cpu(tiny: Any) -> None:
    block = Anatomy.of(tiny("tiny-llama")).blocks[0]
    for collector in (SecondMoments(), Similarity(), BlockDistance(2)):
        with on_device(block.module, ELSEWHERE):
            assert {t.device for t in collector.start(block).sums.values()} == {ELSEWHERE}
        assert {t.device for t in collector.start(block).sums.values()} == {CPU}
    statistics = walk(tiny("tiny-llama"), SecondMoments())
    assert {value.device for value in statistics[0].values()} == {CPU}


@pytest.mark.parametrize("collector", [SecondMoments(), Similarity(), BlockDistance(3)])
def test_sums_do_not_depend_on_what_was_seen(collector: Any, tiny: Any, preset: str) -> None:
    """A process without a batch adds zeros of the right shapes."""
    blocks = Anatomy.of(tiny(preset)).blocks
    results = walk(tiny(preset), collector)
    for block in blocks:
        sums = collector.start(block).sums
        assert all(t.dtype in (torch.float64, torch.int64) for t in sums.values())
        assert not any(t.any() for t in sums.values())
        shaped = {name: tuple(t.shape) for name, t in results[block.index].items()}
        for name in sums.keys() & shaped.keys() - {"tokens"}:
            assert tuple(sums[name].shape) == shaped[name]


def test_the_solve_takes_statistics_and_weights_of_other_types(tiny: Any) -> None:
    """Weights come to where the moments are, in their type: float64 on the CPU."""
    from modwright.surgery.decompositions import nystrom_mlp

    model = tiny("tiny-llama", dtype=torch.bfloat16)
    moments = walk(model, SecondMoments())[0]["mlp"]
    down = Anatomy.of(model).blocks[0].mlp.down.weight
    _, new = nystrom_mlp(down, moments, 16)
    assert new.dtype == torch.float64 and new.device == CPU
    plan = make_method("modegpt", {"sparsity": 0.3})
    assert plan.collectors() == [SecondMoments()]
