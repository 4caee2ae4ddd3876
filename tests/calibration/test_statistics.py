"""Finished statistics on disk, and streams mapped from a file."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import pytest
import torch

from modwright.calibration import Statistics
from modwright.calibration.hidden_states import HiddenStatesFile
from modwright.core.errors import InvalidInputError


def test_blocks_are_read_back_as_they_were_stored(tmp_path: Path) -> None:
    statistics = Statistics(2, {"data": "x"}, tmp_path / "new" / "place")
    first = {"a": torch.arange(6, dtype=torch.float64).view(2, 3).T, "tokens": torch.tensor(7)}
    statistics.store(0, first)
    assert statistics.done(0) and not statistics.done(1)
    assert len(statistics) == 2
    statistics.store(1, {"b": torch.tensor(0.5)})
    assert torch.equal(statistics[0]["a"], first["a"])
    assert [sorted(values) for values in statistics] == [["a", "tokens"], ["b"]]
    for index in (-1, 2):
        with pytest.raises(IndexError):
            statistics[index]


def test_a_column_has_nan_where_a_block_has_no_such_part(tmp_path: Path) -> None:
    statistics = Statistics(3, {}, tmp_path)
    for index, values in enumerate([{"mlp": 0.5}, {}, {"mlp": 0.25}]):
        tensors = {name: torch.tensor(value) for name, value in values.items()}
        statistics.store(index, {**tensors, "tokens": torch.tensor(1)})
    column = statistics.column("mlp")
    assert column[0] == 0.5 and column[2] == 0.25 and math.isnan(column[1])


def test_fault_A16_a_column_of_an_unknown_name_is_refused(tmp_path: Path) -> None:
    statistics = Statistics(2, {}, tmp_path)
    statistics.store(0, {"block": torch.tensor(0.5), "gaps": torch.zeros(3)})
    statistics.store(1, {"mlp": torch.tensor(0.5)})
    assert statistics.names == {"block", "gaps", "mlp"}
    with pytest.raises(
        InvalidInputError, match=r"unknown statistic 'blok'; valid values: block, gaps, mlp"
    ):
        statistics.column("blok")
    with pytest.raises(InvalidInputError, match="'gaps' is more than one number per block"):
        statistics.column("gaps")


def test_without_a_directory_nothing_stays_behind() -> None:
    statistics = Statistics(1, {}, None)
    statistics.store(0, {"a": torch.zeros(2)})
    place = statistics.directory
    assert (place / "block-0000.safetensors").is_file()
    del statistics
    gc.collect()
    assert not place.exists()


def test_another_recipe_in_the_same_place_is_refused(tmp_path: Path) -> None:
    Statistics(1, {"data": {"windows": 3}}, tmp_path)
    Statistics(1, {"data": {"windows": 3}}, tmp_path)
    with pytest.raises(InvalidInputError, match="choose another directory or delete it"):
        Statistics(1, {"data": {"windows": 4}}, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_stream_is_a_tensor_per_batch_in_one_file(tmp_path: Path, dtype: torch.dtype) -> None:
    shapes = [(2, 3, 4), (1, 5, 4)]
    values = [torch.randn(shape).to(dtype) for shape in shapes]
    stream = HiddenStatesFile(tmp_path / "a", shapes, dtype, fresh=True)
    for index, value in enumerate(values):
        stream[index] = value
    stream.rename(tmp_path / "b")
    assert len(stream) == 2 and [p.name for p in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b").stat().st_size == 44 * dtype.itemsize
    again = HiddenStatesFile(tmp_path / "b", shapes, dtype, fresh=False)
    assert all(torch.equal(again[i], value) for i, value in enumerate(values))
    again.delete()
    again.delete()
    assert not list(tmp_path.iterdir())


def test_creating_a_stream_takes_no_partial_files_over(tmp_path: Path) -> None:
    HiddenStatesFile(tmp_path / "a", [(3,)], torch.float32, fresh=True)[0] = torch.ones(3)
    assert torch.equal(
        HiddenStatesFile(tmp_path / "a", [(3,)], torch.float32, fresh=True)[0], torch.zeros(3)
    )
