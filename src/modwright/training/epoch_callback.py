"""Tells a dataset the epoch, in every process and after a training goes on."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

__all__ = ["EpochCallback"]


class EpochCallback(TrainerCallback):
    """Calls ``set_epoch`` of a dataset that has it before the rows of each epoch are read.

    Data loaders tell it by themselves only where one process begins an epoch at its first batch.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int(state.epoch or 0))
