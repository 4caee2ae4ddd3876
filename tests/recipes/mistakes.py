"""Recipes as a newcomer may write them: the text, and what the refusal must say."""

from __future__ import annotations

__all__ = ["MISTAKES", "STEP"]

STEP = "steps:\n  - method: llm_drop\n    n: 1\n"

MISTAKES: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown key": (
        "model: m\nmodle: x\n" + STEP,
        (
            "r.yaml line 2, modle",
            "unknown key",
            "valid keys: model, output",
            "did you mean 'model'?",
        ),
    ),
    "misspelt key before the missing one": (
        "model: m\nstep:\n  - {method: llm_drop}\n",
        ("r.yaml line 2, step", "did you mean 'steps'?"),
    ),
    "missing key": (
        STEP,
        ("r.yaml line 1, model", "is missing", "preset:NAME"),
    ),
    "unknown key two levels down": (
        "model: m\nevaluate:\n  perplexity:\n    widows: 4\n" + STEP,
        ("r.yaml line 4, evaluate.perplexity.widows", "stride", "did you mean 'windows'?"),
    ),
    "unknown key of the harness": (
        "model: m\nevaluate:\n  harness:\n    task: [a]\n" + STEP,
        ("r.yaml line 4, evaluate.harness.task", "tasks, include_path", "did you mean 'tasks'?"),
    ),
    "harness without tasks": (
        "model: m\nevaluate:\n  harness: {limit: 3}\n" + STEP,
        ("r.yaml line 3, evaluate.harness.tasks", "is missing: names of tasks"),
    ),
    "one task that is no list": (
        "model: m\nevaluate:\n  harness: {tasks: hellaswag}\n" + STEP,
        ("r.yaml line 3, evaluate.harness.tasks", "must be a list", "not 'hellaswag'"),
    ),
    "no tasks": (
        "model: m\nevaluate:\n  harness: {tasks: []}\n" + STEP,
        ("r.yaml line 3, evaluate.harness.tasks", "must have at least one entry"),
    ),
    "a limit of nothing": (
        "model: m\nevaluate:\n  harness: {tasks: [a], limit: 0}\n" + STEP,
        ("r.yaml line 3, evaluate.harness.limit", "must be 1 or more, not 0"),
    ),
    "divergence that is a number": (
        "model: m\nevaluate:\n  divergence: 3\n" + STEP,
        ("r.yaml line 3, evaluate.divergence", "must be a mapping with the keys", "not 3"),
    ),
    "a metric of another name": (
        "model: m\nevaluate:\n  perplexty: {}\n" + STEP,
        ("r.yaml line 3, evaluate.perplexty", "unknown key", "did you mean 'perplexity'?"),
    ),
    "a metric under two names": (
        "model: m\nevaluate:\n  divergence: true\n  agreement: true\n" + STEP,
        ("r.yaml line 2, evaluate", "names the metric divergence a second time"),
    ),
    "a metric that needs a mapping": (
        "model: m\nevaluate:\n  accuracy: true\n" + STEP,
        ("r.yaml line 3, evaluate.accuracy", "needs a mapping with images"),
    ),
    "unknown key in a flow mapping": (
        "model: m\nevaluate: {speed: {promt: 4}}\n" + STEP,
        ("r.yaml line 2, evaluate.speed.promt", "new_tokens", "did you mean 'prompt'?"),
    ),
    "unknown key in a step's calibration": (
        "model: m\n" + STEP + "    calibration: {lenght: 3}\n",
        ("r.yaml line 5, steps.0.calibration.lenght", "did you mean 'length'?"),
    ),
    "unknown key beside options": (
        "model: m\nsteps:\n  - method: llm_drop\n    options: {n: 1}\n    m: 2\n",
        ("r.yaml line 5, steps.0.m", "unknown key", "method, calibration, options"),
    ),
    "unknown method": (
        "model: m\nsteps:\n  - method: modegpt\n  - method: llmdrop\n",
        ("r.yaml line 4, steps.1", "'llmdrop'", "llm_drop, modegpt", "did you mean 'llm_drop'?"),
    ),
    "no method": (
        "model: m\nsteps:\n  - n: 1\n",
        ("r.yaml line 3, steps.0.method", "is missing", "llm_drop, modegpt"),
    ),
    "null for a method": (
        "model: m\nsteps:\n  - method:\n    n: 1\n",
        ("r.yaml line 3, steps.0.method", "must be text, not null"),
    ),
    "unknown option": (
        "model: m\nsteps:\n  - method: llm_drop\n    n: 1\n    targt: mlp\n",
        ("r.yaml line 5, steps.0", "'targt'", "n, target, mode", "did you mean 'target'?"),
    ),
    "invalid option": (
        "model: m\nsteps:\n  - method: llm_drop\n    n: 1\n    target: attn\n",
        ("r.yaml line 5, steps.0", "'attention', 'mlp', 'block' or 'joint'", "'attn'"),
    ),
    "option of the wrong type": (
        "model: m\nsteps:\n  - method: llm_drop\n    n: four\n",
        ("r.yaml line 4, steps.0", "n:", "whole number", "'four'"),
    ),
    "option out of range": (
        "model: m\nsteps:\n  - method: modegpt\n    pairs: [mlp]\n    sparsity: 1.5\n",
        ("r.yaml line 5, steps.0", "sparsity 1.5", "[0, 1)"),
    ),
    "invalid entry of an option's list": (
        "model: m\nsteps:\n  - method: modegpt\n    pairs: [mlp, atention]\n",
        ("r.yaml line 4, steps.0", "'mlp', 'query_key' or 'value_output'", "'atention'"),
    ),
    "method without a mapping": (
        "model: m\nsteps:\n  - llm_drop\n",
        ("r.yaml line 3, steps.0", "must be a mapping", "method", "'llm_drop'"),
    ),
    "steps without dashes": (
        "model: m\nsteps:\n  method: llm_drop\n",
        ("r.yaml line 2, steps", "must be a list", "'- '"),
    ),
    "no steps": (
        "model: m\nsteps: []\n",
        ("r.yaml line 2, steps", "at least one entry", "[]"),
    ),
    "number for text": (
        "model: 7\n" + STEP,
        ("r.yaml line 1, model", "must be text, not 7"),
    ),
    "text for a number": (
        "model: m\nseed: 1e3\n" + STEP,
        ("r.yaml line 2, seed", "must be a whole number, not '1e3'"),
    ),
    "truth for a number": (
        "model: m\nthreads: true\n" + STEP,
        ("r.yaml line 2, threads", "must be a whole number, not true"),
    ),
    "text for truth": (
        "model: m\ncalibration: {bos: maybe}\n" + STEP,
        ("r.yaml line 2, calibration.bos", "must be 'auto', true or false, not 'maybe'"),
    ),
    "number out of range": (
        "model: m\ncalibration:\n  windows: 0\n" + STEP,
        ("r.yaml line 3, calibration.windows", "must be 1 or more, not 0"),
    ),
    "text for a mapping": (
        "model: m\nevaluate: {perplexity: none}\n" + STEP,
        (
            "r.yaml line 2, evaluate.perplexity",
            "mapping with the keys data",
            "null to leave it out",
        ),
    ),
    "unknown dtype": (
        "model: m\ndtype: fp16\n" + STEP,
        ("r.yaml line 2, dtype", "'bfloat16'", "not 'fp16'", "did you mean 'float16'?"),
    ),
    "size of a shard": (
        "model: m\nmax_shard_size: huge\n" + STEP,
        ("r.yaml line 2, max_shard_size", "200MB", "'huge'"),
    ),
    "key given twice": (
        "model: m\nseed: 1\nmodel: n\n" + STEP,
        ("r.yaml line 3, model", "r.yaml line 1", "keep one"),
    ),
    "key given twice deep inside": (
        "model: m\n" + STEP + "    n: 2\n",
        ("r.yaml line 5, steps.0.n", "r.yaml line 4"),
    ),
    "key that is no text": (
        "model: m\n3: x\n" + STEP,
        ("r.yaml line 2, 3", "a key must be text, not 3"),
    ),
    "open bracket": (
        "model: m\nsteps: [\n",
        ("r.yaml line 3", "not valid YAML"),
    ),
    "tab": (
        "model: m\nsteps:\n\t- method: llm_drop\n",
        ("r.yaml line 3", "not valid YAML", "not with tabs"),
    ),
    "impossible date": (
        "model: m\ntitle: 2024-13-45\n" + STEP,
        ("r.yaml", "not valid YAML", "month"),
    ),
    "list instead of a recipe": (
        "- model: m\n",
        ("r.yaml is a list", "keys model and steps"),
    ),
    "empty file": (
        "# nothing yet\n",
        ("r.yaml is empty", "keys model and steps"),
    ),
    "recipe that holds itself": (
        "model: m\nsteps:\n  - {method: llm_drop, n: &a [*a]}\n",
        ("r.yaml", "nests deeper than 64 levels"),
    ),
    "extends something odd": (
        "extends: [a.yaml]\nmodel: m\n",
        ("r.yaml line 1, extends", "one recipe file"),
    ),
    "extends itself": (
        "model: m\nextends: r.yaml\n",
        ("r.yaml", "circle"),
    ),
}
