"""Data in, statistics out: block by block, one block's statistics in memory, resumable."""

from modwright.calibration.collectors import Collector, Grams, Similarity, StreamGaps
from modwright.calibration.statistics import Statistics
from modwright.calibration.text import Batch, TextData, TokenWindows, text_names, token_windows
from modwright.calibration.walk import BlockSource, LiveBlocks, calibrate, forecast_bytes

__all__ = [
    "Batch",
    "BlockSource",
    "Collector",
    "Grams",
    "LiveBlocks",
    "Similarity",
    "Statistics",
    "StreamGaps",
    "TextData",
    "TokenWindows",
    "calibrate",
    "forecast_bytes",
    "text_names",
    "token_windows",
]
