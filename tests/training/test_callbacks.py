"""A dataset is told the epoch whose rows are read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from modwright.training.callbacks import EpochCallback


class Told:
    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


@pytest.mark.parametrize(("state", "epoch"), [(None, 0), (0, 0), (1.0, 1), (1.75, 1), (2.0, 2)])
def test_the_epoch_is_the_one_that_begins_or_goes_on(state: float | None, epoch: int) -> None:
    told = Told()
    EpochCallback(told).on_epoch_begin(None, SimpleNamespace(epoch=state), None)
    assert told.epoch == epoch
    EpochCallback(object()).on_epoch_begin(None, SimpleNamespace(epoch=state), None)
