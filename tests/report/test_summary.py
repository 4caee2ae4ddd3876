from __future__ import annotations

import re

import pytest

from modwright.metrics.generation import REPEATS
from modwright.metrics.perplexity import FAR_OUTSIDE, NEARLY_FREE
from modwright.report import Report, Stage, summary_sentences

from .small import ASKED, near, report, score, stage

# name, stages, what one sentence must say, what no sentence may say
CASES: list[tuple[str, list[Stage], str, str]] = [
    (
        "perplexity rose",
        [stage(), stage("1 x", perplexity=36.0, parameters=900_000)],
        r"Perplexity rose from 30\.00 to 36\.00 per token, by a factor of 1\.20, for a model with "
        r"10\.0 % fewer parameters\.",
        "nearly free|far outside",
    ),
    (
        "nearly free at the threshold",
        [
            stage(),
            stage("1 x", perplexity=30.0 * NEARLY_FREE, parameters=900_000, stored_bytes=3e6),
        ],
        r"by a factor of 1\.02, .*: nearly free\.",
        "far outside|did not pay",
    ),
    (
        "just above nearly free",
        [stage(), stage("1 x", perplexity=30.0 * 1.021, parameters=900_000)],
        r"by a factor of 1\.02, ",
        "nearly free",
    ),
    (
        "far outside",
        [stage(), stage("1 x", perplexity=30.0 * 2.01)],
        r"far outside the range where text stays usable; heal it by fine-tuning or choose less\.",
        "nearly free",
    ),
    (
        "twice is not yet far outside",
        [stage(), stage("1 x", perplexity=30.0 * FAR_OUTSIDE, parameters=900_000)],
        r"by a factor of 2\.00",
        "far outside",
    ),
    (
        "perplexity fell",
        [stage(), stage("1 x", perplexity=27.0, parameters=1_100_000)],
        r"Perplexity fell from 30\.00 to 27\.00 .*0\.90, for a model with 10\.0 % more parameters",
        "nearly free|did not pay:",
    ),
    (
        "perplexity stayed",
        [stage(), stage("1 x", perplexity=30.001)],
        r"Perplexity stayed at 30\.00 per token for a model with as many parameters\.",
        "rose|fell from",
    ),
    (
        "not finite",
        [stage(), stage("1 x", perplexity=float("inf"))],
        r"The result is broken: its perplexity is not a finite number",
        "rose|stayed",
    ),
    (
        "not finite before",
        [stage(perplexity=float("nan")), stage("1 x")],
        r"Perplexity before is not a finite number, so the change is not known\.",
        "rose|stayed|broken",
    ),
    (
        "not measured",
        [stage(perplexity=None), stage("1 x", perplexity=None)],
        r"Quality was not measured, so nothing is said about it\.",
        "rose|stayed",
    ),
    (
        "measured differently",
        [stage(), stage("1 x", perplexity=60.0, recipe={"data": "lee.cor", "length": 256})],
        r"Perplexity before and after cannot be compared: it was measured differently \(length\)",
        "rose|factor of|far outside",
    ),
    (
        "batch size does not count",
        [
            stage(),
            stage(
                "1 x",
                perplexity=36.0,
                recipe={"data": "lee.cor", "length": 512, "batch_size": 4},
            ),
        ],
        r"Perplexity rose",
        "cannot be compared",
    ),
    (
        "speed not timed",
        [stage(), stage("1 x", decode_macs=500_000)],
        r"Speed was not timed before and after; fewer MACs alone do not mean less time\.",
        "tokens/s",
    ),
    (
        "timed differently",
        [stage(decode=20.0), stage("1 x", decode=40.0, timing={"threads": 8, "repeats": 5})],
        r"Speeds before and after cannot be compared: they were timed differently \(threads\)\.",
        "tokens/s",
    ),
    (
        "cost without gain",
        [stage(), stage("1 x", perplexity=31.0)],
        r"did not pay: perplexity rose by a factor of 1\.03, and neither parameters, bytes on disk "
        r"nor MACs fell\.",
        "nearly free",
    ),
    (
        "larger on disk",
        [stage(), stage("1 x", stored_bytes=4_400_000)],
        r"needs more bytes: weights on disk grew from 4\.00 MB to 4\.40 MB \(10\.0 % larger\)\.",
        "KV cache grew|activations grew",
    ),
    (
        "larger cache and activations",
        [stage(), stage("1 x", kv_bytes=110_000)],
        r"needs more bytes: KV cache grew from 100\.0 kB to 110\.0 kB",
        "weights on disk grew",
    ),
    (
        "fewer parameters in as many bytes",
        [stage(), stage("1 x", parameters=500_000)],
        r"did not pay on disk: it has 50\.0 % fewer parameters, and 4\.00 MB of weights are no "
        r"smaller\.",
        "grew",
    ),
    (
        "repeats at the threshold",
        [stage(repetition=0.0), stage("1 x", repetition=REPEATS)],
        r"The sample repeats itself: 50\.0 % of the 4-grams written after step 1 x",
        "written before",
    ),
    (
        "does not repeat",
        [stage(repetition=0.0), stage("1 x", repetition=0.49)],
        r"The result",
        "repeats itself",
    ),
    (
        "writes nothing",
        [stage(repetition=0.0), stage("1 x", repetition=0.0, text=" \n")],
        r"The sample written after step 1 x is empty",
        "repeats itself",
    ),
    (
        "plain",
        [stage(), stage("1 x")],
        r"The result is plain: stock transformers loads it\.",
        "import modwright",
    ),
    (
        "not plain",
        [stage(), stage("1 x", plain=False)],
        r"not plain: .* loads after `import modwright`\.",
        "stock transformers loads",
    ),
    (
        "agreement with the baseline",
        [stage(), stage("1 x", agreement=near(0.31214, 0.7834))],
        r"The result's predictions are 0\.3121 nats from those of the baseline "
        r"\(mean KL at 3,066 tokens of text\), and both put the same token first at 78\.3 % of "
        r"them\.",
        "cannot be said",
    ),
    (
        "agreement that is not finite",
        [stage(), stage("1 x", agreement=near(float("nan"), 0.0))],
        r"How far the result is from the baseline cannot be said: at 3,066 tokens",
        "nats",
    ),
    (
        "cosine of a model without a head",
        [
            stage(perplexity=None),
            stage(
                "1 x",
                perplexity=None,
                agreement={"cosine": 0.98765, "tokens": 30, "recipe": {"data": "lee.cor"}},
            ),
        ],
        r"have a mean cosine of 0\.9877 at 30 tokens of text\.",
        "nothing is said about it|nats",
    ),
    (
        "a score fell beyond its error",
        [stage(scores=[score(0.85, 0.03)]), stage("1 x", scores=[score(0.7, 0.04)])],
        r"words acc fell from 0\.8500 to 0\.7000 \(words \(version 1\.0\), 100 documents, 0-shot, "
        r"lm-eval 0\.4\.13\)\.",
        "within the standard error",
    ),
    (
        "a score rose within the error",
        [stage(scores=[score(0.8, 0.03)]), stage("1 x", scores=[score(0.85, 0.04)])],
        r"words acc rose from 0\.8000 to 0\.8500 .*: within the standard error of the difference, "
        r"0\.0500\.",
        "fell",
    ),
    (
        "a score stayed",
        [stage(scores=[score(0.8, 0.03)]), stage("1 x", scores=[score(0.8, 0.03)])],
        r"words acc stayed at 0\.8000 ",
        "rose|fell|within",
    ),
    (
        "a score without an error",
        [stage(scores=[score(0.8)]), stage("1 x", scores=[score(0.7)])],
        r"words acc fell from 0\.8000 to 0\.7000",
        "within",
    ),
    (
        "a score of a model that gives NaN",
        [
            stage(scores=[score(0.8)]),
            Stage(
                "1 x",
                "x",
                measured={"lm_eval": {"scores": [score(None)], "finite": False, "recipe": ASKED}},
            ),
        ],
        r"words acc cannot be said: the model gives NaN \(words ",
        "words acc rose|words acc fell|compared",
    ),
    (
        "scores of different documents",
        [
            stage(scores=[score(0.8)]),
            stage("1 x", scores=[score(0.7)], asked={"harness": "lm-eval 0.4.12", "tasks": {}}),
        ],
        r"Scores before and after cannot be compared: they were taken differently "
        r"\(harness, tasks\)\.",
        "rose|fell",
    ),
    (
        "scores of a model that was not edited",
        [stage(scores=[score(0.8)])],
        r"words acc is 0\.8000 \(words \(version 1\.0\), 100 documents",
        "rose|fell|compared",
    ),
    (
        "nothing was done",
        [stage()],
        r"Nothing was changed",
        "The result|Perplexity",
    ),
]


