"""This version beside an older one, in turns: is anything that `make bench` times slower?

Each version runs in a process of its own, on its own source, and only one of the two works at a
time. A ratio is old time over new time in neighboring runs, so 1.10 means that this version is
10 % faster. Interval: order statistics of the pairs (95 %).

    git worktree add OLD 3752cdf
    python benchmarks/versions.py OLD/src --clock cpu --threads 1
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STARTS = {
    "import modwright": "import modwright",
    "modwright --help": "from modwright.cli import main; main()",
}


def seconds(clock: str) -> float:
    """Now; "cpu" counts this process and those that it has waited for."""
    if clock == "wall":
        return time.perf_counter()
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


# In the process of one version


def either(*names: str) -> Any:
    """What has the first of these names that there is; "package:name" within modwright."""
    for module, _, name in (one.partition(":") for one in names):
        with suppress(ImportError, AttributeError):
            return getattr(import_module(f"modwright.{module}"), name)
    raise SystemExit(f"this version has none of {', '.join(names)}")


def runs(model_name: str, work: Path) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """What is timed: name, how many times for one measurement, and the call."""
    import torch
    from torch.nn import functional as F
    from transformers import GPT2Config, GPT2LMHeadModel

    import modwright
    from modwright.calibration import calibrate, token_windows
    from modwright.nn import CRMSNorm, ExpertFeedForward, ExpertShape, RMSNorm
    from modwright.surgery import apply, make_method, plan

    check_reopens = either("edits.verify:check_reopens", "edits.reopen:check_reopens")
    collector = either("calibration:SecondMoments", "calibration:Grams")
    torch.manual_seed(0)
    opened = modwright.open(model_name)
    data = token_windows(opened.tokenizer, "lee-background", windows=8, length=256, batch_size=8)
    yield "calibrate block by block", 1, lambda: calibrate(opened.anatomy, data, [collector()])
    narrowing = make_method("modegpt", {"sparsity": 0.2, "pairs": ["mlp"]})
    yield "modegpt, MLPs: calibrate and plan", 1, lambda: plan(opened.model, narrowing, data)

    modwright.save(opened.model, work / "model")
    drop = make_method("drop", {"parts": "attention[5, 12, 20, 25]"})

    def edited(checked: bool) -> None:
        source = modwright.open(str(work / "model"))
        result = apply(source.model, plan(source.model, drop), check=checked).model
        check = (lambda folder: check_reopens(result, folder)) if checked else None
        modwright.save(result, work / "out", source=source.source, force=True, check=check)

    yield "open, apply, save", 3, lambda: edited(False)
    yield "open, apply, save, all checks", 1, lambda: edited(True)

    ids, token = torch.randint(0, 40000, (1, 256)), torch.randint(0, 40000, (1, 1))
    gpt2 = GPT2LMHeadModel(GPT2Config()).eval()
    experts = {"num_experts": 16, "top_k": 4, "layers": "all", "cluster": "contiguous"}
    models = {
        "10 attentions dropped": (opened.model, "llm_drop", {"n": 10, "target": "attention"}),
        "modegpt 30 %": (opened.model, "modegpt", {"sparsity": 0.3}),
        "emoe, 4 of 16": (opened.model, "emoe", experts),
        "pre_rmsnorm (crms), GPT-2": (gpt2, "pre_rmsnorm", {"form": "crms"}),
    }
    for name, (source, method, options) in models.items():
        model = apply(source, make_method(method, options), data, check=False).model.eval()
        cache = model(ids, use_cache=True).past_key_values

        def step(model: Any = model, cache: Any = cache) -> None:
            model(token, past_key_values=cache, use_cache=True)
            cache.crop(-1)

        yield f"{name}: prefill 1 x 256", 1, partial(model, ids, use_cache=False)
        yield f"{name}: decode after 256", 20, step
    shape = ExpertShape(576, 1536, "silu", True, num_experts=16, top_k=4, mode="dispatch")
    part = ExpertFeedForward(shape, F.silu)
    for tokens, times in ((1, 300), (2048, 2)):
        yield (
            f"dispatched experts, {tokens} tokens",
            times,
            partial(part, torch.randn(1, tokens, 576)),
        )
    yield "RMSNorm, 512 x 768", 200, partial(RMSNorm(768, 1e-5), torch.randn(512, 768))
    yield "CRMSNorm, 512 x 767", 200, partial(CRMSNorm(767, 1e-5), torch.randn(512, 767))


def work(model: str, clock: str, threads: int) -> None:
    """Answers on lines: the names, then the seconds of each that is asked for."""
    import torch

    torch.set_num_threads(threads)
    answers, sys.stdout = sys.stdout, sys.stderr
    with torch.no_grad(), tempfile.TemporaryDirectory() as place:
        found = {name: (times, call) for name, times, call in runs(model, Path(place))}
        print(json.dumps(list(found)), file=answers, flush=True)
        for line in sys.stdin:
            times, call = found[json.loads(line)]
            start = seconds(clock)
            for _ in range(times):
                call()
            print(json.dumps((seconds(clock) - start) / times), file=answers, flush=True)


# Beside each other


class Version:
    """A version of the source, and a process that runs on it."""

    def __init__(self, source: Path, given: argparse.Namespace) -> None:
        self.clock = given.clock
        self.environment = {
            **os.environ, "PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(given.threads),
        }  # fmt: skip
        options = ["--model", given.model, "--clock", given.clock, "--threads", str(given.threads)]
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(source), "--work", *options],
            env=self.environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.names = [*STARTS, *self._answer()]

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a version ended without an answer")
        return json.loads(line)

    def measure(self, name: str) -> float:
        """Seconds of one run."""
        if name in STARTS:
            start = seconds(self.clock)
            command = [sys.executable, "-c", STARTS[name], "--help"]
            subprocess.run(command, env=self.environment, check=True, stdout=subprocess.DEVNULL)
            return seconds(self.clock) - start
        assert self.process.stdin is not None
        print(json.dumps(name), file=self.process.stdin, flush=True)
        return float(self._answer())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="src of the older version")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--only", nargs="*", default=[""], help="what has one of these in its name")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        return work(given.model, given.clock, given.threads)
    from turns import in_turns

    from modwright.core.paired import PairedRatio

    old, new = (Version(path, given) for path in (given.source.resolve(), ROOT / "src"))
    setting = f"{given.model}, {given.threads} threads, {given.clock} time"
    print(f"| {setting} | old, ms | new, ms | old / new |")
    print("|---|--:|--:|---|", flush=True)
    for name in (name for name in new.names if any(words in name for words in given.only)):
        old.measure(name), new.measure(name)
        pairs = in_turns(partial(old.measure, name), partial(new.measure, name), given.pairs)
        before, now = (1e3 * median(side) for side in zip(*pairs))
        ratio = PairedRatio.of([long / short for long, short in pairs])
        print(f"| {name} | {before:,.2f} | {now:,.2f} | {ratio} |", flush=True)
    return None


if __name__ == "__main__":
    main()
