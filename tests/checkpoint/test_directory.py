"""A checkpoint opens in the type that its weights are stored in, and says what it left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modwright import checkpoint
from modwright.core.errors import CheckpointError
from modwright.edits import apply, remove

FILE = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"


def stored(model: Any, place: Path, dtype: torch.dtype, note: str, **odd: Any) -> Path:
    """Weights of one type (``odd`` ones apart) under a config that says another."""
    model.save_pretrained(place)
    tensors = {name: t.to(dtype) for name, t in load_file(place / FILE).items()}
    tensors |= odd
    save_file(tensors, place / FILE, metadata={"format": "pt"})
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "dtype": note}))
    return place


@pytest.mark.parametrize(
    ("dtype", "note"),
    [
        (torch.float32, "float16"),
        (torch.float32, "bfloat16"),
        (torch.bfloat16, "float32"),
        (torch.float16, "bfloat16"),
        (torch.float64, "float32"),
    ],
)
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-bert"])
def test_fault_A12_the_stored_type_wins(
    dtype: torch.dtype, note: str, name: str, tiny: Any, tmp_path: Path
) -> None:
    place = stored(tiny(name), tmp_path / "model", dtype, note)
    opened = checkpoint.open(place)
    assert opened.model.dtype == opened.model.config.dtype == dtype
    out = opened.save(tmp_path / "out")
    before, after = load_file(place / FILE), load_file(out / FILE)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert checkpoint.open(place, dtype="float32").model.dtype == torch.float32


def test_fault_A12_a_large_number_stays_finite(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-llama")
    large = dict(model.named_parameters())[UP].detach().clone()
    large[0, 0] = 70000.0
    place = stored(model, tmp_path / "model", torch.float32, "float16", **{UP: large})
    opened = checkpoint.open(place).model
    checkpoint.check_finite(opened)
    assert opened.get_parameter(UP)[0, 0] == 70000.0


def test_fault_A12_mixed_files_lose_nothing_and_say_so(tiny: Any, tmp_path: Path) -> None:
    model = tiny("tiny-llama")
    weight = dict(model.named_parameters())[UP].detach().clone()
    place = stored(model, tmp_path / "model", torch.bfloat16, "bfloat16", **{UP: weight})
    opened = checkpoint.open(place)
    assert torch.equal(opened.model.get_parameter(UP), weight)
    assert opened.notes == ("The weights are stored as BF16 and F32 and opened as float32.",)
    assert checkpoint.open(place, dtype="bfloat16").notes == ()


def test_fault_A12_masks_of_old_files_do_not_decide(tiny: Any, tmp_path: Path) -> None:
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8)}
    place = stored(tiny("tiny-gpt2"), tmp_path / "model", torch.bfloat16, "float32", **mask)
    assert checkpoint.open(place).model.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-bert"])
@pytest.mark.parametrize(
    "asked", [{"return_dict": False}, {"output_attentions": True, "output_hidden_states": True}]
)
def test_fault_B10_a_config_that_changes_the_form_of_outputs_is_opened_without(
    asked: dict[str, bool], name: str, tiny: Any, tmp_path: Path
) -> None:
    place = stored(tiny(name), tmp_path / "model", torch.float32, "float32")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, **asked}))
    opened = checkpoint.open(place)
    assert any(" and ".join(asked) in note for note in opened.notes)
    edited = apply(opened, remove(opened.anatomy.blocks[0].mlp))
    back = checkpoint.open(checkpoint.save(edited, tmp_path / "out"))
    assert back.notes == () and back.model.config.return_dict is True
    out = back.model(torch.tensor([[3, 4]]))
    assert out.attentions is None and out.hidden_states is None


@pytest.fixture
def with_a_layer_too_many(tiny: Any, tmp_path: Path) -> Path:
    place = tmp_path / "model"
    model = tiny("tiny-llama")
    model.save_pretrained(place)
    tensors = load_file(place / FILE)
    layers = model.config.num_hidden_layers
    last = {n: t for n, t in tensors.items() if f"layers.{layers - 1}." in n}
    tensors |= {n.replace(f".{layers - 1}.", f".{layers}."): t.clone() for n, t in last.items()}
    save_file(tensors, place / FILE, metadata={"format": "pt"})
    return place


def test_fault_A13_what_has_no_place_is_named(with_a_layer_too_many: Path) -> None:
    opened = checkpoint.open(with_a_layer_too_many)
    assert len(opened.unexpected_keys) == 9
    (note,) = opened.notes
    assert note.startswith("9 stored tensors have no place in the model and are left out: model.la")
    assert note.endswith(" and 4 more.")


@pytest.mark.parametrize("command", ["inspect", "cost"])
def test_fault_A13_commands_name_it(
    command: str, with_a_layer_too_many: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from modwright.cli.entry import run_command

    assert run_command([command, str(with_a_layer_too_many), "--json"]) == 0
    note = capsys.readouterr()
    assert "note: 9 stored tensors have no place in the model" in note.err
    json.loads(note.out)


def test_fault_A13_a_run_names_it_in_log_report_and_card(
    with_a_layer_too_many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from modwright.cli.entry import run_command

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {with_a_layer_too_many}\ntitle: 'odd [/b] title :smile:'\n"
        "evaluate: {length: 8}\nsteps: [{method: arrange, blocks: '0, 1'}]\n"
    )
    out = tmp_path / "out"
    assert run_command(["run", str(recipe), "-o", str(out)]) == 0
    note = capsys.readouterr()
    sentence = "9 stored tensors have no place in the model"
    assert sentence in note.err
    assert sentence in note.out.replace("\n", " ")
    assert "odd [/b] title :smile:" in note.out
    for name in ("README.md", "report.md", "report.html", "report.json"):
        assert sentence in (out / name).read_text(), name


@pytest.mark.parametrize("lists", [{"drop_attn_list": [1, 2]}, {"drop_mlp_list": [True, False]}])
def test_fault_B11_lists_of_dropped_layers_are_refused(
    lists: dict[str, Any], tiny: Any, tmp_path: Path
) -> None:
    model = tiny("tiny-llama")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **lists}))
    with pytest.raises(CheckpointError, match=rf"{next(iter(lists))}.* --lists {tmp_path}"):
        checkpoint.open(tmp_path)
    empty: dict[str, list[int]] = {key: [] for key in lists}
    (tmp_path / "config.json").write_text(json.dumps({**config, **empty}))
    checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("changed", "note"),
    [
        ({"vocab_size": 15_000_000}, r"has 720,092,592 parameters .* weights hold 98,736"),
        ({"intermediate_size": 5_000_000}, r"model\.layers\.0\.mlp\.gate_proj\.weight alone"),
        ({"num_hidden_layers": 100_000}, "num_hidden_layers is 100,000, more than the weights"),
        ({"num_labels": 10**8}, "num_labels is 100,000,000"),
        ({"model_type": ["llama"]}, "names no model_type"),
        ({"architectures": [42]}, "architectures must be a list of names"),
        ({"quantization_config": "yes"}, "stored quantized"),
        ({"nested": json.loads("[" * 900 + "]" * 900)}, "nests deeper than 64 levels"),
    ],
)
def test_fault_B21_a_config_is_held_against_the_weights(
    changed: dict[str, Any], note: str, tiny: Any, tmp_path: Path
) -> None:
    tiny("tiny-llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(CheckpointError, match=note):
        checkpoint.open(tmp_path)
