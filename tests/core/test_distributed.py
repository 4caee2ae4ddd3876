"""Shards, exchanges and shared errors; what several real processes do is in tests/calibration."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from modwright.core import distributed
from modwright.core.errors import InvalidInputError, ProcessFailed

SOURCE = Path(distributed.__file__).parents[1]


def test_one_process_has_all_of_it_and_waits_for_nobody() -> None:
    with distributed.init_distributed():
        assert (distributed.rank(), distributed.size(), distributed.is_main()) == (0, 1, True)
        assert distributed.shard([1, 2, 3]) == [1, 2, 3]
        assert distributed.all_gather("x") == ["x"]
        assert distributed.broadcast("x") == "x"
        assert distributed.main_process_only(lambda: 5) == 5
        sums = {"a": torch.ones(2)}
        distributed.all_reduce_(sums)
        assert sums["a"].tolist() == [1, 1]
        with pytest.raises(InvalidInputError, match="as it is"), distributed.fail_together():
            raise InvalidInputError("as it is")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shards_are_disjoint_and_whole(size: int) -> None:
    items = list(range(7))
    shards = [distributed.shard(items, index, size) for index in range(size)]
    assert sorted(item for shard in shards for item in shard) == items
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


class Gathered:
    """Two processes of which the other one is played: it sends what it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
        self.rank = rank
        self.answers: list[object] = []
        self.sent: list[object] = []
        monkeypatch.setattr(distributed, "size", lambda: 2)
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "_group", lambda: None)
        monkeypatch.setattr(distributed.dist, "all_gather_object", self.gather)
        monkeypatch.setattr(distributed.dist, "all_reduce", lambda tensor, group: None)

    def gather(self, into: list[object], value: object, group: object) -> None:
        self.sent.append(value)
        into[self.rank] = value
        into[1 - self.rank] = self.answers.pop(0)


@pytest.mark.parametrize(("rank", "reported"), [(0, False), (1, True)])
def test_the_failure_of_another_is_raised_at_the_next_exchange(
    rank: int, reported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Gathered(monkeypatch, rank)
    trace = "where it was"
    told = ["process 1: no text", "the main process: no text"][rank]
    other.answers = [None, pickle.loads(pickle.dumps(ProcessFailed(told, 2, trace)))]
    with pytest.raises(ProcessFailed) as caught, distributed.fail_together():
        distributed.barrier()
        distributed.all_reduce_({"a": torch.ones(1)})
        raise AssertionError("went on")
    assert str(caught.value) == told
    assert (caught.value.exit_code, caught.value.trace) == (2, trace)
    assert caught.value.reported is reported
    assert other.answers == []  # and it is not told again


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_is_told_once_however_deep(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Gathered(monkeypatch, rank)
    other.answers = [None]
    kind = [ZeroDivisionError, ProcessFailed][rank]
    with pytest.raises(kind), distributed.fail_together(), distributed.fail_together():
        raise ZeroDivisionError("a crash")
    (sent,) = other.sent
    assert isinstance(sent, ProcessFailed)
    where = ["the main process", "process 1"][rank]
    assert (str(sent), sent.exit_code) == (f"{where}: ZeroDivisionError: a crash", 1)
    assert "raise ZeroDivisionError" in sent.trace


def test_only_the_main_process_works(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Gathered(monkeypatch, 1)
    other.answers = [None]
    assert distributed.main_process_only(lambda: 1 / 0) is None


def test_a_lost_connection_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Gathered(monkeypatch, 1)

    def lost(into: list[object], value: object, group: object) -> None:
        raise RuntimeError("Connection closed by peer\nmore lines")

    monkeypatch.setattr(distributed.dist, "all_gather_object", lost)
    with pytest.raises(ProcessFailed) as caught:
        distributed.barrier()
    line = str(caught.value)
    assert line.startswith("process 1 of 2: another process of this run is gone, or was silent")
    assert "the same command goes on" in line and "\n" not in line
    assert not caught.value.reported and other.sent == []
