from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, MixtralConfig, MixtralForCausalLM

from modwright import checkpoint
from modwright.checkpoint import save, saving
from modwright.checkpoint.saving import verify_files
from modwright.core.errors import CheckpointError, InvalidInputError, VerificationError

from .tiny import MAKERS, tiny_gpt2, tiny_llama


def tiny_mixtral() -> MixtralForCausalLM:
    torch.manual_seed(5)
    config = MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=3,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize("shard", ["5GB", "5KB"])
@pytest.mark.parametrize("kind", [*sorted(MAKERS), "mixtral"])
def test_round_trip(kind: str, shard: str, tmp_path: Path) -> None:
    model = {**MAKERS, "mixtral": tiny_mixtral}[kind]()
    out = save(model, tmp_path / "out", max_shard_size=shard)
    again = checkpoint.open(out)
    assert type(again.model) is type(model)
    assert again.model.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    plain = AutoModel.from_pretrained(out)
    assert plain.dtype is model.dtype
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out"]


@pytest.mark.contract("J1")
def test_open_save_open_keeps_every_file_twice(llama_dir: Path, tmp_path: Path) -> None:
    before = tree(llama_dir)
    first = checkpoint.open(llama_dir).save(tmp_path / "first")
    second = checkpoint.open(first).save(tmp_path / "second", max_shard_size="10KB")
    carried = set(before) - {
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        ".gitattributes",
    }
    assert {"1_Pooling/config.json", "chat_template.jinja", "tokenizer.json"} < carried
    for out in (first, second):
        after = tree(out)
        for name in carried:
            assert after[name] == before[name], name
        assert set(after) - carried <= {"config.json", *(n for n in after if "safetensors" in n)}
        assert checkpoint.open(out).model.generation_config.eos_token_id == [2, 5, 7]


@pytest.mark.contract("C1")
def test_ties_and_bytes(tmp_path: Path) -> None:
    tiny_llama(tie_word_embeddings=True).save_pretrained(tmp_path / "in")
    opened = checkpoint.open(tmp_path / "in")
    out = opened.save(tmp_path / "out")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "in", out)]
    assert sizes[1] <= sizes[0]
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    again = checkpoint.open(out).model
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_no_machine_path_and_ordinary_modes(llama_dir: Path, tmp_path: Path) -> None:
    opened = checkpoint.open(llama_dir)
    opened.model.config.nested = {"_name_or_path": str(llama_dir), "kept": 1}
    out = opened.save(tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["nested"] == {"kept": 1}
    for name, content in tree(out).items():
        assert str(tmp_path).encode() not in content, name
    modes = {stat.S_IMODE(file.stat().st_mode) for file in out.iterdir() if file.is_file()}
    assert len(modes) == 1


def test_readme_and_extra_files(llama_dir: Path, tmp_path: Path) -> None:
    opened = checkpoint.open(llama_dir)
    files = {"README.md": "ours\n", "report/report.json": b"{}", "chat_template.jinja": "new"}
    out = opened.save(tmp_path / "out", files=files)
    assert (out / "README.md").read_text() == "ours\n"
    assert (out / "SOURCE_README.md").read_bytes() == (llama_dir / "README.md").read_bytes()
    assert (out / "report" / "report.json").read_bytes() == b"{}"
    assert (out / "chat_template.jinja").read_text() == "new"


@pytest.mark.parametrize("name", ["../up.txt", "/abs.txt", "", "config.json", "a.safetensors"])
def test_invalid_extra_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        save(tiny_gpt2(), tmp_path / "out", files={name: "x"})
    assert not (tmp_path / "out").exists()


def test_tokenizer_is_written_where_the_source_has_none(llama_dir: Path, tmp_path: Path) -> None:
    opened = checkpoint.open(llama_dir)
    out = save(opened.model, tmp_path / "out", tokenizer=opened.tokenizer)
    assert checkpoint.open(out).tokenizer("abca")["input_ids"] == [7, 2]
    out = save(opened.model, tmp_path / "b", source=opened.source, tokenizer=opened.tokenizer)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (llama_dir / name).read_bytes()


def test_check_sees_the_finished_directory_and_may_refuse(llama_dir: Path, tmp_path: Path) -> None:
    opened = checkpoint.open(llama_dir)
    seen: list[set[str]] = []

    def refuse(folder: Path) -> None:
        seen.append({file.name for file in folder.iterdir()})
        assert torch.equal(
            checkpoint.open(folder).model.lm_head.weight, opened.model.lm_head.weight
        )
        raise VerificationError("decoding differs")

    out = tmp_path / "outputs" / "out"
    with pytest.raises(VerificationError, match="decoding differs"):
        opened.save(out, check=refuse)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= seen[0]
    assert not out.parent.exists()
    opened.save(out)
    before = tree(out)
    with pytest.raises(VerificationError):
        opened.save(out, check=refuse, force=True)
    assert tree(out) == before
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]


