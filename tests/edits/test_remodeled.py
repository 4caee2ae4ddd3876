"""Configs of edited models: every road there and back, and none for a stock class."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edit_cases import CASES

from helpers import edit, outputs
from models.tiny import tiny as tiny_image_model
from modwright.anatomy import Anatomy
from modwright.edits import keep_neurons, remove
from modwright.edits.canonical import target_of
from modwright.edits.remodeled import base_class, remodeled


def through_file(config: Any, use_diff: bool) -> Any:
    return json.loads(config.to_json_string(use_diff=use_diff))


ROADS: dict[str, Callable[[Any], Any]] = {
    "constructor": lambda c: type(c)(**c.to_dict()),
    "constructor of the diff": lambda c: type(c)(**c.to_diff_dict()),
    "from_dict": lambda c: type(c).from_dict(c.to_dict()),
    "from_dict of the diff": lambda c: type(c).from_dict(c.to_diff_dict()),
    "file": lambda c: type(c).from_dict(through_file(c, True)),
    "full file": lambda c: type(c).from_dict(through_file(c, False)),
    "for_model": lambda c: _auto().for_model(**c.to_dict()),
    "for_model of the diff": lambda c: _auto().for_model(**c.to_diff_dict()),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda c: pickle.loads(pickle.dumps(c)),
}


def _auto() -> Any:
    from transformers import AutoConfig

    return AutoConfig


def edited_config(model: Any, case: str) -> Any:
    anatomy = Anatomy.of(model)
    return target_of(anatomy, CASES[case].change(anatomy).edits).config


def told(config: Any) -> tuple[Any, Any]:
    return config.to_dict(), config.to_diff_dict()


def test_fault_B23_every_road_gives_the_same_config(tiny: Any, preset: str) -> None:
    for case in ("several", "no-attention-0", "uneven-heads"):
        config = edited_config(tiny(preset), case)
        for name, road in ROADS.items():
            once = road(config)
            assert type(once) is type(config), name
            assert told(once) == told(config), name
            assert told(road(once)) == told(config), f"{name}, twice"


@pytest.mark.parametrize("architecture", ["metaformer", "smt", "tnt"])
def test_fault_B23_every_road_of_an_image_models_config(architecture: str) -> None:
    source = tiny_image_model(architecture)
    anatomy = Anatomy.of(source)
    config = target_of(anatomy, remove(anatomy.blocks[0].at("mlp")).edits).config
    for name, road in ROADS.items():
        assert told(road(config)) == told(config), name
    model = edit(source, remove(anatomy.blocks[0].at("mlp")), check=False).model
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is type(model) and torch.equal(outputs(again), outputs(model))


def test_fault_B23_a_config_of_a_file_takes_new_values_beside_it(tiny: Any, tmp_path: Path) -> None:
    config = edited_config(tiny("tiny-llama"), "no-attention-0")
    config.save_pretrained(tmp_path)
    changed = type(config).from_pretrained(tmp_path, num_key_value_heads=3, rms_norm_eps=0.5)
    assert (changed.num_key_value_heads, changed.rms_norm_eps) == (3, 0.5)
    built = type(config)(**{**config.to_diff_dict(), "num_key_value_heads": 6})
    assert built.num_key_value_heads == 6 and built.edits == config.edits
    assert built.to_diff_dict()["num_key_value_heads"] == [0, 6, 6, 6]


def test_fault_B23_a_model_built_from_its_own_dictionary_runs(tiny: Any, decoder: str) -> None:
    source = tiny(decoder)
    model = edit(source, CASES["several"].change(Anatomy.of(source)), check=False).model
    config = type(model.config)(**{**model.config.to_diff_dict(), "attn_implementation": "eager"})
    assert config._attn_implementation == "eager"
    again = type(model)(config).eval()
    again.load_state_dict(model.state_dict(), strict=False)
    model.set_attn_implementation("eager")
    assert torch.allclose(outputs(again), outputs(model), atol=1e-5)


@pytest.mark.parametrize("use_diff", [True, False])
def test_fault_B23_a_stock_class_still_opens_no_file(
    tiny: Any, preset: str, use_diff: bool
) -> None:
    for case in ("several", "no-attention-0", "uneven-heads"):
        config = edited_config(tiny(preset), case)
        with pytest.raises(Exception, match=r"list|per_layer|heterogeneous"):
            base_class(type(config)).from_dict(through_file(config, use_diff))


def test_remodeled_classes_are_named_after_their_base() -> None:
    from transformers import GPT2Model

    assert remodeled(GPT2Model).__name__ == "ModwrightGPT2Model"


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForCausalLM"])
@pytest.mark.parametrize("case", ["uneven-heads", "narrow-heads", "low-rank-down"])
def test_parts_start_with_their_own_values_wherever_a_model_is_made(
    tiny: Any, auto: str, case: str
) -> None:
    """On the meta device first, or with weights that a file lacks: no memory is left as it was."""
    model = tiny("tiny-llama", auto)
    edited = edit(model, CASES[case].change(Anatomy.of(model))).model
    kind, config = type(edited), edited.config
    made = kind(config)
    with torch.device("meta"):
        moved = kind(copy.deepcopy(config))
    with torch.no_grad():
        for tensor in moved.to_empty(device="cpu").state_dict().values():
            tensor.fill_(77)
    moved.init_weights()
    empty = kind.from_pretrained(None, config=copy.deepcopy(config), state_dict={})
    for other in (moved, empty):
        buffers = dict(other.named_buffers())
        assert all(torch.equal(tensor, buffers[name]) for name, tensor in made.named_buffers())
        assert all(tensor.abs().max() < 5 for tensor in other.parameters())


def test_a_missing_weight_leaves_the_indices_of_a_loaded_part_alone(
    tiny: Any, tmp_path: Path
) -> None:
    model = edit(tiny("tiny-llama"), CASES["several"].change(Anatomy.of(tiny("tiny-llama")))).model
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del weights["model.layers.1.self_attn.q_proj.weight"]
    loaded = type(model).from_pretrained(None, config=model.config, state_dict=weights)
    buffers = dict(loaded.named_buffers())
    assert {name.rpartition(".")[2] for name in buffers} >= {"kv_index", "rotary_index"}
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in model.named_buffers())


def test_first_values_scaled_with_the_depth_stay_so_in_an_edited_model(tiny: Any) -> None:
    """GPT-2 scales what writes to the residual stream from modules without tensors of their own."""
    model = tiny("tiny-gpt2")
    mlps = [block.mlp for block in Anatomy.of(model).blocks]
    narrowed = keep_neurons(mlps[1], range(0, mlps[1].intermediate_size, 2))
    edited = edit(model, remove(mlps[0]) + narrowed).model
    kind, config = type(edited), edited.config
    wanted = config.initializer_range / (2 * config.n_layer) ** 0.5
    for made in (kind(config), kind.from_pretrained(None, config=config, state_dict={})):
        std = Anatomy.of(made).blocks[1].mlp.down.weight.detach().std()
        assert std == pytest.approx(wanted, rel=0.15)
