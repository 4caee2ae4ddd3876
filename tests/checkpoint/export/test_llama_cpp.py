"""llama.cpp itself reads the files: the same tokens, the same log-probabilities."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import modwright

from .conftest import TEXTS, byte_level_tokenizer, sentencepiece_tokenizer
from .test_gguf_export import MODELS, model_of

WORKER = Path(__file__).with_name("llama_cpp_worker.py")
TOKENIZERS = {"llama, tied, odd heads": sentencepiece_tokenizer}


def in_llama_cpp(jobs: list[dict[str, Any]]) -> list[Any]:
    done = subprocess.run(
        [sys.executable, str(WORKER), json.dumps(jobs)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def gguf_of(name: str, place: Path, **options: Any) -> tuple[Any, Any, str]:
    """A model with a tokenizer, as a checkpoint opens them, and the GGUF file made of it."""
    source = place / "source"
    source.mkdir(parents=True)
    tokenizer = TOKENIZERS.get(name, byte_level_tokenizer)(source)
    model_of(name, vocab_size=len(tokenizer)).save_pretrained(source)
    opened = modwright.open(source)
    done = modwright.export(opened, place / "out", "gguf", **options)
    (file,) = done.output.glob("*.gguf")
    return opened.model, opened.tokenizer, str(file)


@torch.no_grad()
def log_probabilities(model: Any, ids: list[int]) -> Any:
    return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def same(likely: dict[str, float], live: Any, off: float = 1e-4) -> bool:
    """llama.cpp finds the same tokens most likely, and as likely."""
    best = live.topk(len(likely)).indices.tolist()
    close = (abs(value - float(live[int(token)])) < off for token, value in likely.items())
    return len(likely) > 1 and all(close) and (off > 1e-3 or set(map(int, likely)) == set(best))


def test_every_family_predicts_the_same(tmp_path: Path) -> None:
    made = {name: gguf_of(name, tmp_path / name) for name in MODELS}
    prompt = list(range(5, 25))
    jobs = [
        {"file": file, "prompt": prompt, "next": tokenizer.convert_tokens_to_ids("a")}
        for _, tokenizer, file in made.values()
    ]
    for (name, (model, _, _)), answer in zip(made.items(), in_llama_cpp(jobs)):
        assert same(answer["likely"], log_probabilities(model, prompt)), name


def test_eight_bit_blocks_are_read_as_they_were_written(tmp_path: Path) -> None:
    _, tokenizer, file = gguf_of("qwen2", tmp_path, type="q8_0")
    read, prompt = modwright.open(file).model, list(range(5, 25))
    following = tokenizer.convert_tokens_to_ids("a")
    (answer,) = in_llama_cpp([{"file": file, "prompt": prompt, "next": following}])
    # llama.cpp also rounds what it multiplies the blocks with to eight bits.
    assert same(answer["likely"], log_probabilities(read, prompt), off=0.05)


@pytest.mark.parametrize("name", ["qwen2", "llama, tied, odd heads"])
def test_text_becomes_the_same_tokens(name: str, tmp_path: Path) -> None:
    """Told by what the prompt leads to, which is another thing for other tokens."""
    model, tokenizer, file = gguf_of(name, tmp_path)
    following = tokenizer.convert_tokens_to_ids("a")
    jobs = [{"file": file, "prompt": text, "next": following} for text in TEXTS]
    for text, answer in zip(TEXTS, in_llama_cpp(jobs)):
        ids = tokenizer.encode(text)
        assert answer["prompt_tokens"] == len(ids), text
        assert same(answer["likely"], log_probabilities(model, ids)), text
