"""Edited checkpoints come back bit by bit in a new process; other classes refuse them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from edit_cases import CASES, KINDS
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file

from helpers import batch_of, edit, outputs
from modwright.anatomy import Anatomy
from modwright.core.errors import CheckpointError, InvalidInputError, ModwrightError
from modwright.edits import Applied, Change, Replace, keep_neurons, remove, replace_attention
from modwright.edits.remodeled import base_class, remodeled
from warm_processes import run_python

REFUSALS = (StrictDataclassError, RuntimeError)
EDITED = [name for name, case in CASES.items() if not case.plain]


def apply_case(model: Any, case: str) -> Applied:
    return edit(model, CASES[case].change(Anatomy.of(model)), check=False)


def block_gone(model: Any) -> Applied:
    return edit(model, remove(Anatomy.of(model).blocks[0]), check=False)


@pytest.fixture(autouse=True)
def _no_load_reports() -> Iterator[None]:
    """Stock classes warn at length about the checkpoints that they are meant to refuse."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.contract("A2", "A4", "A6", "A14")
def test_a_new_process_loads_every_kind_of_case_bit_by_bit_and_twice(
    tiny: Any,
    edited: Any,
    preset: str,
    fresh_process: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    source = tiny(preset)
    auto, batch = tiny.auto_class(preset), tmp_path / "batch.safetensors"
    save_file(batch_of(source), batch)
    cases = ("identity", *KINDS, "no-block-0")
    results = {case: edited(preset, case).applied for case in cases}
    for case, applied in results.items():
        model, first, second = applied.model, tmp_path / case, tmp_path / f"{case}-again"
        model.save_pretrained(first, max_shard_size="60KB")
        with torch.no_grad():
            expected = model(**batch_of(source), return_dict=True)[0]
        for directory, extra in ((first, {"again": str(second)}), (second, {})):
            out = tmp_path / "out.safetensors"
            answer = fresh_process(directory, auto, batch=str(batch), out=str(out), **extra)
            assert "error" not in answer, (case, answer)
            assert torch.equal(load_file(out)["out"], expected), case
            assert answer["class"] == type(model).__name__, case
            assert answer["parameters"] == sum(p.numel() for p in model.parameters()), case
            assert answer["tied"] == Anatomy.of(model).is_tied, case
            if Anatomy.of(source).family.is_causal():
                assert answer["eos"] == source.generation_config.eos_token_id, case
        assert_sharded_and_complete(first, model)


def assert_sharded_and_complete(directory: Path, model: Any) -> None:
    """Safetensors only, every tensor once, and no byte more than the model's own."""
    names = {path.name for path in directory.iterdir()}
    shards = {name for name in names if name.endswith(".safetensors")}
    assert len(shards) > 1
    assert names - shards <= {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
    }
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index.values()) == shards
    stored = {n: t for shard in shards for n, t in load_file(directory / shard).items()}
    assert set(stored) == set(index)
    live = model.state_dict()
    assert all(torch.equal(stored[n], t) for n, t in live.items() if n in stored)
    unique = {t.data_ptr(): t.numel() for t in live.values()}  # a tied table is written once
    # Files of a stock model may hold each expert apart, so sizes are compared as a whole.
    assert sum(t.numel() for t in stored.values()) == sum(unique.values())


@pytest.mark.contract("A8")
@pytest.mark.parametrize("case", [*KINDS, "no-block-0"])
def test_file_bytes_fall_with_the_parameters(
    edited: Any, preset: str, case: str, tmp_path: Path
) -> None:
    model = edited(preset, case).model
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    held = sum(t.numel() * t.element_size() for t in stored.values())
    buffers = sum(b.numel() * b.element_size() for n, b in model.named_buffers() if n in stored)
    assert held == Anatomy.of(model).num_bytes + buffers
    assert (tmp_path / "model.safetensors").stat().st_size - held < 20_000


