"""GGUF files of plain models: read back equal, quantized as asked, refused with the reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers

import modwright
from modwright.checkpoint.export import to_gguf
from modwright.core.errors import InvalidInputError, VerificationError

from .conftest import TEXTS, byte_level_tokenizer, sentencepiece_tokenizer, write_settings

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied, odd heads": ("Llama", {"head_dim": 24, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 128}),
}


def model_of(name: str, **changed: Any) -> Any:
    family, fields = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **fields, **changed})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def the_file(done: Any) -> Path:
    (file,) = done.output.glob("*.gguf")
    return Path(file)


def kinds(file: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}


def metadata(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


@pytest.mark.parametrize("name", MODELS)
def test_float32_comes_back_bit_by_bit(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    done = modwright.export(model, tmp_path / "out", "gguf")
    assert done.compared.largest == 0
    again = modwright.open(the_file(done)).model
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    assert the_file(done).stat().st_size < 1.05 * done.checkpoint_bytes + 10_000


@pytest.mark.parametrize(
    ("asked", "share", "off"), [("f16", 0.52, 0.01), ("bf16", 0.52, 0.06), ("q8_0", 0.29, 0.15)]
)
def test_smaller_types_round_and_shrink(
    asked: str, share: float, off: float, tmp_path: Path
) -> None:
    model = model_of("qwen2")
    done = modwright.export(model, tmp_path / "out", "gguf", type=asked)
    # The file is the rounded model exactly; rounding moves outputs as far as the type is coarse.
    assert done.compared.largest <= 1e-4 * done.compared.spread
    assert 0 < done.compared.rounded < off * done.compared.spread
    assert "rounding the weights moved the outputs" in str(done.compared)
    assert done.bytes < share * done.checkpoint_bytes
    stored = kinds(the_file(done))
    assert stored["blk.0.attn_q.weight"] == asked.upper()
    assert stored["blk.0.attn_q.bias"] == stored["output_norm.weight"] == "F32"


def test_values_are_those_of_the_type_and_no_further_off(tmp_path: Path) -> None:
    """Rounded once: what is read back is the model's weight in half precision."""
    model = model_of("llama")
    done = modwright.export(model, tmp_path / "out", "gguf", type="f16")
    read = modwright.open(the_file(done)).model.state_dict()
    for key, tensor in model.state_dict().items():
        wanted = tensor.half().float() if tensor.ndim > 1 else tensor
        assert torch.equal(read[key], wanted), key


def test_auto_keeps_the_type_of_the_model(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        model = transformers.Qwen2ForCausalLM._from_config(
            transformers.Qwen2Config(**SIZES), dtype=torch.bfloat16
        ).eval()
    done = modwright.export(model, tmp_path / "out", "gguf")
    assert the_file(done).name == "qwen2-BF16.gguf"
    assert done.compared.largest == 0
    with pytest.raises(InvalidInputError, match="no GGUF type is as wide as float64"):
        modwright.export(model_of("qwen2").double(), tmp_path / "wide", "gguf")


def test_rows_that_fill_no_block_are_stored_as_float16(tmp_path: Path) -> None:
    model = model_of("llama", intermediate_size=80)
    done = modwright.export(model, tmp_path / "out", "gguf", type="q8_0")
    stored = kinds(the_file(done))
    assert stored["blk.0.ffn_down.weight"] == "F16"
    assert stored["blk.0.ffn_up.weight"] == "Q8_0"


@pytest.mark.contract("E4")
def test_heads_left_unpermuted_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_gguf, "_PERMUTED", ())
    with pytest.raises(VerificationError, match=r"holds other values at blk\.0\.attn_q\.weight"):
        modwright.export(model_of("llama"), tmp_path / "out", "gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_is_read_as_another_is_noticed_also_under_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights alone do not tell: rotary angles come from a number of the header."""
    add_config = to_gguf.add_config

    def turned(writer: Any, config: Any) -> None:
        add_config(writer, config)
        writer.add_rope_freq_base(500.0)

    monkeypatch.setattr(to_gguf, "add_config", turned)
    monkeypatch.setattr(to_gguf, "_lost", lambda config: None)
    with pytest.raises(VerificationError, match="computes something else"):
        modwright.export(model_of("llama"), tmp_path / "out", "gguf", type="q8_0")
    assert list(tmp_path.iterdir()) == []


# What the format does not hold


@pytest.mark.contract("E3")
def test_fault_B15_layers_that_differ_are_refused_with_the_reason(
    edited_model: Callable[[str], Any], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="cannot export to gguf: layers differ") as refused:
        modwright.export(edited_model("tiny-llama"), tmp_path / "out", "gguf")
    assert "no attention in block 0" in str(refused.value)
    assert '"deci" takes heads and widths per layer, and it is not written yet' in str(
        refused.value
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "changed", "note"),
    [
        ("mistral", {"sliding_window": 16}, "sliding_window 16"),
        ("qwen3", {"head_dim": 16}, "head_dim 16 would be read as 128"),
        ("llama", {"attention_bias": True}, "attention_bias True"),
        ("llama", {"mlp_bias": True}, "mlp_bias True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rope_parameters",
        ),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
            "sliding_window 16",
        ),
    ],
)
def test_fault_B15_what_is_not_written_yet_is_refused_as_that(
    name: str, changed: dict[str, Any], note: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="of the file as it is written so far") as refused:
        modwright.export(model_of(name, **changed), tmp_path / "out", "gguf")
    assert note in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_other_families_and_heads_are_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInputError, match=r"'gpt2' is not written .* llama, mistral, qwen2, qwen3"
    ):
        modwright.export(tiny("tiny-gpt2"), tmp_path / "out", "gguf")
    bare = transformers.LlamaModel(model_of("llama").config)
    with pytest.raises(InvalidInputError, match="LlamaModel is no causal language model"):
        modwright.export(bare, tmp_path / "out", "gguf")


