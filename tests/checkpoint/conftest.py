"""Checkpoints on disk, and settings that hold for all tests here."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from .tiny import tiny_llama, write_tokenizer

torch.set_num_threads(1)


@pytest.fixture
def llama_dir(tmp_path: Path) -> Path:
    """A tiny Llama with an eos list, a tokenizer, a chat template and a pooling folder."""
    directory = tmp_path / "tiny-llama"
    model = tiny_llama()
    model.save_pretrained(directory)
    (directory / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, 5, 7], "bos_token_id": 1, "max_new_tokens": 9}, indent=3)
    )
    write_tokenizer(directory)
    (directory / "chat_template.jinja").write_text("{{ messages[0]['content'] }} \n")
    (directory / "README.md").write_text("---\nlicense: mit\n---\nThe source.\n")
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32}')
    (directory / ".gitattributes").write_text("* text\n")
    (directory / "pytorch_model.bin").write_bytes(b"not wanted")
    return directory
