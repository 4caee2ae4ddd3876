"""What a model does inside: numbers, each beside what nothing would give."""

from modwright.analysis.residual_stream import StreamMean, stream_mean
from modwright.analysis.spectrum import (
    Spectrum,
    band_energy,
    map_spectra,
    radial_spectrum,
    relative_log_amplitude,
)

__all__ = [
    "Spectrum",
    "StreamMean",
    "band_energy",
    "map_spectra",
    "radial_spectrum",
    "relative_log_amplitude",
    "stream_mean",
]