@pytest.mark.parametrize(
    ("stages", "said", "unsaid"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_rule(stages: list[Stage], said: str, unsaid: str) -> None:
    lines = summary_sentences(report(*stages))
    assert any(re.search(said, line) for line in lines), lines
    assert not any(re.search(unsaid, line) for line in lines), lines
    assert all(line.endswith(".") and "\n" not in line for line in lines)


def test_a_broken_step_in_the_middle_is_named() -> None:
    lines = summary_sentences(report(stage(), stage("1 x", perplexity=float("nan")), stage("2 y")))
    assert any(line.startswith("Step 1 x is broken") for line in lines)
    assert (
        "Step 2 y: perplexity before is not a finite number, so the change is not known." in lines
    )


def test_no_sentence_praises(example: Report) -> None:
    said = " ".join(summary_sentences(example)).lower()
    for word in ("great", "excellent", "impressive", "only", "amazing", "successful", "improve"):
        assert word not in said.split()


def test_fault_A19_the_file_that_was_opened_is_named_with_its_size() -> None:
    opened = {"opened_file": "small.Q4_1.gguf", "opened_bytes": 700_000}
    told = "The file that was opened, small.Q4_1.gguf, has 700.0 kB; its weights take 4.00 MB as "
    machine = {"dtype": "float32"}
    one = report(stage(), stage("1 x", stored_bytes=3.5e6), model=opened, environment=machine)
    assert (
        f"{told}float32, and the result is 5.00 times as large as that file."
        in summary_sentences(one)
    )
    assert f"{told}float32." in summary_sentences(
        report(stage(), model=opened, environment=machine)
    )


def test_a_file_of_the_weights_own_size_is_not_named() -> None:
    for model in ({}, {"opened_file": "model.safetensors", "opened_bytes": 4_004_000}):
        lines = summary_sentences(report(stage(), stage("1 x"), model=model))
        assert not any("was opened" in line for line in lines)
