from __future__ import annotations

import json
from pathlib import Path

import pytest

from modwright.checkpoint import auxiliary_files, copy_auxiliary_files
from modwright.core.errors import CheckpointError


def make(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(f"content of {name}".encode())


def test_all_but_weights_config_and_hidden_files(tmp_path: Path) -> None:
    wanted = [
        "1_Pooling/config.json",
        "README.md",
        "added/deep/notes.txt",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
    ]
    unwanted = [
        ".gitattributes",
        ".cache/x.json",
        "__pycache__/modeling.pyc",
        "config.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.Q4_1.gguf",
        "optimizer.pt",
        "onnx/model.onnx",
        "tf_model.h5",
        "flax_model.msgpack",
    ]
    make(tmp_path, *wanted, *unwanted)
    assert auxiliary_files(tmp_path) == tuple(wanted)


def test_checkpoints_below_stay_behind_unless_they_are_modules(tmp_path: Path) -> None:
    make(tmp_path, "config.json", "modules.json", "sentence_bert_config.json")
    make(tmp_path, "checkpoint-500/config.json", "checkpoint-500/model.safetensors")
    make(tmp_path, "checkpoint-500/tokenizer.json", "2_Dense/config.json")
    make(tmp_path, "2_Dense/model.safetensors")
    (tmp_path / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "2_Dense"}]))
    assert auxiliary_files(tmp_path) == (
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
    )


def test_bytes_are_equal_and_links_are_followed(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    make(source, "a.json", "sub/b.txt")
    make(tmp_path, "blob")
    (source / "linked.json").symlink_to(tmp_path / "blob")
    out.mkdir()
    names = auxiliary_files(source)
    assert (
        copy_auxiliary_files(source, names, out) == names == ("a.json", "linked.json", "sub/b.txt")
    )
    for name in names:
        assert not (out / name).is_symlink()
        assert (out / name).read_bytes() == (source / name).read_bytes()


def test_the_readme_steps_aside_only_for_another(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    make(source, "README.md", "notes.txt")
    out.mkdir()
    assert copy_auxiliary_files(source, ["README.md"], out) == ("README.md",)
    done = copy_auxiliary_files(
        source, ["README.md", "notes.txt"], out, written=["README.md", "notes.txt"]
    )
    assert done == ("SOURCE_README.md",)
    make(source, "SOURCE_README.md")
    names = ["README.md", "SOURCE_README.md"]
    assert copy_auxiliary_files(source, names, out, written=["README.md"]) == (
        "SOURCE_README_2.md",
        "SOURCE_README.md",
    )


def test_a_vanished_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot carry 'gone\.json' over"):
        copy_auxiliary_files(tmp_path, ["gone.json"], tmp_path)
