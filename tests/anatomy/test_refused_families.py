"""Architectures that look like a known one are refused with the reason, before any work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from modwright.anatomy import Anatomy
from modwright.anatomy.families import REFUSED, families, family_of
from modwright.core.errors import UnsupportedArchitecture

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}


def refusal_of(config: Any) -> str:
    with pytest.raises(UnsupportedArchitecture) as refusal:
        family_of(config)
    said = str(refusal.value)
    assert "\n" not in said
    assert all(name in said for name in families()), "the known ones are listed"
    return said


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "olmo2", "olmo3", "glm4"])
def test_blocks_with_norms_after_their_sublayers_are_refused(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **SMALL)
    said = refusal_of(config)
    assert f"{model_type!r}" in said and "hidden_size 16" in said
    assert "norms after the sublayers" in said
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    norms = [
        n for n, _ in model.layers[0].named_modules() if n.startswith("post_") and "." not in n
    ]
    assert len(norms) > 1, "the reason given is true"
    with pytest.raises(UnsupportedArchitecture, match="norms after the sublayers"):
        Anatomy.of(model)


@pytest.mark.contract("C3")
@pytest.mark.parametrize(
    "model_type", ["t5", "bart", "whisper", "t5gemma", "vision-encoder-decoder"]
)
def test_encoders_with_decoders_are_refused(model_type: str) -> None:
    given: dict[str, Any] = {}
    if model_type == "vision-encoder-decoder":
        given = {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "gpt2"}}
    config = AutoConfig.for_model(model_type, **given)
    said = refusal_of(config)
    assert "an encoder with a decoder, and there is no part for cross-attention" in said


def test_layers_that_are_one_module_are_refused() -> None:
    assert "one module used many times" in refusal_of(AutoConfig.for_model("albert"))


def test_what_nothing_is_known_of_is_refused_without_a_reason() -> None:
    said = refusal_of(AutoConfig.for_model("rwkv"))
    assert "no family for model type 'rwkv'" in said and "norms after" not in said


HYBRIDS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]},
    "jamba": {},
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "nemotron_h": {},
    "qwen3_next": {},
}


@pytest.mark.parametrize("model_type", HYBRIDS)
def test_layers_of_several_kinds_are_refused(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **HYBRIDS[model_type])
    assert "its layers are of several kinds" in refusal_of(config)
    kinds = getattr(config, "layer_types", None) or config.layers_block_type
    assert len(set(kinds)) > 1, "the reason given is true"


def test_no_family_serves_what_the_reasons_speak_of() -> None:
    assert not set(REFUSED) & set(families())


@pytest.mark.parametrize("name", ["tiny-mistral", "tiny-qwen2", "tiny-gemma", "tiny-vit"])
@pytest.mark.parametrize("flag", ["is_encoder_decoder", "add_cross_attention"])
def test_no_family_opens_cross_attention(tiny: Any, name: str, flag: str) -> None:
    config = tiny.config(name, **{flag: True})
    with pytest.raises(UnsupportedArchitecture, match=f"{flag}=True is not supported"):
        family_of(config)


def test_gemma_that_looks_both_ways_is_refused(tiny: Any) -> None:
    config = tiny.config("tiny-gemma", use_bidirectional_attention=True)
    with pytest.raises(UnsupportedArchitecture, match="use_bidirectional_attention=True"):
        family_of(config)