@pytest.mark.covering(lambda params: params["case"] in KINDS)
@pytest.mark.contract("A9")
@pytest.mark.parametrize("case", EDITED)
def test_the_base_class_refuses_what_it_cannot_hold(
    tiny: Any, edited: Any, preset: str, case: str, tmp_path: Path
) -> None:
    source = tiny(preset)
    applied = edited(preset, case).applied
    applied.model.save_pretrained(tmp_path)
    if applied.plain:  # this family's config can say it
        back = type(source).from_pretrained(tmp_path)
        assert torch.equal(outputs(back), outputs(applied.model))
        return
    for kind in {type(source), type(source.base_model)}:
        with pytest.raises(REFUSALS):
            kind.from_pretrained(tmp_path)


def test_nothing_but_the_guard_keeps_the_base_class_out(
    tiny: Any, edited: Any, preset: str, tmp_path: Path
) -> None:
    source = tiny(preset)
    edited(preset, "no-attention-0").model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["per_layer_config"]
    config.update(config.pop("modwright_stock"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    filled = type(source).from_pretrained(tmp_path)
    assert Anatomy.of(filled).blocks[0].attention is not None


@pytest.mark.parametrize("case", ["identity", "half-ffn-everywhere", "no-block-0"])
def test_the_base_class_loads_what_is_plain(
    tiny: Any, edited: Any, preset: str, case: str, tmp_path: Path
) -> None:
    source = tiny(preset)
    applied = edited(preset, case).applied
    applied.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == source.config.model_type
    ours = {"edits", "modwright_format", "modwright_stock", "per_layer_config"}
    assert not ours & config.keys()
    back = type(source).from_pretrained(tmp_path)
    assert torch.equal(outputs(back), outputs(applied.model))


@pytest.mark.contract("A12")
@pytest.mark.parametrize("case", ["no-attention-0", "half-ffn-1", "several"])
def test_the_config_tells_the_edits_and_no_flag_that_silences_the_guard(
    tiny: Any, edited: Any, preset: str, case: str, tmp_path: Path
) -> None:
    source = tiny(preset)
    applied = edited(preset, case).applied
    model = applied.model
    model.config.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "allow_global_per_layer_attribute_access" not in text
    stored = json.loads(text)
    for told in (stored, model.config.to_dict(), model.config.to_diff_dict()):
        assert "allow_global_per_layer_attribute_access" not in told
        if applied.plain:
            continue
        assert told["edits"] == list(model.config.edits)
        assert told["modwright_format"] == 1
        layers = {int(e["path"].split(".")[1]) for e in told["edits"]}
        assert {int(i) for i in told["per_layer_config"]} == layers
    if applied.plain:
        return
    assert stored["model_type"] == f"modwright_{source.config.model_type}"
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(read) is type(model.config)
    assert read.edits == model.config.edits


@pytest.mark.contract("E2")
def test_the_guard_tells_the_truth_about_widths(tiny: Any) -> None:
    source = tiny("tiny-llama")
    a = Anatomy.of(source)
    change = keep_neurons(a.blocks[1].mlp, range(40)) + remove(a.blocks[2].attention)
    told = edit(source, change, check=False).model.config.to_dict()["per_layer_config"]
    assert told["1"] == {"intermediate_size": 40}
    assert told["2"]["skip"] == ["attention"] and told["2"]["num_key_value_heads"] == 0


def test_a_model_of_many_layers_is_guarded_too(tiny: Any, tmp_path: Path) -> None:
    """Keys of the stored per-layer entries are padded: their order is that of the layers."""
    source = tiny("tiny-llama", num_hidden_layers=12)
    a = Anatomy.of(source)
    model = edit(source, remove(a.blocks[2].attention) + remove(a.blocks[11].mlp)).model
    assert list(model.config.to_dict()["per_layer_config"]) == ["02", "11"]
    model.save_pretrained(tmp_path)
    with pytest.raises(REFUSALS):
        type(source).from_pretrained(tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(outputs(back), outputs(model))


@pytest.mark.contract("A5")
def test_parameters_that_an_edit_adds_come_back(tiny: Any, tmp_path: Path) -> None:
    """Bias compensation on a model without biases."""
    source = tiny("tiny-llama")
    a = Anatomy.of(source)
    bias = torch.linspace(-1, 1, 48)
    mlp = a.blocks[2].mlp
    width = {"in_features": mlp.intermediate_size, "out_features": 48, "bias": True}
    change = replace_attention(a.blocks[1].attention, biases={"o": bias}) + Change(
        (Replace(mlp.down.address, "linear", width),), {f"{mlp.down.address}.bias": bias}
    )
    model = edit(source, change).model
    model.save_pretrained(tmp_path)
    back = Anatomy.of(transformers.AutoModelForCausalLM.from_pretrained(tmp_path))
    assert torch.equal(back.blocks[1].attention.o.bias, bias)
    assert torch.equal(back.blocks[2].mlp.down.bias, bias)
    assert torch.equal(back.blocks[2].mlp.down.weight, mlp.down.weight)
    assert torch.equal(outputs(back.model), outputs(model))


@pytest.mark.parametrize("case", ["several", "half-ffn-everywhere"])
def test_bfloat16_comes_back_as_bfloat16(
    tiny: Any, edited: Any, preset: str, case: str, tmp_path: Path
) -> None:
    model = edited(preset, case, dtype=torch.bfloat16).model
    model.save_pretrained(tmp_path)
    auto = getattr(transformers, tiny.auto_class(preset))
    back = auto.from_pretrained(tmp_path)
    assert {p.dtype for p in back.parameters()} == {torch.bfloat16}
    assert torch.equal(outputs(back), outputs(model))
    wide = auto.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}


@pytest.mark.parametrize("case", ["several", "uneven-heads"])
def test_the_edited_class_itself_and_its_backbone_load(
    edited: Any, preset: str, case: str, tmp_path: Path
) -> None:
    model = edited(preset, case).model
    model.save_pretrained(tmp_path)
    assert torch.equal(outputs(type(model).from_pretrained(tmp_path)), outputs(model))
    bare = transformers.AutoModel.from_pretrained(tmp_path)
    assert torch.equal(outputs(bare), outputs(model.base_model))


@pytest.mark.parametrize("case", ["several", "uneven-heads"])
def test_a_classifier_on_top_comes_back(
    tiny: Any, edited: Any, preset: str, case: str, tmp_path: Path
) -> None:
    auto = tiny.classifier(preset)
    model = edited(preset, case, auto=auto, pad_token_id=0).model
    model.save_pretrained(tmp_path)
    back = getattr(transformers, auto).from_pretrained(tmp_path)
    assert torch.equal(outputs(back), outputs(model))


@pytest.mark.contract("I3")
@pytest.mark.parametrize("case", ["several", "uneven-heads"])
def test_the_config_alone_builds_the_edited_structure(
    tiny: Any, edited: Any, preset: str, case: str
) -> None:
    """With random weights, as training from scratch needs it."""
    model = edited(preset, case).model
    auto = getattr(transformers, tiny.auto_class(preset))
    fresh = auto.from_config(model.config)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    assert {n: p.shape for n, p in fresh.named_parameters()} == shapes
    assert torch.isfinite(outputs(fresh)).all()


def test_two_edited_checkpoints_do_not_share_anything(
    tiny: Any, edited: Any, preset: str, tmp_path: Path
) -> None:
    results = {case: edited(preset, case).model for case in ("several", "uneven-heads")}
    auto = getattr(transformers, tiny.auto_class(preset))
    for case, model in results.items():
        model.save_pretrained(tmp_path / case)
    back = {case: auto.from_pretrained(tmp_path / case) for case in results}
    for case, model in results.items():
        assert torch.equal(outputs(back[case]), outputs(model))
        assert back[case].config.edits == model.config.edits


# Configs that are not ours to read


def stored_config(tiny: Any, directory: Path, **changed: Any) -> Path:
    apply_case(tiny("tiny-llama"), "no-attention-0").model.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changed}))
    return directory


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"modwright_format": 2}, r"edits of format 2; this modwright reads up to 1"),
        ({"edits": [{"op": "swap", "path": "blocks.0.mlp"}]}, "unknown edit operation 'swap'"),
        ({"edits": [{"op": "remove", "path": "blocks.9.mlp"}]}, "the model has blocks 0 to 3"),
        ({"edits": [{"op": "remove", "path": "model.layers.0"}]}, "is no address of a part"),
        ({"edits": [{"op": "remove", "path": "blocks.0.mlp", "x": 1}]}, "unexpected keyword"),
        (
            {"edits": [{"op": "replace", "path": "blocks.0.mlp.up", "part": "os.system"}]},
            "unknown part 'os.system'; valid values: absent, absent_attention, attention",
        ),
        (
            {"edits": [{"op": "replace", "path": "blocks.0.mlp.up", "part": "linear"}]},
            "part 'linear': .*missing 2 required",
        ),
    ],
)
def test_a_config_with_other_edits_is_refused(
    tiny: Any, changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ModwrightError, match=said):
        transformers.AutoModelForCausalLM.from_pretrained(stored_config(tiny, tmp_path, **changed))


