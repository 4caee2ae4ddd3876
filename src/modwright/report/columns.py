"""The columns of the before/after table, in their order."""

from __future__ import annotations

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

__all__ = ["METRICS", "shown_metrics"]

METRICS = (
    Metric(
        "parameters",
        "cost",
        "Parameters",
        count_text,
        percent_text,
        "fewer",
        "more",
        True,
        "Numbers that the model has learned; a table used twice counts once.",
    ),
    Metric(
        "stored_bytes",
        "cost",
        "Weights on disk",
        bytes_text,
        percent_text,
        "smaller",
        "larger",
        True,
        "Bytes of the weight files (1 MB is 1,000,000 bytes).",
    ),
    Metric(
        "perplexity",
        "quality",
        "Perplexity",
        number_text,
        factor_text,
        "lower",
        "higher",
        True,
        "About how many equally likely tokens the model hesitates between at each token of a text. "
        "Lower is better; only numbers measured the same way can be compared.",
    ),
    Metric(
        "kl",
        "agreement",
        "KL, nats/token",
        nats_text,
        factor_text,
        "lower",
        "higher",
        True,
        "Mean KL divergence of the result's distribution over a token from that of the model as it "
        "came, which is KL(original || result); 0 is the same distribution.",
    ),
    Metric(
        "top1",
        "agreement",
        "Top-1 agreement",
        share_text,
        percent_text,
        "lower",
        "higher",
        False,
        "Share of the tokens at which the result puts first what the model as it came puts first.",
    ),
    Metric(
        "cosine",
        "agreement",
        "Cosine",
        score_text,
        percent_text,
        "lower",
        "higher",
        False,
        "Mean cosine between the last hidden state of a token and that of the model as it came; 1 "
        "is the same direction.",
    ),
    Metric(
        "prefill_macs",
        "cost",
        "Prefill MACs",
        scaled_text,
        percent_text,
        "fewer",
        "more",
        True,
        "Multiplications with addition needed to read the prompt.",
    ),
    Metric(
        "decode_macs",
        "cost",
        "Decode MACs/token",
        scaled_text,
        percent_text,
        "fewer",
        "more",
        True,
        "Multiplications with addition needed to write one more token.",
    ),
    Metric(
        "kv_bytes",
        "cost",
        "KV cache",
        bytes_text,
        percent_text,
        "smaller",
        "larger",
        True,
        "Bytes that the attentions keep of the text read so far.",
    ),
    Metric(
        "activation_bytes",
        "cost",
        "Activations",
        bytes_text,
        percent_text,
        "smaller",
        "larger",
        True,
        "Bytes of the largest set of intermediate values alive at once while reading the prompt.",
    ),
    SpeedMetric(
        "prefill_tokens_per_second",
        "speed",
        "Prefill tokens/s",
        number_text,
        percent_text,
        "slower",
        "faster",
        False,
        "Measured tokens of the prompt read per second on the machine named below. A change is "
        "given only where a difference was seen.",
    ),
    SpeedMetric(
        "decode_tokens_per_second",
        "speed",
        "Decode tokens/s",
        number_text,
        percent_text,
        "slower",
        "faster",
        False,
        "Measured tokens written per second on the machine named below. A change is "
        "given only where a difference was seen.",
    ),
)

_LAST_OF_QUALITY = max(i for i, m in enumerate(METRICS) if m.group in ("quality", "agreement"))


def shown_metrics(report: Report) -> list[Metric]:
    """The metrics that at least one stage has, in the order of the columns."""
    found = [m for m in METRICS if any(m.cell(stage) != MISSING for stage in report.stages)]
    place = next(
        (i for i, m in enumerate(found) if METRICS.index(m) > _LAST_OF_QUALITY), len(found)
    )
    return [*found[:place], *score_metrics(report), *found[place:]]
