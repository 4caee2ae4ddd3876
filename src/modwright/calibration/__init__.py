"""Data in, statistics out: block by block, one block's statistics in memory, resumable."""

from modwright.calibration.as_data import calibration_of
from modwright.calibration.collectors import BlockDistance, Collector, SecondMoments, Similarity
from modwright.calibration.forecast import forecast_bytes
from modwright.calibration.layerwise import BlockSource, LiveBlocks, calibrate
from modwright.calibration.statistics import Statistics
from modwright.calibration.tensors import CalibrationData, TensorBatches, from_tensors
from modwright.calibration.text import Batch, TextData, TokenWindows, text_names, token_windows

__all__ = [
    "Batch",
    "BlockDistance",
    "BlockSource",
    "CalibrationData",
    "Collector",
    "LiveBlocks",
    "SecondMoments",
    "Similarity",
    "Statistics",
    "TensorBatches",
    "TextData",
    "TokenWindows",
    "calibrate",
    "calibration_of",
    "forecast_bytes",
    "from_tensors",
    "text_names",
    "token_windows",
]
