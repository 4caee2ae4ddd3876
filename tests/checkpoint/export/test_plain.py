"""The target that asks for nothing: a stock checkpoint, or the reason why it is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import modwright
from modwright.anatomy import Anatomy
from modwright.checkpoint.export.serving import differences
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.edits import Change, keep_neurons, remove

from .edited import short, with_change


@pytest.fixture
def uniform(tiny: Any) -> Any:
    """A block and half of every MLP are gone: the stock config can say it."""
    model = short(tiny, "tiny-llama")
    blocks = Anatomy.of(model).blocks
    narrow = (keep_neurons(block.mlp, range(40)) for block in blocks[1:])
    return with_change(model, sum(narrow, remove(blocks[0])))


def test_a_uniform_result_opens_as_a_stock_checkpoint(uniform: Any, tmp_path: Path) -> None:
    done = modwright.export(uniform, tmp_path / "out", "plain")
    assert done.plain and done.compared.largest == 0
    assert "process without modwright" in str(done.compared)
    assert set(done.made) == {"config.json", "generation_config.json", "model.safetensors"}
    page = (done.output / "README.md").read_text()
    assert 'AutoModelForCausalLM.from_pretrained(".")' in page


def test_what_differs_is_said(edited_model: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot export to plain: layers differ") as refused:
        modwright.export(edited_model("tiny-llama"), tmp_path / "out", "plain")
    for part in (
        "no attention in block 0",
        "another shape of attention in blocks 1-2",
        "factors in place of mlp.down in block 0",
        "no mlp in block 2",
        "--to standalone",
    ):
        assert part in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_differences_gather_blocks(tiny: Any) -> None:
    model = short(tiny, "tiny-llama")
    blocks = Anatomy.of(model).blocks
    assert differences(model) == []
    gone = sum((remove(block.attention) for block in blocks), Change())
    assert differences(with_change(model, gone)) == ["no attention in blocks 0-2"]
    ends = remove(blocks[0].mlp) + remove(blocks[2].mlp) + keep_neurons(blocks[1].mlp, [3, 4])
    assert differences(with_change(model, ends)) == [
        "no mlp in blocks 0, 2",
        "another width of mlp.down in block 1",
        "another width of mlp.gate in block 1",
        "another width of mlp.up in block 1",
    ]


def test_an_output_that_stands_is_left_alone(uniform: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(CheckpointError, match="not empty"):
        modwright.export(uniform, tmp_path / "out", "plain")
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_only_models_in_the_cpus_memory_are_exported(tiny: Any, tmp_path: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        hollow = LlamaForCausalLM(tiny.config("tiny-llama"))
    with pytest.raises(InvalidInputError, match="is on meta"):
        modwright.export(hollow, tmp_path / "out", "plain")
    with pytest.raises(InvalidInputError, match="a dict cannot be exported"):
        modwright.export({}, tmp_path / "out", "plain")
