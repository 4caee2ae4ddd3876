from pathlib import Path
from typing import Any

import pytest
import torch

import modwright
from modwright.core.errors import VerificationError
from modwright.core.subprocess_worker import write_greedily
from modwright.core.subprocesses import open_in_new_process
from modwright.edits import remove
from modwright.edits.verify import probe_batch

pytestmark = pytest.mark.slow


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, Path]:
    model = modwright.open("preset:tiny-llama").model
    model.save_pretrained(tmp_path / "saved")
    return model, tmp_path / "saved"


@pytest.mark.cold_processes
@pytest.mark.parametrize("library", ["imported", "left out", "forbidden"])
def test_another_process_computes_the_same(
    library: Any, saved: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever stands in the directory that the user works in."""
    model, _ = saved
    (tmp_path / "random.py").write_text("raise RuntimeError('imported from where the user works')")
    monkeypatch.chdir(tmp_path)
    batches = [probe_batch(model, 2, 7, 1), {"input_ids": torch.arange(1, 5)[None]}]
    found = open_in_new_process(Path("saved"), batches, library=library, what="it", write=0)
    assert (found.model_class, found.opener) == ("LlamaForCausalLM", "AutoModelForCausalLM")
    assert found.names == tuple(sorted(name for name, _ in model.named_parameters()))
    with torch.no_grad():
        assert all(
            torch.equal(output, model(**batch)[0]) for output, batch in zip(found.outputs, batches)
        )
    assert found.written is not None
    assert torch.equal(found.written, write_greedily(model, batches[0]))


def test_an_edited_checkpoint_opens_only_where_modwright_is(tmp_path: Path) -> None:
    model = modwright.open("preset:tiny-llama").model
    anatomy = modwright.Anatomy.of(model)
    plan = modwright.Plan.of(anatomy, "by hand", remove(anatomy.blocks[0].attention))
    edited = modwright.apply(model, plan).model
    edited.save_pretrained(tmp_path)
    batches = [probe_batch(edited)]
    found = open_in_new_process(tmp_path, batches, library="imported", what="it")
    assert torch.equal(found.outputs[0], edited(**batches[0])[0]) and found.written is None
    with pytest.raises(VerificationError, match=r"^it does not open in a new process: "):
        open_in_new_process(tmp_path, batches, library="left out", what="it")


def test_what_the_other_process_said_last_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        VerificationError, match=r"^the copy does not open in a new process without modwright: \w"
    ) as failed:
        open_in_new_process(tmp_path, [], library="forbidden", what="the copy")
    assert "\n" not in str(failed.value)
