"""What a model does inside: numbers, each beside what nothing would give."""

from modwright.analysis.stream_mean import StreamMean, stream_mean

__all__ = ["StreamMean", "stream_mean"]
