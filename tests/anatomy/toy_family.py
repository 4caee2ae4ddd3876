"""An architecture from outside: a transformers model with its own names, and its family.

It differs from the built-in families where they agree with each other: the names of everything, the
order of the fused map (values, keys, queries), a causal mask of its own as a boolean buffer, and a
config class with a constructor of its own.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from modwright.anatomy import Family, Projection, register_family

__all__ = ["Toy", "ToyConfig", "ToyForCausalLM", "ToyModel"]

# Outputs and generation call the cache by one name or by the other, as transformers is old or new.
CACHE = "cache"
if CACHE not in {field.name for field in fields(BaseModelOutputWithPast)}:
    CACHE = "past_key_values"


class ToyConfig(PreTrainedConfig):
    model_type = "toy"
    attribute_map = {
        "hidden_size": "width",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
    }

    def __init__(
        self,
        vocab_size: int = 64,
        width: int = 24,
        depth: int = 3,
        heads: int = 4,
        inner: int = 40,
        places: int = 64,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.width, self.depth = vocab_size, width, depth
        self.heads, self.inner, self.places = heads, inner, places
        super().__init__(**{"tie_word_embeddings": True, **kwargs})


class Mix(nn.Module):
    def __init__(self, config: ToyConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.heads, self.head_width = config.heads, config.width // config.heads
        self.scaling = self.head_width**-0.5
        self.wide = nn.Linear(config.width, 3 * config.width)
        self.back = nn.Linear(config.width, config.width)

    def forward(
        self, hidden_states: Tensor, cache: Any = None, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        b, t, width = hidden_states.shape
        v, k, q = (
            part.view(b, t, self.heads, self.head_width).transpose(1, 2)
            for part in self.wide(hidden_states).chunk(3, dim=-1)
        )
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        scores = (q @ k.transpose(-1, -2) * self.scaling).masked_fill(~attention_mask, -1e9)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, width)
        return self.back(mixed), None


class Feed(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.open = nn.Linear(config.width, config.inner)
        self.close = nn.Linear(config.inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.close(torch.relu(self.open(x)))


class Floor(nn.Module):
    def __init__(self, config: ToyConfig, layer_idx: int) -> None:
        super().__init__()
        self.before_mix, self.before_feed = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.mix, self.feed = Mix(config, layer_idx), Feed(config)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        x = x + self.mix(self.before_mix(x), **kwargs)[0]
        return x + self.feed(self.before_feed(x))


class ToyPreTrainedModel(PreTrainedModel):
    config_class = ToyConfig
    base_model_prefix = "house"

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ToyModel):
            n = self.config.places
            module.visible.copy_(torch.ones(n, n, dtype=torch.bool).tril())


class ToyModel(ToyPreTrainedModel):
    visible: Tensor

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.places = nn.Embedding(config.places, config.width)
        self.floors = nn.ModuleList(Floor(config, i) for i in range(config.depth))
        self.roof = nn.LayerNorm(config.width)
        square = torch.ones(config.places, config.places, dtype=torch.bool).tril()
        self.register_buffer("visible", square)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.words

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.words = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        cache = kwargs.get(CACHE, cache)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        past, length = (0 if cache is None else cache.get_seq_length()), input_ids.shape[1]
        if position_ids is None:
            position_ids = torch.arange(past, past + length)[None]
        x = self.words(input_ids) + self.places(position_ids)
        mask = self.visible[past : past + length, : past + length][None, None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None, : past + length].bool()
        for floor in self.floors:
            x = floor(x, cache=cache, attention_mask=mask)
        return BaseModelOutputWithPast(last_hidden_state=self.roof(x), **{CACHE: cache})


class ToyForCausalLM(ToyPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"speak.weight": "house.words.weight"}

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.house = ToyModel(config)
        self.speak = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.house.words

    def get_output_embeddings(self) -> nn.Linear:
        return self.speak

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.speak = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        cache = kwargs.get(CACHE, cache)
        found = self.house(input_ids, attention_mask, position_ids, cache, use_cache)
        logits = self.speak(found.last_hidden_state)
        return CausalLMOutputWithPast(logits=logits, **{CACHE: getattr(found, CACHE)})


AutoConfig.register("toy", ToyConfig)
AutoModel.register(ToyConfig, ToyModel)
AutoModelForCausalLM.register(ToyConfig, ToyForCausalLM)


@register_family
class Toy(Family):
    name = "toy"
    model_types = ("toy",)
    outer = {"embed": "words", "positions": "places", "blocks": "floors", "final_norm": "roof"}
    block = {
        "attention": "mix",
        "attention.o": "mix.back",
        "attention_norm": "before_mix",
        "mlp": "feed",
        "mlp.up": "feed.open",
        "mlp.down": "feed.close",
        "mlp_norm": "before_feed",
    }
    config_fields = {
        "num_layers": "depth",
        "hidden_size": "width",
        "intermediate_size": "inner",
        "num_heads": "heads",
    }
    presets = {"toy": {}}

    def get(self, word: str, default: Any = None) -> Any:
        return "relu" if word == "activation" else super().get(word, default)

    def read_attention(self, block: nn.Module, module: Any, address: str) -> dict[str, Any]:
        width = module.heads * module.head_width
        projections = {
            role: Projection(module.wide, f"{address}.{role}", slice(i * width, (i + 1) * width))
            for i, role in enumerate("vkq")
        }
        projections = {role: projections[role] for role in "qkv"}
        projections["o"] = self.projection(block, "attention.o", f"{address}.o")
        shape = self.attention_shape(module, projections, head_dim=module.head_width)
        return {**projections, "shape": shape}
