"""The target that asks for nothing: a stock checkpoint, or the reason why it is none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import modwright
from modwright.anatomy import Anatomy
from modwright.checkpoint.export.serving import differences, runtime_support
from modwright.core.errors import CheckpointError, InvalidInputError
from modwright.core.registry import registries_restored
from modwright.edits import Change, Replace, keep_neurons, remove
from modwright.edits.remodeled import is_plain
from modwright.nn.component import component

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


class Counting(torch.nn.Module):
    """The MLP of a llama, as a component of someone's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (torch.nn.Linear(48, width, bias=False) for _ in "gu")
        self.down_proj = torch.nn.Linear(width, 48, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        out: torch.Tensor = self.down_proj(inner)
        return out


@pytest.fixture
def counting() -> Iterator[None]:
    def same(config: Any, width: int) -> bool:
        return width == int(config.intermediate_size)

    with registries_restored():
        component("counting", "channel_mixer", stock_tensors=same)(Counting)
        yield


def test_components_with_the_stock_tensors_are_left_out(
    tiny: Any, tmp_path: Path, counting: None
) -> None:
    model = short(tiny, "tiny-llama")
    mlps = [Replace(f"blocks.{i}.mlp", "counting", {"width": 96}) for i in (0, 2)]
    edited = with_change(model, Change(tuple(mlps)))
    assert differences(edited) == [] and not is_plain(edited)
    alone = next(one for one in runtime_support(edited) if "without" in one.runtime)
    assert alone.answer == "after export" and alone.command.endswith("plain")
    with pytest.raises(InvalidInputError, match="export --to plain first"):
        modwright.export(edited, tmp_path / "gguf", "gguf")
    done = modwright.export(edited, tmp_path / "out", "plain")
    assert done.compared.largest == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert not {"edits", "modwright_format", "modwright_stock", "per_layer_config"} & config.keys()
    stored, own = load_file(tmp_path / "out" / "model.safetensors"), model.state_dict()
    assert stored.keys() <= own.keys()
    assert all(torch.equal(stored[name], own[name]) for name in stored)
    stock = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(tensor, own[name]) for name, tensor in stock.state_dict().items())


def test_what_differs_beside_them_is_refused(tiny: Any, tmp_path: Path, counting: None) -> None:
    model = short(tiny, "tiny-llama")
    same = Change((Replace("blocks.0.mlp", "counting", {"width": 96}),))
    narrow = keep_neurons(Anatomy.of(model).blocks[1].mlp, [3, 4])
    edited = with_change(model, same + narrow)
    with pytest.raises(
        InvalidInputError, match=r"differ .*\(a feed-forward .* in block 1\)|block 1"
    ):
        modwright.export(edited, tmp_path / "out", "plain")
