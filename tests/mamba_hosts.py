"""Language models of transformers whose mixers are those of modwright, under the same names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

from modwright.nn.token_mixers.mamba1 import Mamba1
from modwright.nn.token_mixers.mamba2 import Mamba2

__all__ = ["MODELS", "called_as_theirs", "mixer_like", "random_model", "with_our_mixers"]

MODELS = {
    "mamba": (MambaConfig, MambaForCausalLM),
    "mamba2": (Mamba2Config, Mamba2ForCausalLM),
}


def mixer_like(config: Any) -> Any:
    """One of our mixers of the sizes that a config of transformers says."""
    options = {
        "d_model": config.hidden_size,
        "d_state": config.state_size,
        "d_conv": config.conv_kernel,
        "bias": config.use_bias,
        "conv_bias": config.use_conv_bias,
        "dt_min": config.time_step_min,
        "dt_max": config.time_step_max,
        "dt_init_floor": config.time_step_floor,
    }
    if config.model_type == "mamba":
        more = {"dt_rank": config.time_step_rank, "expand": config.expand}
        return Mamba1(**options, **more)
    low, high = config.time_step_limit
    return Mamba2(
        **options,
        n_heads=config.num_heads,
        head_dim=config.head_dim,
        n_groups=config.n_groups,
        chunk=config.chunk_size,
        dt_limit=[low, None if high == float("inf") else high],
        norm_eps=config.layer_norm_epsilon,
    )


def called_as_theirs(mixer: Any, layer: int) -> Any:
    """The mixer, called as transformers calls its own: it keeps its state in the model's cache."""
    plain = type(mixer).forward

    def forward(
        hidden_states: Tensor,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        slot = None if cache is None else cache.layers[layer]
        state = None
        if slot is not None and slot.has_previous_state[0]:
            state = {"conv": slot.conv_states[0], "ssm": slot.recurrent_states[0]}
        mask = None if attention_mask is None else attention_mask.bool()
        y, state = plain(mixer, hidden_states, state, mask)
        if slot is not None:
            if not slot.has_previous_state[0]:
                slot.lazy_initialization(
                    conv_states=state["conv"], recurrent_states=state["ssm"], state_idx=0
                )
            slot.conv_states[0].copy_(state["conv"])
            slot.recurrent_states[0].copy_(state["ssm"])
            slot.has_previous_state[0] = True
        out: Tensor = y
        return out

    mixer.forward = forward
    return mixer


def with_our_mixers(model: Any) -> Any:
    """Puts our mixers with the same weights into a model of transformers, in place."""
    for index, block in enumerate(model.backbone.layers):
        mixer = mixer_like(model.config)
        mixer.load_state_dict(block.mixer.state_dict())
        block.mixer = called_as_theirs(mixer.train(block.training), index)
    return model


def random_model(kind: str, seed: int = 0, **fields: Any) -> Any:
    """A small language model with random weights in all of its tensors."""
    config, model = MODELS[kind]
    torch.manual_seed(seed)
    small: dict[str, Any] = {"vocab_size": 31, "hidden_size": 24, "state_size": 8}
    small |= {"num_hidden_layers": 2, **fields}
    if kind == "mamba2":
        small = {"num_heads": 6, "head_dim": 8, "n_groups": 2, "chunk_size": 8, **small}
    made = model(config(**small))
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if not name.endswith(("A_log", "dt_bias", "dt_proj.bias")):
                tensor.add_(0.2 * torch.randn_like(tensor))
    return made.eval()
