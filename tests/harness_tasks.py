"""Task files for the evaluation harness that read only what lies beside them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

__all__ = ["write_task", "write_tasks"]


def _choices(count: int) -> list[dict[str, Any]]:
    """Questions of words that the tokenizer of tests knows; the answers are drawn."""
    draw = random.Random(0)
    return [
        {
            "question": " ".join(f"w{draw.randrange(6, 128)}" for _ in range(4)),
            "choices": [f"w{draw.randrange(6, 128)}", f"w{draw.randrange(6, 128)} w9", "w7"],
            "answer": draw.randrange(3),
        }
        for _ in range(count)
    ]


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], **settings: Any) -> Path:
    """One task file with its data beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.json"
    data.write_text(json.dumps(rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "metadata": {"version": 1.5},
        **settings,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(task))
    return file


CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}


def write_tasks(folder: Path, count: int = 12) -> Path:
    """``words`` (multiple choice), ``text`` (word perplexity), ``writing`` (generation)."""
    rows = _choices(count)
    write_task(folder, "words", rows, **CHOICE)
    text = " ".join(row["question"] for row in rows)
    write_task(
        folder,
        "text",
        [{"text": text}],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    )
    write_task(
        folder,
        "writing",
        rows[:3],
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="{{choices[0]}}",
        generation_kwargs={"until": ["w9"], "max_gen_toks": 3, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )
    return folder