def test_per_layer_entries_are_never_read_back(tiny: Any, tmp_path: Path) -> None:
    lie = {"0": {"intermediate_size": 7}}
    directory = stored_config(tiny, tmp_path, per_layer_config=lie)
    back = transformers.AutoModelForCausalLM.from_pretrained(directory)
    assert Anatomy.of(back).blocks[0].mlp.intermediate_size == 96
    assert "7" not in json.dumps(back.config.to_dict()["per_layer_config"])
    with pytest.raises(InvalidInputError, match="follows from its edits"):
        back.config.per_layer_config = lie


@pytest.mark.contract("A12")
def test_newer_formats_are_a_checkpoint_error() -> None:
    config = remodeled(transformers.LlamaForCausalLM).config_class
    with pytest.raises(CheckpointError):
        config(modwright_format=99)


def test_remodeled_classes_are_made_once_and_found_by_name() -> None:
    kind = remodeled(transformers.LlamaForCausalLM)
    assert remodeled(transformers.LlamaForCausalLM) is kind
    assert base_class(kind) is transformers.LlamaForCausalLM
    assert kind.__module__ == "modwright.edits.remodeled"
    module = sys.modules[kind.__module__]
    assert module.ModwrightLlamaForCausalLM is kind
    assert module.ModwrightLlamaConfig is kind.config_class
    with pytest.raises(AttributeError):
        module.ModwrightNothing


def test_edited_models_can_be_pickled_to_another_worker(tiny: Any) -> None:
    import pickle

    model = apply_case(tiny("tiny-llama"), "several").model
    config = pickle.loads(pickle.dumps(model.config))
    assert type(config) is type(model.config) and config.edits == model.config.edits
    assert torch.equal(outputs(pickle.loads(pickle.dumps(model))), outputs(model))


LATE = """
import sys
import transformers
try:
    transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
except ValueError as error:
    assert "modwright_llama" in str(error), error
else:
    raise SystemExit("loaded without modwright")
import modwright
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert type(model).__name__ == "ModwrightLlamaForCausalLM", type(model)
"""


def test_without_modwright_nothing_loads_and_importing_it_late_is_enough(
    tiny: Any, tmp_path: Path
) -> None:
    apply_case(tiny("tiny-llama"), "several").model.save_pretrained(tmp_path)
    done = run_python(["-c", LATE, str(tmp_path)], timeout=120)
    assert done.returncode == 0, done.stderr


def test_importing_modwright_does_not_import_torch() -> None:
    code = "import modwright, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
