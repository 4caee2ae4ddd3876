"""GGUF files of models with states: Mamba opens, the others are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modwright
from checkpoint.tiny import TOKENS, write_gguf
from mamba_hosts import random_model
from modwright.core.errors import CheckpointError

NAMES = {
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.conv1d.weight": "ssm_conv1d.weight",
    "mixer.conv1d.bias": "ssm_conv1d.bias",
    "mixer.in_proj.weight": "ssm_in.weight",
    "mixer.x_proj.weight": "ssm_x.weight",
    "mixer.dt_proj.weight": "ssm_dt.weight",
    "mixer.dt_proj.bias": "ssm_dt.bias",
    "mixer.out_proj.weight": "ssm_out.weight",
    "norm.weight": "attn_norm.weight",
}
UNKNOWN = (
    "mamba2",
    "falcon-h1",
    "jamba",
    "plamo2",
    "bamba",
    "zamba2",
    "granitehybrid",
    "nemotron_h",
    "qwen3next",
)


def written(folder: Path, architecture: str = "mamba", **changed: Any) -> tuple[Path, Any]:
    """A file as llama.cpp's converter writes it, and the model that it is."""
    model = random_model("mamba", vocab_size=len(TOKENS), tie_word_embeddings=True)
    values: dict[str, np.ndarray] = {}
    for index, layer in enumerate(model.backbone.layers):
        for name, tensor in layer.named_parameters():
            value = tensor.detach()
            if name.endswith("A_log"):
                value = -value.exp()
            if name.endswith("conv1d.weight"):
                value = value.squeeze(1)
            values[f"blk.{index}.{NAMES[name]}"] = value.numpy()
    values["token_embd.weight"] = model.backbone.embeddings.weight.detach().numpy()
    values["output_norm.weight"] = model.backbone.norm_f.weight.detach().numpy()
    settings = {
        "context_length": 2**20,
        "embedding_length": 24,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "block_count": 2,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 48,
        "ssm.state_size": 8,
        "ssm.time_step_rank": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "ssm.dt_b_c_rms": False,
        **changed,
    }
    keys = {f"{architecture}.{key}": value for key, value in settings.items()}
    shapes = {name: value.shape for name, value in values.items()}
    file = write_gguf(folder / "tiny.gguf", architecture, keys, shapes, values=values)
    return file, model


def test_a_file_of_mamba_opens_as_the_model_that_it_is(tmp_path: Path) -> None:
    file, model = written(tmp_path)
    opened = modwright.open(file)
    ids = torch.arange(1, 7).view(1, 6) % len(TOKENS)
    with torch.no_grad():
        found, wanted = opened.model(ids).logits, model(ids).logits
    assert type(opened.model).__name__ == "MambaForCausalLM" and not opened.unexpected_keys
    assert torch.allclose(found, wanted, atol=1e-5)
    assert len(opened.anatomy.blocks) == 2
    assert modwright.apply(opened, "fast_scan").verification is not None


def test_the_norms_of_falcon_mamba_are_refused_by_name(tmp_path: Path) -> None:
    file, _ = written(tmp_path, **{"ssm.dt_b_c_rms": True})
    with pytest.raises(CheckpointError, match=r"mamba\.ssm\.dt_b_c_rms = True is not read here"):
        modwright.open(file)


@pytest.mark.parametrize("architecture", UNKNOWN)
def test_architectures_that_transformers_does_not_read_are_refused_by_name(
    architecture: str, tmp_path: Path
) -> None:
    file, _ = written(tmp_path, architecture)
    with pytest.raises(CheckpointError, match=architecture) as refusal:
        modwright.open(file)
    assert "\n" not in str(refusal.value)
