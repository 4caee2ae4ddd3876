"""A live model that is not what its config says is refused by name, whatever differs."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from helpers import batch_of, edit, snapshot, unchanged
from models.tiny import tiny as tiny_image_model
from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.edits import Change, remove
from modwright.edits.configured import check_as_configured


def add_bias(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.bias = nn.Parameter(torch.ones(48))


def other_norm(model: Any) -> None:
    model.model.norm = nn.LayerNorm(48)


def head_with_bias(model: Any) -> None:
    model.lm_head = nn.Linear(48, 128)


def hook(model: Any) -> None:
    model.model.layers[2].register_forward_hook(lambda module, args, output: output)


def pre_hook(model: Any) -> None:
    model.model.embed_tokens.register_forward_pre_hook(lambda module, args: args)


def subclass(model: Any) -> None:
    class Louder(type(model.model.layers[0].mlp)):
        pass

    model.model.layers[0].mlp.__class__ = Louder


def patched(model: Any) -> None:
    mlp = model.model.layers[3].mlp
    mlp.forward = types.MethodType(lambda self, x: 2 * x, mlp)


def patched_whole(model: Any) -> None:
    model.forward = types.MethodType(lambda self, *args, **kwargs: None, model)


def adapter(model: Any) -> None:
    class Lora(nn.Linear):
        pass

    model.model.layers[0].self_attn.q_proj = Lora(48, 72, bias=False)


def more_modules(model: Any) -> None:
    model.model.layers[0].mlp.scale = nn.Linear(2, 2)


def other_activation(model: Any) -> None:
    model.model.layers[0].mlp.act_fn = nn.Tanh()


def other_eps(model: Any) -> None:
    model.model.layers[0].input_layernorm.variance_epsilon = 0.5


def other_scale(model: Any) -> None:
    model.model.layers[0].self_attn.scaling = 1.0


def other_width(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.weight = nn.Parameter(torch.zeros(48, 7))


def other_config(model: Any) -> None:
    model.config.hidden_act = "relu"


def parametrized(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)


CHANGES: dict[Callable[[Any], None], str] = {
    add_bias: r"model\.layers\.1\.mlp\.down_proj\.bias \(48,\) is not in the config's model",
    other_norm: r"model\.norm is a LayerNorm, not a LlamaRMSNorm",
    head_with_bias: r"lm_head\.bias \(128,\) is not in the config's model",
    hook: r"model\.layers\.2 has a forward hook \(<lambda>\)",
    pre_hook: r"model\.embed_tokens has a forward pre-hook",
    subclass: r"model\.layers\.0\.mlp is a Louder, not a LlamaMLP",
    patched: r"model\.layers\.3\.mlp has another forward than its class",
    patched_whole: r"the model has another forward than its class",
    adapter: r"self_attn\.q_proj is a Lora, not a Linear",
    more_modules: r"model\.layers\.0\.mlp\.scale \(Linear\) is not in the config's model",
    other_activation: r"mlp\.act_fn is a Tanh, not a SiLU",
    other_eps: r"input_layernorm\.variance_epsilon is 0\.5, not 1e-06",
    other_scale: r"self_attn\.scaling is 1\.0, not 0\.28",
    other_width: r"down_proj\.weight has the shape \(48, 7\), not \(48, 96\)",
    other_config: r"act_fn is a SiLU\w*, not a ReLU",
    parametrized: r"up_proj is a ParametrizedLinear, not a Linear",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_fault_A5_what_is_not_in_the_config_is_refused_by_name(
    tiny: Any, change: Callable[[Any], None]
) -> None:
    model = tiny.copy("tiny-llama")
    change(model)
    before = snapshot(model)
    with pytest.raises(InvalidInputError, match=CHANGES[change]) as refusal:
        edit(model, remove(Anatomy.of(model).blocks[2].mlp))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500
    assert unchanged(model, before)


def test_fault_A26_layers_that_share_are_refused_by_name(tiny: Any) -> None:
    whole, one, outside = (tiny.copy("tiny-llama") for _ in range(3))
    whole.model.layers[2].mlp = whole.model.layers[0].mlp
    one.model.layers[3].self_attn.k_proj.weight = one.model.layers[1].self_attn.k_proj.weight
    outside.model.norm.weight = outside.model.layers[0].input_layernorm.weight
    for model, said in (
        (
            whole,
            r"layers\.0\.mlp\.\w+\.weight and model\.layers\.2\.mlp\.\w+\.weight are one tensor",
        ),
        (one, r"layers\.1\.self_attn\.k_proj\.weight and .*layers\.3.* are one tensor"),
        (outside, r"layers\.0\.input_layernorm\.weight and model\.norm\.weight are one tensor"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            edit(model, remove(Anatomy.of(model).blocks[1].mlp))


def test_fault_A26_a_head_that_lost_its_tie_is_refused(tiny: Any) -> None:
    model = tiny.copy("tiny-llama")
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(
        InvalidInputError, match=r"lm_head.weight and model.embed_tokens.weight are not one"
    ):
        edit(model, remove(Anatomy.of(model).blocks[1].mlp))


def test_fault_A5_every_preset_is_what_its_config_says(tiny: Any, preset: str) -> None:
    model = tiny.copy(preset)
    model(**batch_of(model), output_hidden_states=True)  # transformers keeps hooks for that
    check_as_configured(model)
    check_as_configured(edit(model, Change(), check=False).model)
    check_as_configured(edit(model, remove(Anatomy.of(model).blocks[1]), check=False).model)


def test_fault_A5_a_model_in_use_is_still_what_its_config_says(tiny: Any) -> None:
    model = tiny.copy("tiny-gpt2").train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    check_as_configured(model)


@pytest.mark.parametrize("architecture", ["metaformer", "smt", "vision_transformer"])
def test_fault_A5_image_models_alike(architecture: str) -> None:
    model = tiny_image_model(architecture)
    check_as_configured(model)
    block = Anatomy.of(model).blocks[0]
    block.module.register_forward_hook(lambda module, args, output: None)
    with pytest.raises(InvalidInputError, match=r"has a forward hook"):
        edit(model, remove(Anatomy.of(model).blocks[1]))


def test_fault_A5_where_a_model_came_from_is_no_difference(tiny: Any) -> None:
    model = copy.deepcopy(tiny("tiny-llama"))
    model.model.name_or_path = model.name_or_path = "None"
    check_as_configured(model)
