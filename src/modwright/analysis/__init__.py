"""What a model does inside: numbers, each beside what nothing would give."""

from modwright.analysis.residual_stream import StreamMean, stream_mean

__all__ = ["StreamMean", "stream_mean"]
