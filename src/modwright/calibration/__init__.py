"""Data in, statistics out: block by block, one block's statistics in memory, resumable."""

from modwright.calibration.collectors import BlockDistance, Collector, SecondMoments, Similarity
from modwright.calibration.layerwise import BlockSource, LiveBlocks, calibrate
from modwright.calibration.statistics import Statistics
from modwright.calibration.tensors import (
    CalibrationData,
    TensorBatches,
    calibration_of,
    from_tensors,
)
from modwright.data.text import Batch, TextData, TokenWindows, text_names, token_windows

__all__ = ["Batch", "BlockDistance", "BlockSource", "CalibrationData", "Collector", "LiveBlocks"]
__all__ += ["SecondMoments", "Similarity", "Statistics", "TensorBatches", "TextData"]
__all__ += ["TokenWindows", "calibrate", "calibration_of", "from_tensors", "text_names"]
__all__ += ["token_windows"]
