"""How much faster an edited model reads and writes than the dense one, side by side.

The two models of a row run in turns in one process; a ratio is the median over neighboring runs.
What is cut is chosen from a small calibration: speed depends on sizes, not on which parts go.

Beside a ratio stands the bound that the removed work sets: for the prefill the products
(the head computes one position, as generate() does), for decoding the bytes that a step must read,
weights and key/value cache, or its multiply-accumulates, whichever is the smaller gain.

    python benchmarks/decode_speed.py --repeats 3 --threads 2
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import modwright
from modwright.calibration import TokenWindows, token_windows
from modwright.cost import Comparison, compare_speed, count, format_number, kv_cache_bytes
from modwright.surgery import apply, make_method


@dataclass(frozen=True)
class Setting:
    """One row: a method with its options, and what is timed."""

    method: str
    options: dict[str, Any] = field(hash=False)
    batch: int
    prompt: int
    new_tokens: int


SETTINGS = (
    Setting("llm_drop", {"n": 6, "target": "attention"}, batch=8, prompt=256, new_tokens=128),
    Setting("llm_drop", {"n": 10, "target": "attention"}, batch=8, prompt=256, new_tokens=128),
    Setting("llm_drop", {"n": 10, "target": "attention"}, batch=1, prompt=256, new_tokens=64),
    Setting("modegpt", {"sparsity": 0.3}, batch=8, prompt=128, new_tokens=128),
    Setting("modegpt", {"sparsity": 0.3}, batch=1, prompt=256, new_tokens=64),
)


def measure(
    model: Any, data: TokenWindows, setting: Setting, repeats: int
) -> tuple[Any, Comparison]:
    """The edited model, and its speed beside that of the given one."""
    edited = apply(model, make_method(setting.method, setting.options), data).model
    found = compare_speed(
        model,
        edited,
        batch=setting.batch,
        prompt=setting.prompt,
        new_tokens=setting.new_tokens,
        repeats=repeats,
    )
    return edited, found


def bounds(model: Any, edited: Any, setting: Setting) -> dict[str, float]:
    """How much faster each phase can be when nothing but the removed work counts."""
    prefill, bytes_read, macs = [], [], []
    for one in (model, edited):
        middle = setting.prompt + setting.new_tokens // 2
        counted = count(one, length=setting.prompt, batch=setting.batch, context=middle)
        head = counted.by_kind()["head"].prefill_macs
        prefill.append(counted.prefill_macs - head + head // setting.prompt)
        cache = kv_cache_bytes(modwright.Anatomy.of(one), middle, setting.batch)
        bytes_read.append(counted.stored_bytes + cache)
        macs.append(counted.decode_macs)
    decode = min(bytes_read[0] / bytes_read[1], macs[0] / macs[1])
    return {"prefill": prefill[0] / prefill[1], "decode": decode}


def row(model: Any, edited: Any, setting: Setting, found: Comparison) -> list[str]:
    """The cells of a setting."""
    anatomies = [modwright.Anatomy.of(one) for one in (model, edited)]
    length = setting.prompt + setting.new_tokens
    cache = [kv_cache_bytes(anatomy, length, setting.batch) for anatomy in anatomies]
    cells = [make_method(setting.method, setting.options).title()]
    cells += [f"{setting.batch} x ({setting.prompt} + {setting.new_tokens})"]
    cells += [" -> ".join(format_number(anatomy.num_parameters) for anatomy in anatomies)]
    cells += [" -> ".join(format_number(size, "B") for size in cache)]
    bound = bounds(model, edited, setting)
    for name, (_, before, _), (_, after, _) in zip(
        found.ratios, found.first.phases(), found.second.phases()
    ):
        cells += [f"{before:,.0f} -> {after:,.0f}"]
        cells += [f"{found.ratios[name]:.2f} of {bound[name]:.2f}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="lee-background")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    opened = modwright.open(given.model)
    data = token_windows(opened.tokenizer, given.data, windows=16, length=256, batch_size=8)
    columns = ["edit", "batch x (prompt + new)", "parameters", "cache"]
    columns += ["prefill tokens/s", "ratio of bound", "decode tokens/s", "ratio of bound"]
    table = Table(*columns, title=f"{given.model}: dense -> edited")
    for setting in SETTINGS:
        edited, found = measure(opened.model, data, setting, given.repeats)
        table.add_row(*row(opened.model, edited, setting, found))
    table.caption = (
        f"{found.first.dtype}, {found.first.device}, {given.threads} threads, torch "
        f"{torch.__version__}; {found.first.repeats} repeats after one to warm up; ratio above 1: "
        f"the edited model is faster; chosen from {data.describe()}"
    )
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
