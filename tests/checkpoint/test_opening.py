from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM

from modwright import checkpoint
from modwright.core.errors import CheckpointError, InvalidInputError

from .tiny import MAKERS, tiny_bert, tiny_llama


@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.parametrize("shard", ["1GB", "5KB"])
def test_opens_what_transformers_saved(kind: str, shard: str, tmp_path: Path) -> None:
    model = MAKERS[kind]()
    model.save_pretrained(tmp_path / "m", max_shard_size=shard)
    assert (tmp_path / "m" / "model.safetensors.index.json").exists() == (shard == "5KB")
    opened = checkpoint.open(tmp_path / "m")
    assert type(opened.model) is type(model)
    assert not opened.model.training
    assert opened.unexpected_keys == ()
    for name, tensor in model.state_dict().items():
        assert torch.equal(opened.model.state_dict()[name], tensor), name
    for name, tensor in model.named_buffers():
        assert torch.equal(opened.model.get_buffer(name), tensor), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_own_dtype_is_kept_and_others_on_demand(dtype: str, tmp_path: Path) -> None:
    model = tiny_llama().to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    assert checkpoint.open(tmp_path).model.dtype is getattr(torch, dtype)
    for wanted in ("float32", torch.float64):
        opened = checkpoint.open(tmp_path, dtype=wanted)
        for name, tensor in model.named_parameters():
            assert torch.equal(opened.model.get_parameter(name), tensor.to(opened.model.dtype))


def test_config_without_dtype_takes_it_from_the_weights(tmp_path: Path) -> None:
    tiny_llama().bfloat16().save_pretrained(tmp_path)
    edit_config(tmp_path, dtype=None)
    assert checkpoint.open(tmp_path).model.dtype is torch.bfloat16


def test_writing_to_the_weights_leaves_the_file_alone(llama_dir: Path) -> None:
    before = (llama_dir / "model.safetensors").read_bytes()
    model = checkpoint.open(llama_dir).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (llama_dir / "model.safetensors").read_bytes() == before


@pytest.mark.contract("C5")
def test_ties_hold(tmp_path: Path) -> None:
    tiny_llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    model = checkpoint.open(tmp_path).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_generation_settings_and_tokenizer(llama_dir: Path) -> None:
    opened = checkpoint.open(llama_dir)
    assert opened.model.generation_config.eos_token_id == [2, 5, 7]
    assert "tokenizer" not in vars(opened)
    assert opened.tokenizer("abca")["input_ids"] == [7, 2]
    assert opened.tokenizer is opened.tokenizer
    assert opened.tokenizer.chat_template is not None


def test_no_tokenizer_is_none_and_a_broken_one_is_named(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path)
    assert checkpoint.open(tmp_path).tokenizer is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"the tokenizer of .* cannot be loaded"):
        _ = checkpoint.open(tmp_path).tokenizer


def test_repr_is_short(llama_dir: Path) -> None:
    text = repr(checkpoint.open(llama_dir))
    assert text.startswith(f"Checkpoint({str(llama_dir)!r}, LlamaForCausalLM, 27.4k parameters")
    assert text.endswith("float32)")


