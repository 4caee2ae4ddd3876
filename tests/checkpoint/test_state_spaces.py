"""Checkpoints of Mamba's authors open as models of transformers, or say in one line why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import modwright
from mamba_hosts import random_model
from modwright.checkpoint import save
from modwright.core.errors import CheckpointError
from modwright.edits.verify import check_reopens

FIELDS: dict[str, Any] = {
    "d_model": 24,
    "n_layer": 2,
    "vocab_size": 30,
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}
SSM: dict[str, dict[str, Any]] = {
    "mamba": {"d_state": 8},
    "mamba2": {
        "layer": "Mamba2",
        "d_state": 8,
        "headdim": 8,
        "ngroups": 2,
        "chunk_size": 8,
        "dt_limit": [0.0, float("inf")],
    },
}
NEW = {"attn_layer_idx": [], "attn_cfg": {}, "d_intermediate": 0, "tie_embeddings": True}


def original(
    folder: Path, kind: str = "mamba", safe: bool = False, **changed: Any
) -> tuple[Path, Any]:
    """A directory as their repository writes it, and the model of transformers that it is."""
    model = random_model(kind, vocab_size=32, tie_word_embeddings=True)
    state = {
        name.replace("embeddings", "embedding"): tensor.clone()
        for name, tensor in model.state_dict().items()
    }
    fields = {**FIELDS, "ssm_cfg": SSM[kind], **(NEW if kind == "mamba2" else {}), **changed}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    if safe:
        save_file(state, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin")
    return folder, model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.arange(1, 15).view(2, 7)).logits
    return found


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
@pytest.mark.parametrize("safe", [False, True], ids=["bin", "safetensors"])
def test_it_opens_as_the_model_that_it_is(kind: str, safe: bool, tmp_path: Path) -> None:
    folder, model = original(tmp_path / "theirs", kind, safe)
    opened = modwright.open(folder)
    assert type(opened.model) is type(model) and not opened.unexpected_keys
    assert torch.equal(logits(opened.model), logits(model))
    assert "state-spaces/mamba" in opened.notes[0]
    assert opened.model.config.eos_token_id == 0
    save(opened, tmp_path / "ours")
    check_reopens(opened.model, tmp_path / "ours")
    assert modwright.apply(opened, "fast_scan", check=False).model.config.edits


def test_types_and_heads_are_as_asked(tmp_path: Path) -> None:
    folder, model = original(tmp_path / "theirs")
    assert modwright.open(folder, dtype="bfloat16").model.dtype == torch.bfloat16
    bare = modwright.open(folder, head="base").model
    assert type(bare).__name__ == "MambaModel"
    assert torch.equal(bare.embeddings.weight, model.backbone.embeddings.weight)


def test_a_head_of_its_own_is_read(tmp_path: Path) -> None:
    folder, model = original(tmp_path / "theirs", tie_embeddings=False)
    state = torch.load(folder / "pytorch_model.bin")
    state["lm_head.weight"] = torch.randn(32, 24)
    torch.save(state, folder / "pytorch_model.bin")
    opened = modwright.open(folder).model
    assert torch.equal(opened.lm_head.weight, state["lm_head.weight"])
    assert not torch.equal(logits(opened), logits(model))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"attn_layer_idx": [1]}, r"attn_layer_idx is \[1\], and no Mamba of transformers"),
        ({"d_intermediate": 64}, "d_intermediate is 64, and no Mamba"),
        ({"rms_norm": False}, "rms_norm is False, and no Mamba"),
        ({"ssm_cfg": {"layer": "Mamba9"}}, "ssm_cfg.layer is 'Mamba9', which is not read"),
        ({"ssm_cfg": {"layer": ["Mamba1"]}}, r"ssm_cfg.layer is \['Mamba1'\], which is not read"),
        ({"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}}, "ssm_cfg.D_has_hdim is True"),
        ({"ssm_cfg": {"layer": "Mamba2", "rmsnorm": False}}, "ssm_cfg.rmsnorm is False"),
        ({"ssm_cfg": {"d_ssm": 8}}, "ssm_cfg.d_ssm = 8 is not read here"),
        ({"ssm_cfg": {"d_state": "many"}}, "is no valid config"),
        ({"ssm_cfg": [1]}, "ssm_cfg must be a table"),
        ({"sliding": 3}, "sliding = 3 is not read here"),
        ({"d_model": 32}, "do not fit the config"),
        ({"n_layer": 10**9}, "n_layer is 1,000,000,000, more than the weights can hold"),
        ({"n_layer": 3}, "tensors of MambaForCausalLM are not in the weights"),
    ],
    ids=str,
)
def test_what_transformers_does_not_have_is_refused(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder, _ = original(tmp_path / "theirs", **changed)
    with pytest.raises(CheckpointError, match=said) as refusal:
        modwright.open(folder)
    assert "\n" not in str(refusal.value)


class Worm:
    """What a pickle may hold."""

    def __reduce__(self) -> Any:
        return print, ("run",)


def test_files_that_are_none_are_refused_and_no_code_of_them_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = original(tmp_path / "theirs")
    file = folder / "pytorch_model.bin"
    whole = file.read_bytes()
    for content, said in (
        (whole[: len(whole) // 2], "it is damaged"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1", "git-lfs pointer"),
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            modwright.open(folder)
    torch.save({"a": Worm()}, file)
    with pytest.raises(CheckpointError, match="it would run code when read"):
        modwright.open(folder)
    assert "run" not in capsys.readouterr().out
    torch.save([1, 2], file)
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        modwright.open(folder)
    file.write_bytes(whole)
    torch.save({name: tensor.int() for name, tensor in torch.load(file).items()}, file)
    with pytest.raises(CheckpointError, match="hold no floating-point numbers"):
        modwright.open(folder)
    torch.save({"backbone.norm_f.weight": torch.ones(24)}, file)
    with pytest.raises(CheckpointError, match=r"no table backbone\.embedding\.weight"):
        modwright.open(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        modwright.open(folder)
