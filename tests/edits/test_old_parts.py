"""Stored edits of earlier versions: their names and arguments are read as those of today.

``tests/data/older_parts`` was written when mixers of image models were arguments of a part
"token_mixer": each checkpoint lies beside an input and what it gave there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import modwright
from helpers import edit
from modwright.anatomy import Anatomy
from modwright.checkpoint import save
from modwright.core.errors import InvalidInputError
from modwright.edits import Change, Replace, remove
from modwright.edits.edit import edits_from_list
from modwright.edits.old_parts import converted
from modwright.edits.remodeled import edits_of

WRITTEN = Path(__file__).parents[1] / "data" / "older_parts"
CHECKPOINTS = sorted(path.parent.name for path in WRITTEN.glob("*/config.json"))


def answer(model: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.eval()(pixel_values=x)[0]
    return out


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_gives_what_it_gave_and_is_saved_in_the_names_of_today(
    name: str, tmp_path: Path
) -> None:
    stored = json.loads((WRITTEN / name / "config.json").read_text())
    assert stored["edits"][0]["part"] == "token_mixer"
    told = load_file(WRITTEN / name / "expected.safetensors")
    model = modwright.open(WRITTEN / name).model
    # Written on another kind of processor, whose kernels add in another order.
    torch.testing.assert_close(answer(model, told["x"]), told["y"], rtol=1e-5, atol=1e-6)
    mixer = name.partition("-")[2]
    assert edits_of(model.config)[0].to_dict()["part"] == mixer
    part = Anatomy.of(model).blocks[0].at("attention")
    assert part is not None
    edited = edit(model, remove(Anatomy.of(model).blocks[1].mlp)).model
    save(edited, tmp_path / "again")
    assert [one["part"] for one in edited.config.edits if "part" in one] == [mixer]
    again = modwright.open(tmp_path / "again").model
    assert torch.equal(answer(again, told["x"]), answer(edited, told["x"]))
    names = {n.rpartition(".")[0].rpartition("attention.")[2] for n in part.parameters()}
    assert names <= {"mixer.conv", "mixer.fc"}


@pytest.mark.parametrize(
    ("part", "kwargs", "now"),
    [
        ("bare_attention", {"num_heads": 2}, ("attention", {"num_heads": 2})),
        ("grid_attention", {}, ("attention", {})),
        ("zero_attention", {}, ("absent_attention", {"whole": True})),
        ("bare_token_mixer", {"mixer": "identity", "hidden_size": 8}, ("identity", {})),
        ("token_mixer", {"mixer": "pool", "grid": [2, 2], "prefix": 1}, ("pool", {"pool_size": 3})),
        ("token_mixer", {"width": 3}, ("token_mixer", {"width": 3})),  # someone's own
        ("linear", {"in_features": 2}, ("linear", {"in_features": 2})),
        (["linear"], {}, (["linear"], {})),
        ("token_mixer", "pool", ("token_mixer", "pool")),
    ],
)
def test_a_name_is_read_as_that_of_today(part: Any, kwargs: Any, now: Any) -> None:
    assert converted(part, kwargs) == now


def test_reading_converts_and_writing_keeps() -> None:
    old = {"op": "replace", "path": "blocks.0.attention", "part": "grid_attention"}
    (read,) = edits_from_list([old])
    assert read.to_dict()["part"] == "attention"
    assert edits_from_list([read.to_dict()]) == (read,)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"mixer": "pooling"}, "unknown token mixer 'pooling'"),
        ({"mixer": 3}, "unknown token mixer 3"),
        ({"mixer": "spatial_fc"}, "spatial_fc needs places"),
        ({"mixer": "depthwise"}, "depthwise needs hidden_size"),
    ],
)
def test_what_never_was_is_refused(kwargs: dict[str, Any], words: str) -> None:
    edit = {"op": "replace", "path": "blocks.0.attention", "part": "token_mixer", "kwargs": kwargs}
    with pytest.raises(InvalidInputError, match=words):
        edits_from_list([edit])


@pytest.mark.parametrize("told", ["x", 3, {"within": 3}, {"within": "a.b"}, {"pairs": False}])
def test_what_no_file_tells_a_host_is_refused(told: Any) -> None:
    model = modwright.open("preset:tiny-vit").model
    change = Change((Replace("blocks.1.attention", "pool", {"host": told}),))
    with pytest.raises(InvalidInputError, match=r"blocks\.1\.attention: 'host' is no argument of"):
        edit(model, change)