def test_a_source_may_be_replaced_by_its_own_edit(llama_dir: Path) -> None:
    opened = checkpoint.open(llama_dir)
    with torch.no_grad():
        opened.model.lm_head.weight[0] = 7
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        opened.save(llama_dir)
    before = (llama_dir / "tokenizer.json").read_bytes()
    opened.save(llama_dir, force=True)
    # The weights still mapped from the file that is gone are as readable as before.
    again = checkpoint.open(llama_dir)
    for name, tensor in opened.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)
    assert (llama_dir / "tokenizer.json").read_bytes() == before


def test_a_full_disk_is_said_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=10, used=9, free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"needs .* kB on disk and 1 B are free"):
        save(tiny_llama(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_while_writing_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = tiny_llama()
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write .*File too large") as refusal:
            save(model, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = tiny_gpt2()
    with pytest.raises(CheckpointError, match=r"transformer\.wte\.weight is on the meta device"):
        save(model, tmp_path / "out")


def test_a_name_that_would_be_changed_when_it_is_read_is_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    model.model.LayerNorm = torch.nn.Module()  # a name of TensorFlow's files
    model.model.LayerNorm.gamma = torch.nn.Parameter(torch.ones(3))
    for write in (save, saving.rehearse):  # before long work, too
        with pytest.raises(InvalidInputError) as refused:
            write(model, tmp_path / "out")
        assert str(refused.value).startswith(
            "model.LayerNorm.gamma would be opened as model.LayerNorm.weight: "
        )
        assert not any(tmp_path.iterdir())


def test_a_model_transformers_cannot_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Any, place: Any, **options: Any) -> None:
        Path(place, "model.safetensors").write_bytes(b"half")
        raise RuntimeError("no tensor of this kind\nin detail")

    model = tiny_llama()
    monkeypatch.setattr(type(model), "save_pretrained", stopped)
    with pytest.raises(
        CheckpointError, match=r"cannot write LlamaForCausalLM: no tensor of this kind$"
    ):
        save(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def written(tmp_path: Path) -> tuple[Any, Path]:
    model = tiny_llama()
    return model, save(model, tmp_path / "out", max_shard_size="20KB")


def rewrite(file: Path, change: Any) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def shard_of(out: Path, name: str) -> Path:
    index = json.loads((out / "model.safetensors.index.json").read_text())
    return out / index["weight_map"][name]


def edit_index(out: Path, change: Any) -> None:
    file = out / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))


NORM = "model.norm.weight"


@pytest.mark.contract("A13")
def test_verification_finds_what_is_wrong(written: tuple[Any, Path]) -> None:
    model, out = written
    verify_files(model, out)
    shard = shard_of(out, NORM)
    good = shard.read_bytes()

    rewrite(shard, lambda tensors: tensors.update({NORM: torch.ones(31)}))
    with pytest.raises(VerificationError, match=r"holds model\.norm\.weight as \(31,\)"):
        verify_files(model, out)

    rewrite(shard, lambda tensors: tensors.pop(NORM))
    edit_index(out, lambda weights: weights.pop(NORM))
    with pytest.raises(VerificationError, match=r"lacks the tensor model\.norm\.weight"):
        verify_files(model, out)

    shard.write_bytes(good)
    with pytest.raises(VerificationError, match=rf"does not say that {NORM} is in {shard.name}"):
        verify_files(model, out)
    edit_index(out, lambda weights: weights.update({NORM: shard.name}))
    verify_files(model, out)

    rewrite(shard, lambda tensors: tensors.update(surplus=torch.ones(1)))
    edit_index(out, lambda weights: weights.update(surplus=shard.name))
    with pytest.raises(VerificationError, match="holds surplus, which the model does not have"):
        verify_files(model, out)


def test_verification_finds_unlisted_shards_and_double_ties(tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    out = save(model, tmp_path / "out")
    table = model.lm_head.weight.detach().clone()
    rewrite(out / "model.safetensors", lambda t: t.update({"lm_head.weight": table}))
    with pytest.raises(VerificationError, match=r"stores tied tensors twice: .*lm_head\.weight"):
        verify_files(model, out)
    shutil.copy(out / "model.safetensors", out / "model-00002.safetensors")
    with pytest.raises(VerificationError, match="2 weight files and no index"):
        verify_files(model, out)


def test_experts_are_verified_under_the_names_of_the_files(tmp_path: Path) -> None:
    model = tiny_mixtral()
    out = save(model, tmp_path / "out")
    with safe_open(out / "model.safetensors", "pt") as handle:
        names = set(handle.keys())
    assert names != set(model.state_dict())
    lost = sorted(name for name in names if "experts.1" in name)[0]
    rewrite(out / "model.safetensors", lambda tensors: tensors.pop(lost))
    with pytest.raises(VerificationError, match=r"lacks the tensor .*experts"):
        verify_files(model, out)


def test_files_that_do_not_hold_the_model_never_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = saving._write_weights

    def damaging(model: Any, folder: Path, size: int | str) -> None:
        real(model, folder, size)
        rewrite(folder / "model.safetensors", lambda tensors: tensors.pop(NORM))

    monkeypatch.setattr(saving, "_write_weights", damaging)
    with pytest.raises(VerificationError, match=r"lacks the tensor model\.norm\.weight"):
        save(tiny_llama(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