def test_heads(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(tmp_path)
    assert type(checkpoint.open(tmp_path).model) is BertForMaskedLM
    with pytest.raises(CheckpointError, match=r"pooler\.dense\.weight"):
        checkpoint.open(tmp_path, head="base")
    with pytest.raises(
        InvalidInputError, match=r"unknown head 'mask-lm'.*did you mean 'masked-lm'"
    ):
        checkpoint.open(tmp_path, head="mask-lm")
    with pytest.raises(
        InvalidInputError, match="has no head 'image-classification'; it has: causal-lm"
    ):
        checkpoint.open(tmp_path, head="image-classification")


def test_base_of_a_language_model_lists_what_it_does_not_hold(llama_dir: Path) -> None:
    opened = checkpoint.open(llama_dir, head="base")
    assert type(opened.model).__name__ == "LlamaModel"
    assert opened.unexpected_keys == ("lm_head.weight",)


def test_unknown_class_name_falls_back(llama_dir: Path) -> None:
    edit_config(llama_dir, architectures=["SomebodysLlamaForCausalLM"])
    assert type(checkpoint.open(llama_dir).model).__name__ == "LlamaForCausalLM"


def test_registered_classes_are_followed(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForMaskedLM

    class OddConfig(BertConfig):
        model_type = "test_odd_bert"

    class OddForMaskedLM(BertForMaskedLM):
        config_class = OddConfig

    AutoConfig.register("test_odd_bert", OddConfig)
    AutoModelForMaskedLM.register(OddConfig, OddForMaskedLM)
    config = OddConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    OddForMaskedLM(config).save_pretrained(tmp_path)
    assert type(checkpoint.open(tmp_path).model) is OddForMaskedLM


# Refusals: one line each, with what would be right.


def edit_config(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    config = json.loads(file.read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    file.write_text(json.dumps(config))


def edit_weights(directory: Path, change: Any) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def no_config_but_gguf(directory: Path) -> None:
    (directory / "config.json").unlink()
    (directory / "model.Q8_0.gguf").write_bytes(b"GGUF")


def config_below(directory: Path) -> None:
    (directory / "run-7").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.move(directory / name, directory / "run-7" / name)


def cut_weights(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])


def pointer_only(directory: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"
    (directory / "model.safetensors").write_text(text)


def only_pickle(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").unlink()


def lost_tensor(directory: Path) -> None:
    edit_weights(directory, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))


def odd_shape(directory: Path) -> None:
    edit_weights(directory, lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}))


def quantized(directory: Path) -> None:
    edit_config(directory, quantization_config={"quant_method": "gptq", "bits": 4})


def adapter(directory: Path) -> None:
    (directory / "adapter_config.json").write_text("{}")


CASES = [
    (no_config, "has no config.json"),
    (no_config_but_gguf, r"give one of them: .*model\.Q8_0\.gguf"),
    (config_below, "did you mean '.*run-7'"),
    (lambda d: (d / "config.json").write_text("{"), "is not JSON"),
    (lambda d: (d / "config.json").write_text("{}"), "names no model_type"),
    (lambda d: edit_config(d, model_type="lama"), "'lama' is not known to transformers"),
    (lambda d: edit_config(d, num_attention_heads="many"), "is no valid llama config"),
    (lambda d: edit_config(d, auto_map={"AutoConfig": "x.Y"}, model_type="own"), "trust_remote"),
    (quantized, r"stored quantized \(gptq\); dequantize"),
    (adapter, "merge"),
    (cut_weights, "damaged or cut short"),
    (pointer_only, "git lfs pull"),
    (only_pickle, r"pickles \(pytorch_model\.bin\).*safetensors is wanted"),
    (no_weights, "has no weights"),
    (lost_tensor, r"1 tensors of LlamaForCausalLM.*model\.layers\.1\.mlp\.up_proj\.weight"),
    (odd_shape, r"model\.norm\.weight is \(31,\) in the file and \(32,\) by the config"),
]


@pytest.mark.parametrize(("damage", "message"), CASES)
def test_refusals(damage: Any, message: str, llama_dir: Path) -> None:
    damage(llama_dir)
    with pytest.raises(CheckpointError, match=message) as refusal:
        checkpoint.open(llama_dir)
    assert "\n" not in str(refusal.value)


def test_missing_shard_and_wrong_index(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    good = index.read_text()
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    content = json.loads(good)
    content["weight_map"]["lost"] = shard.name
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"says lost is in {shard.name}; it is not"):
        checkpoint.open(tmp_path)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="is not a shard index"):
        checkpoint.open(tmp_path)
    index.write_text(good)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"names {shard.name}, which is missing"):
        checkpoint.open(tmp_path)


def test_surplus_tensors_are_listed(llama_dir: Path) -> None:
    edit_weights(llama_dir, lambda tensors: tensors.update(vision=torch.ones(2)))
    assert checkpoint.open(llama_dir).unexpected_keys == ("vision",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int8"}, "unknown dtype 'int8'; valid values: float32, bfloat16, float16"),
        ({"dtype": "bfloat"}, "did you mean 'bfloat16'"),
        ({"dtype": torch.int64}, "unknown dtype 'int64'"),
        ({"device": "gpu"}, "device 'gpu' cannot be used; valid values: cpu"),
        ({"device": "meta"}, "holds no weights"),
    ],
)
def test_invalid_arguments(arguments: dict[str, Any], message: str, llama_dir: Path) -> None:
    with pytest.raises(InvalidInputError, match=message):
        checkpoint.open(llama_dir, **arguments)


@pytest.mark.contract("G3")
def test_too_little_memory_is_said_before_loading(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modwright.checkpoint.memory.available_bytes", lambda: 1000)
    with pytest.raises(
        InvalidInputError, match=r"opening tiny-llama needs about .* kB .*1\.0 kB are avail"
    ):
        checkpoint.open(llama_dir)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_check_finite(dtype: torch.dtype, value: float, llama_dir: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.2.self_attn.k_proj.weight"][3, 4] = value

    model = checkpoint.open(llama_dir, dtype=dtype).model
    checkpoint.check_finite(model)
    edit_weights(llama_dir, spoil)
    model = checkpoint.open(llama_dir, dtype=dtype).model
    with pytest.raises(
        InvalidInputError, match=r"'model\.layers\.2\.self_attn\.k_proj\.weight'.*1 of 512"
    ):
        checkpoint.check_finite(model)


def test_own_code_needs_trust_and_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    directory = tmp_path / "own"
    tiny_llama().save_pretrained(directory)
    (directory / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    edit_config(
        directory,
        model_type="own_llama",
        architectures=["OwnForCausalLM"],
        auto_map={
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    )
    with pytest.raises(CheckpointError, match="pass trust_remote_code=True"):
        checkpoint.open(directory)
    for turn in range(2):
        opened = checkpoint.open(directory, trust_remote_code=True)
        assert type(opened.model).__name__ == "OwnForCausalLM"
        directory = opened.save(tmp_path / f"turn-{turn}")
        assert (directory / "modeling_own.py").exists()
    reloaded = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    assert torch.equal(reloaded.lm_head.weight, opened.model.lm_head.weight)


def test_a_preset_in_half_precision_computes_what_a_saved_one_does(tmp_path: Path) -> None:
    """Rotary frequencies are no weights: no checkpoint has them, and they keep their type."""
    opened = checkpoint.open("preset:tiny-llama", dtype="bfloat16")
    opened.save(tmp_path / "out")
    again = checkpoint.open(tmp_path / "out")
    assert again.model.dtype is torch.bfloat16
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, opened.model(ids).logits)
