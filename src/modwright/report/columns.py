"""The columns of the before/after table, in their order."""

from __future__ import annotations

from collections.abc import Iterable

from modwright.core.formatting import (
    MISSING,
    bytes_text,
    count_text,
    factor_text,
    nats_text,
    number_text,
    percent_text,
    scaled_text,
    score_text,
    share_text,
)
from modwright.report.data import Report
from modwright.report.metrics import Metric
from modwright.report.scores import score_metrics
from modwright.report.speeds import SpeedMetric

__all__ = ["MEANINGS", "METRICS", "shown_metrics"]

# How a change is written, the words for it, and whether less is better.
_FEWER = (percent_text, "fewer", "more")
_SMALLER = (percent_text, "smaller", "larger")
_SHARE = (percent_text, "lower", "higher", False)
_RATE = (number_text, percent_text, "slower", "faster", False)

_SIZE = (
    Metric("cost", "parameters", "Parameters", count_text, *_FEWER),
    Metric("cost", "stored_bytes", "Weights on disk", bytes_text, *_SMALLER),
)
_QUALITY = (
    Metric("quality", "perplexity", "Perplexity", number_text, factor_text),
    Metric("agreement", "kl", "KL, nats/token", nats_text, factor_text),
    Metric("agreement", "top1", "Top-1 agreement", share_text, *_SHARE),
    Metric("agreement", "cosine", "Cosine", score_text, *_SHARE),
)
_WORK = (
    Metric("cost", "prefill_macs", "Prefill MACs", scaled_text, *_FEWER),
    Metric("cost", "decode_macs", "Decode MACs/token", scaled_text, *_FEWER),
    Metric("cost", "kv_bytes", "KV cache", bytes_text, *_SMALLER),
    Metric("cost", "state_bytes", "Recurrent state", bytes_text, *_SMALLER),
    Metric("cost", "activation_bytes", "Activations", bytes_text, *_SMALLER),
    SpeedMetric("speed", "prefill_tokens_per_second", "Prefill tokens/s", *_RATE),
    SpeedMetric("speed", "decode_tokens_per_second", "Decode tokens/s", *_RATE),
)
METRICS: tuple[Metric, ...] = (*_SIZE, *_QUALITY, *_WORK)

_SEEN = "on the machine named below. A change is given only where a difference was seen."
MEANINGS = {
    "parameters": "Numbers that the model has learned; a table used twice counts once.",
    "stored_bytes": "Bytes of the weight files (1 MB is 1,000,000 bytes).",
    "perplexity": "About how many equally likely tokens the model hesitates between at each token "
    "of a text. Lower is better; only numbers measured the same way can be compared.",
    "kl": "Mean KL divergence of the result's distribution over a token from that of the model as "
    "it came, which is KL(original || result); 0 is the same distribution.",
    "top1": "Share of the tokens at which the result puts first what the baseline puts first.",
    "cosine": "Mean cosine between the last hidden state of a token and that of the model as it "
    "came; 1 is the same direction.",
    "prefill_macs": "Multiplications with addition needed to read the prompt.",
    "decode_macs": "Multiplications with addition needed to write one more token.",
    "kv_bytes": "Bytes that the attentions keep of the text read so far.",
    "state_bytes": "Bytes that recurrent layers keep of the text read so far, however long it is.",
    "activation_bytes": "Bytes of the largest set of intermediate values alive at once while "
    "reading the prompt.",
    "prefill_tokens_per_second": f"Measured tokens of the prompt read per second {_SEEN}",
    "decode_tokens_per_second": f"Measured tokens written per second {_SEEN}",
}
"""What each column is, in words; those of scores have words of their own."""


def shown_metrics(report: Report) -> list[Metric]:
    """The metrics that at least one stage has, in the order of the columns."""

    def known(metrics: Iterable[Metric]) -> list[Metric]:
        return [m for m in metrics if any(m.cell(stage) != MISSING for stage in report.stages)]

    return [*known(_SIZE + _QUALITY), *score_metrics(report), *known(_WORK)]
