"""Small reports in which one thing at a time is set."""

from __future__ import annotations

from typing import Any

from modwright.report import Report, Stage

COST = {
    "parameters": 1_000_000,
    "stored_bytes": 4_000_000,
    "prefill_macs": 512_000_000,
    "decode_macs": 1_000_000,
    "kv_bytes": 100_000,
    "activation_bytes": 200_000,
    "recipe": {"batch": 1, "prompt_tokens": 512},
}
RECIPE = {"data": "lee.cor", "length": 512}
ASKED = {"harness": "lm-eval 0.4.13", "tasks": {"words": {}}}
TIMING = {"threads": 2, "repeats": 5}


def stage(
    name: str = "before",
    *,
    perplexity: float | None = 30.0,
    decode: float | None = None,
    prefill: float | None = None,
    repetition: float | None = None,
    text: str = "Some words.",
    agreement: dict[str, Any] | None = None,
    scores: list[dict[str, Any]] | None = None,
    asked: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    timing: dict[str, Any] | None = None,
    ratios: dict[str, tuple[float, float, float, int]] | None = None,
    unchanged: bool = False,
    by_window: dict[str, list[float]] | None = None,
    plain: bool = True,
    **cost: float,
) -> Stage:
    """A stage with unit costs, changed by ``cost``; a perplexity of None is not measured.

    ``recipe``, ``timing`` and ``asked`` are how perplexity, speed and scores were taken; ``ratios``
    are median, low, high and number of pairs of a phase against the baseline; ``by_window`` is what
    perplexity has of each window.
    """
    measured: dict[str, Any] = {}
    if perplexity is not None:
        windows = {} if by_window is None else {"by_window": by_window}
        used = RECIPE if recipe is None else recipe
        measured["perplexity"] = {"value": perplexity, "recipe": used, **windows}
    if agreement is not None:
        measured["divergence"] = agreement
    if scores is not None:
        measured["lm_eval"] = {"scores": scores, "recipe": ASKED if asked is None else asked}
    if decode is not None or prefill is not None:
        measured["speed"] = {
            "decode_tokens_per_second": decode,
            "prefill_tokens_per_second": prefill,
            "recipe": TIMING if timing is None else timing,
            **({"unchanged": True} if unchanged else {}),
        }
        if ratios is not None:
            names = ("median", "low", "high", "pairs")
            found = {phase: dict(zip(names, ends)) for phase, ends in ratios.items()}
            measured["speed"]["ratios"] = found
    if repetition is not None:
        measured["generation"] = {"prompt": "Say.", "text": text, "repetition": repetition}
    return Stage(
        name,
        method=None if name == "before" else name.split()[-1],
        cost={**COST, **cost},
        measured=measured,
        plain=plain,
    )


def score(value: float | None, stderr: float | None = None, **changed: Any) -> dict[str, Any]:
    """One score of the harness."""
    return {
        "name": "words acc",
        "task": "words",
        "metric": "acc",
        "filter": "none",
        "value": value,
        "stderr": stderr,
        "higher_is_better": True,
        "documents": 100,
        "num_fewshot": 0,
        "version": "1.0",
        "harness": "lm-eval 0.4.13",
        "asked": True,
        **changed,
    }


def near(kl: float, top1: float, **changed: Any) -> dict[str, Any]:
    """An agreement with the baseline."""
    return {"kl": kl, "top1": top1, "tokens": 3066, "recipe": {"data": "lee.cor"}, **changed}


def report(*stages: Stage, **fields: Any) -> Report:
    """A report of these stages."""
    return Report("small", stages=list(stages), **fields)
