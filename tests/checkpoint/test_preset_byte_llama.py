"""The preset of bytes opens with its tokenizer, and keeps it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, pipeline

import modwright
from modwright.checkpoint import save
from modwright.data.tokenizers import byte_tokenizer


def test_it_opens_with_a_token_for_each_byte() -> None:
    opened = modwright.open("preset:byte-llama")
    assert len(opened.anatomy.blocks) == 4
    assert len(opened.tokenizer) == opened.model.config.vocab_size == 260
    assert opened.tokenizer("é")["input_ids"] == list("é".encode())
    again = modwright.open("preset:byte-llama").model
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), opened.model.parameters()))


def test_what_is_saved_of_it_writes_text(tmp_path: Path) -> None:
    opened = modwright.open("preset:byte-llama")
    save(opened.model, tmp_path / "a", source=opened.source)
    save(opened, tmp_path / "b")
    for folder in ("a", "b"):
        read = AutoTokenizer.from_pretrained(tmp_path / folder)
        assert read.get_vocab() == byte_tokenizer().get_vocab() and read.chat_template
    writes = pipeline("text-generation", model=str(tmp_path / "a"), device="cpu")
    found = writes("To be", max_new_tokens=4, do_sample=False)[0]["generated_text"]
    assert found.startswith("To be")


def test_other_presets_have_no_tokenizer() -> None:
    assert modwright.open("preset:tiny-llama").tokenizer is None
