"""How much faster an edited model reads and writes than the dense one, side by side.

The two models of a row run in turns in one process; a ratio is the median over neighbouring runs.
What is cut is chosen from a small calibration: speed depends on sizes, not on which parts go.

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
from modwright.cost import Comparison, compare_speed, human, kv_cache_bytes
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
    Setting("llm_drop", {"n": 6, "target": "attention"}, batch=8, prompt=256, new_tokens=256),
    Setting("modegpt", {"sparsity": 0.3}, batch=8, prompt=128, new_tokens=128),
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


def row(model: Any, edited: Any, setting: Setting, found: Comparison) -> list[str]:
    """The cells of a setting."""
    anatomies = [modwright.Anatomy.of(one) for one in (model, edited)]
    length = setting.prompt + setting.new_tokens
    cache = [kv_cache_bytes(anatomy, length, setting.batch) for anatomy in anatomies]
    cells = [make_method(setting.method, setting.options).title()]
    cells += [f"{setting.batch} x ({setting.prompt} + {setting.new_tokens})"]
    cells += [" -> ".join(human(anatomy.num_parameters) for anatomy in anatomies)]
    cells += [" -> ".join(human(size, "B") for size in cache)]
    for name, (_, before, _), (_, after, _) in zip(
        found.ratios, found.first.phases(), found.second.phases()
    ):
        cells += [f"{before:,.0f} -> {after:,.0f}", f"{found.ratios[name]:.2f}"]
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
    columns += ["prefill tokens/s", "ratio", "decode tokens/s", "ratio"]
    table = Table(*columns, title=f"{given.model}: dense -> edited")
    for setting in SETTINGS:
        edited, found = measure(opened.model, data, setting, given.repeats)
        table.add_row(*row(opened.model, edited, setting, found))
    table.caption = (
        f"{found.first.dtype}, {found.first.device}, {given.threads} threads, torch "
        f"{torch.__version__}; {found.first.repeats} repeats after one to warm up; ratio above 1: "
        f"the edited model is faster; chosen from {data.describe()}"
    )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
