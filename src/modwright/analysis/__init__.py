"""What a model does inside: numbers, each beside what nothing would give."""

from modwright.analysis.finding import Chart, Finding
from modwright.analysis.registry import (
    ANALYSES,
    Analysis,
    FileAnalysis,
    Subject,
    analysis,
    analyze,
    load_finding,
    make_analysis,
)
from modwright.analysis.residual_stream import StreamMean, stream_mean
from modwright.analysis.spectrum import (
    Spectrum,
    band_energy,
    map_spectra,
    radial_spectrum,
    relative_log_amplitude,
)

__all__ = ["ANALYSES", "Analysis", "Chart", "FileAnalysis", "Finding", "Spectrum", "StreamMean"]
__all__ += ["Subject", "analysis", "analyze", "band_energy", "load_finding", "make_analysis"]
__all__ += ["map_spectra", "radial_spectrum", "relative_log_amplitude", "stream_mean"]