# Tokenizers


def checkpoint(place: Path, make: Callable[[Path], Any], rows: int = 0) -> tuple[Any, Any]:
    """A Llama with a tokenizer of some kind, and the tokenizer."""
    place.mkdir()
    tokenizer = make(place)
    model = model_of("llama", vocab_size=rows or len(tokenizer))
    model.save_pretrained(place)
    write_settings(place, eos_token_id=[2, 5])
    return modwright.open(place), tokenizer


def read_back(done: Any) -> Any:
    file = the_file(done)
    return transformers.AutoTokenizer.from_pretrained(done.output, gguf_file=file.name)


@pytest.mark.parametrize("make", [byte_level_tokenizer, sentencepiece_tokenizer])
def test_tokens_come_back(make: Callable[[Path], Any], tmp_path: Path) -> None:
    opened, tokenizer = checkpoint(tmp_path / "source", make, rows=400)
    done = modwright.export(opened, tmp_path / "out", "gguf")
    again = read_back(done)
    texts = [*TEXTS, "the hall", f"{tokenizer.eos_token}the"]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert again.encode(text, add_special_tokens=False) == ids, text
        assert again.decode(ids) == tokenizer.decode(ids)
    for role in ("bos_token_id", "eos_token_id", "unk_token_id"):
        assert getattr(again, role) == getattr(tokenizer, role)
    assert again.chat_template == tokenizer.chat_template
    assert f"{len(tokenizer)} tokens keep their numbers" in str(done.compared)
    stored = metadata(the_file(done))
    assert len(stored["tokenizer.ggml.tokens"]) == 400
    assert stored["tokenizer.ggml.tokens"][399] == "[PAD399]"
    adds = tokenizer.encode("a")[0] == tokenizer.bos_token_id
    assert stored["tokenizer.ggml.add_bos_token"] is adds
    assert (done.output / "generation_config.json").exists()
    assert not (done.output / "tokenizer.json").exists()


def test_the_way_text_is_split_is_named(tmp_path: Path) -> None:
    from tokenizers import Regex, pre_tokenizers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    splits = {
        "gpt-2": None,
        "smollm": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        ),
        "qwen2": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"), level]
        ),
    }
    for name, split in splits.items():
        opened, _ = checkpoint(tmp_path / name, partial(byte_level_tokenizer, split=split))
        done = modwright.export(opened, tmp_path / f"{name}-out", "gguf")
        assert metadata(the_file(done))["tokenizer.ggml.pre"] == name
    odd = pre_tokenizers.Sequence([pre_tokenizers.Split("x", "isolated"), level])
    opened, _ = checkpoint(tmp_path / "odd", partial(byte_level_tokenizer, split=odd))
    with pytest.raises(
        InvalidInputError, match=r"splits text in a way that llama\.cpp has no name for"
    ):
        modwright.export(opened, tmp_path / "odd-out", "gguf")
    assert not (tmp_path / "odd-out").exists()


def test_kinds_of_tokens(tmp_path: Path) -> None:
    opened, _ = checkpoint(tmp_path / "source", byte_level_tokenizer)
    done = modwright.export(opened, tmp_path / "out", "gguf")
    stored = metadata(the_file(done))
    kind = dict(zip(stored["tokenizer.ggml.tokens"], stored["tokenizer.ggml.token_type"]))
    assert kind["<|im_end|>"] == gguf.TokenType.CONTROL
    assert kind["<think>"] == gguf.TokenType.USER_DEFINED
    assert kind["a"] == gguf.TokenType.NORMAL


def test_tokenizers_without_a_place_are_refused(wordy_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="of the kind WordLevel"):
        modwright.export(modwright.open(wordy_model), tmp_path / "out", "gguf")
    opened, _ = checkpoint(tmp_path / "source", byte_level_tokenizer)
    short = dataclasses.replace(opened, model=model_of("llama"))
    with pytest.raises(InvalidInputError, match=r"its tokenizer has .* tokens and the model 96"):
        modwright.export(short, tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    done = modwright.export(model_of("llama"), tmp_path / "out", "gguf")
    stored = metadata(the_file(done))
    assert stored["tokenizer.ggml.model"] == "no_vocab"
    assert stored["llama.vocab_size"] == 96
    assert "AutoTokenizer" not in (done.output / "README.md").read_text()


def test_from_gguf_to_gguf_the_tokenizer_is_copied(tmp_path: Path) -> None:
    opened, _ = checkpoint(tmp_path / "source", byte_level_tokenizer)
    first = modwright.export(opened, tmp_path / "first", "gguf", type="f16")
    second = modwright.export(modwright.open(the_file(first)), tmp_path / "second", "gguf")
    one, two = metadata(the_file(first)), metadata(the_file(second))
    names = [name for name in one if name.startswith("tokenizer.")]
    assert names and {name: two[name] for name in names} == {name: one[name] for name in names}
