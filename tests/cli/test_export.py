"""``modwright export``: files, sizes and the comparison; and the table of where a model runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[[str], Any]


@pytest.mark.contract("E6")
def test_a_file_its_size_and_how_it_compared(command: Command, place: Path) -> None:
    done = command("export preset:tiny-llama -o out --to gguf --set type=f16")
    assert done.code == 0, done.err
    for words in ("tiny-llama-F16.gguf", "weights of the model", "394.9 kB"):
        assert words in done.out
    assert "checked: opened with transformers' GGUF reader: largest difference" in done.err
    assert "written: out; README.md there says how it is opened" in done.err
    assert {path.name for path in (place / "out").iterdir()} == {"README.md", "tiny-llama-F16.gguf"}


def test_as_json(command: Command, place: Path) -> None:
    done = command("export preset:tiny-llama -o out --to gguf --json")
    assert done.code == 0, done.err
    info = json.loads(done.out)
    assert info["output"] == "out" and info["target"] == "gguf" and info["plain"] is True
    assert info["compared"]["largest"] == 0
    assert info["bytes"] == info["files"]["tiny-llama-F32.gguf"]
    assert info["checkpoint_bytes"] == 394944


def test_without_an_output_it_says_where_the_model_runs(command: Command, place: Path) -> None:
    done = command("export preset:tiny-gpt2")
    assert done.code == 0, done.err
    for words in ("where tiny-gpt2 runs", "llama.cpp", "not tested", "after export"):
        assert words in done.out
    assert list(place.iterdir()) == []
    rows = json.loads(command("export preset:tiny-gpt2 --json").out)
    assert rows[0]["runtime"] == "transformers"
    assert {row["answer"] for row in rows} <= {"yes", "after export", "no", "not tested"}


@pytest.mark.parametrize(
    ("line", "info"),
    [
        ("export", ("MODEL", "usage: modwright export MODEL")),
        ("export preset:tiny-gpt2 -o out --to ggfu", ("'ggfu'", "did you mean 'gguf'?")),
        ("export preset:tiny-gpt2 -o out --to gguf", ("'gpt2'", "llama, mistral, qwen2, qwen3")),
        ("export preset:tiny-gpt2 -o out --to gguf --set q8_0", ("KEY=VALUE", "type=q8_0")),
        ("export preset:tiny-gpt2 -o out --to gguf --set type=q3", ("type", "'q8_0'", "'q3'")),
        ("export preset:tiny-lama -o out", ("'tiny-lama'", "did you mean 'tiny-llama'?")),
        ("export preset:tiny-llama -o . --to gguf --force", ("working directory",)),
    ],
)
def test_refusals(line: str, info: tuple[str, ...], command: Command, place: Path) -> None:
    done = command(line)
    assert done.code == 2 and done.out == ""
    (said,) = done.err.splitlines()
    assert said.startswith("modwright: ")
    assert all(part in said for part in info), said
    assert list(place.iterdir()) == []
