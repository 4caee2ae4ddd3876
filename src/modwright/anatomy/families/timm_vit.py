"""ViT and DeiT of timm: recognized by their modules, in the wrapper that transformers has for timm.

A bare timm model has no config, so it is put into transformers' wrapper; both hold the same
weights. The wrapper's config names an architecture of timm; what a live model has that its name
does not say (another width, depth, image size) is written there, see `timm_modules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family, Placement, mlp_width
from modwright.anatomy.families.table import paths
from modwright.anatomy.families.timm_modules import (
    SPELLED_OUT,
    activation_of,
    arguments_of,
    is_of_timm,
    ratio,
    reason_against,
    wrap,
)
from modwright.anatomy.inputs import Images
from modwright.anatomy.projection import Projection
from modwright.anatomy.views import Embedding, Part, PatchEmbedding
from modwright.core.errors import InvalidInputError, UnsupportedArchitecture
from modwright.nn import AttentionShape

__all__ = ["TimmVit"]


@register_family
class TimmVit(Family):
    name = "timm_vit"
    model_types = ("timm_wrapper",)
    block = {
        **paths("attention", "attn", "norm1", q="qkv", k="qkv", v="qkv", o="proj"),
        "attention_gain": "ls1",
        **paths("mlp", "mlp", "norm2", up="fc1", down="fc2"),
        "mlp_gain": "ls2",
    }
    convention = "timm"
    pairs = False
    causal = False
    config_fields = {
        "num_layers": "depth",
        "hidden_size": "embed_dim",
        "num_heads": "num_heads",
        "intermediate_size": "mlp_ratio",
    }
    outer = {
        "embed": "timm_model.patch_embed.proj",
        "positions": "timm_model",
        "embed_norm": "timm_model.norm_pre",
        "blocks": "timm_model.blocks",
        "final_norm": "timm_model.norm",
        "pooled_norm": "timm_model.fc_norm",
    }

    def __init__(self, config: Any, vit: Any = None) -> None:
        super().__init__(config)
        self.vit = vit
        self._arguments: dict[str, Any] = dict(config.model_args or {})

    @classmethod
    def wrap(cls, model: nn.Module) -> nn.Module | None:
        if not is_of_timm(model):
            return None
        _require_plain(model, f"{type(model).__name__} of timm")
        return wrap(model)

    def fitting(self, model: nn.Module) -> Family:
        """With the numbers of a live model, which the config may leave to timm."""
        vit: Any = model.timm_model
        _require_plain(vit, f"timm's {self.config.architecture!r} ({type(vit).__name__})")
        fitted = TimmVit(self.config, vit)
        fitted._arguments = {**arguments_of(vit), **fitted._arguments}
        fitted.outer = {a: path for a, path in self.outer.items() if _is_there(model, path)}
        return fitted

    # What the config says

    def get(self, word: str, default: Any = None) -> Any:
        known = self._arguments
        if word == "intermediate_size":
            told = "mlp_ratio" in known and "embed_dim" in known
            return int(known["embed_dim"] * known["mlp_ratio"]) if told else default
        return known.get(self.config_fields.get(word, ""), default)

    def put(self, config: Any, word: str, value: Any) -> None:
        """Every number that edits may change is spelled out with it."""
        if word == "intermediate_size":
            value = ratio(value, self.get("hidden_size"))
        if name := self.config_fields.get(word):
            spelled = {key: self._arguments[key] for key in SPELLED_OUT}
            self.write_live_fields(config)
            config.model_args = {**spelled, **config.model_args, name: value}

    def write_live_fields(self, config: Any) -> None:
        """The size of images, which timm can change in a live model."""
        live = {} if self.vit is None else arguments_of(self.vit)
        size = {name: live[name] for name in ("img_size", "patch_size") if name in live}
        config.model_args = {**(config.model_args or {}), **size}

    def inputs(self) -> Images:
        """Patches, and the tokens that stand before them."""
        embed = self._live().patch_embed
        return Images(
            embed.proj.in_channels,
            tuple(embed.img_size),
            tuple(embed.patch_size),
            int(self._live().num_prefix_tokens),
        )

    def _live(self) -> Any:
        if self.vit is None:
            raise InvalidInputError(
                "what a timm model reads is known of the model, not of its config"
            )
        return self.vit

    def pools(self, model: nn.Module) -> bool:
        """The classifier reads one vector of each image."""
        return getattr(self._live(), "num_classes", 0) > 0

    def returns_stream(self, model: nn.Module) -> bool:
        """Without a classifier the wrapper returns what stands before the pooling."""
        return "pooled_norm" in self.outer and not self.pools(model)

    # Reading parts

    def backbone(self, model: nn.Module) -> nn.Module:
        """The wrapper, which is called as transformers' models are."""
        return model

    def read_outer(self, model: nn.Module) -> dict[str, Part]:
        parts = super().read_outer(model)
        patches = model.get_submodule(self.outer["embed"])
        # Class token, registers and positions are parameters of the model itself.
        return {
            **parts,
            "embed": PatchEmbedding(patches, "embed", self._live().patch_embed.num_patches),
            "positions": Embedding(self._live(), "positions"),
        }

    def read_qkv(self, block: nn.Module, module: Any, address: str) -> dict[str, Projection]:
        return self.side_by_side(module.qkv, module.qkv.out_features // 3, address)

    def attention_shape(
        self, module: Any, projections: Mapping[str, Projection], **given: Any
    ) -> AttentionShape:
        head_dim = projections["q"].out_features // module.num_heads
        # The fused function takes its own factor and does not ask the module for one.
        scaling = head_dim**-0.5 if module.fused_attn else module.scale
        rates = {"dropout": module.attn_drop.p, "output_dropout": module.proj_drop.p}
        return super().attention_shape(
            module, projections, head_dim=head_dim, scaling=scaling, **rates
        )

    def read_mlp(self, block: nn.Module, address: str) -> dict[str, Any]:
        activation = activation_of(block.get_submodule("mlp.act"))
        return {**super().read_mlp(block, address), "activation": activation}

    # Placing parts

    def has_gain(self, role: str) -> bool:
        return self.vit is None or hasattr(self.vit.blocks[0], self.block[f"{role}_gain"])

    def place_outside(
        self, model: nn.Module, role: str, part: str, kwargs: dict[str, Any]
    ) -> list[Placement]:
        if role == "positions" and part != "narrowed":  # which alters them where they are
            raise InvalidInputError(
                "the positions of a timm model are parameters of its own, not a module"
            )
        return super().place_outside(model, role, part, kwargs)

    def stock_class_guard(self, role: str, kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """In timm's own arguments: it cannot build a model from one that is a list."""
        shape, outer = kwargs or {}, role.partition(".")[0]
        name, now = "mlp_ratio", 0.0
        if outer == "attention":
            name, now = "num_heads", shape.get("num_heads", 0)
        elif outer == "mlp":
            hidden_size = int(self.get("hidden_size"))
            width = mlp_width(shape, hidden_size)
            now = 0 if width is None else ratio(width, hidden_size)
        if not now or now == self._arguments.get(name):
            return {f"model_args.{name}": 0, "skip": [outer]}
        return {f"model_args.{name}": now}


def _require_plain(vit: nn.Module, named: str) -> None:
    reason = reason_against(vit)
    if reason:
        raise UnsupportedArchitecture(f"{named} is no ViT that can be edited: {reason}")


def _is_there(model: nn.Module, path: str) -> bool:
    """timm puts an identity where a variant has no norm."""
    try:
        return not isinstance(model.get_submodule(path), nn.Identity)
    except AttributeError:
        return False
