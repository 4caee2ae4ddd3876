"""ViT and DeiT of timm: recognized by their modules, in the wrapper that transformers has for timm.

A bare timm model has no config and no checkpoint of its own, so it is put into transformers'
wrapper; both hold the same weights. The wrapper's config names an architecture of timm and the
arguments that it is built with. What a live model has that its name does not say (another width,
depth, image size) is written there, see `timm_arguments`.

A branch of a block may have a gain for every channel (LayerScale) between its sublayer and the
stream. It is a part of the block, ``blocks.3.attention_gain``; what a sublayer returns is read
behind it. DropPath has no weights; its rate is the one that timm gives a block by its number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family, Placement
from modwright.anatomy.families.timm_arguments import SPELLED_OUT, arguments_of, ratio, wrap
from modwright.anatomy.families.timm_modules import activation_of, is_of_timm, reason_against
from modwright.anatomy.inputs import Images
from modwright.anatomy.projection import Projection
from modwright.anatomy.views import Block, Embedding, LayerScale, Layout, Part, PatchEmbedding
from modwright.core.capture import HookPoint
from modwright.core.errors import InvalidInputError, UnsupportedArchitecture
from modwright.nn import AttentionShape

__all__ = ["TimmVit"]

_INSIDE = "model_args"
"""The config's dictionary of arguments for timm."""


@register_family
class TimmVit(Family):
    name = "timm_vit"
    model_types = ("timm_wrapper",)
    block = {
        "attention": "attn",
        "attention.q": "attn.qkv",
        "attention.k": "attn.qkv",
        "attention.v": "attn.qkv",
        "attention.o": "attn.proj",
        "attention_norm": "norm1",
        "mlp": "mlp",
        "mlp.up": "mlp.fc1",
        "mlp.down": "mlp.fc2",
        "mlp_norm": "norm2",
    }
    pairs = False
    scales = {"attention": "ls1", "mlp": "ls2"}
    config_fields = {
        "num_layers": f"{_INSIDE}.depth",
        "hidden_size": f"{_INSIDE}.embed_dim",
        "num_heads": f"{_INSIDE}.num_heads",
        "intermediate_size": f"{_INSIDE}.mlp_ratio",
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
        reason = reason_against(model)
        if reason:
            raise UnsupportedArchitecture(
                f"{type(model).__name__} of timm is no ViT that can be edited: {reason}"
            )
        return wrap(model)

    def fitting(self, model: nn.Module) -> Family:
        """With the numbers of a live model, which the config may leave to timm."""
        vit: Any = model.timm_model
        reason = reason_against(vit)
        if reason:
            raise UnsupportedArchitecture(
                f"timm's {self.config.architecture!r} ({type(vit).__name__}) is no ViT that can be "
                f"edited: {reason}"
            )
        fitted = TimmVit(self.config, vit)
        fitted._arguments = {**arguments_of(vit), **fitted._arguments}
        paths = {address: path for address, path in self.outer.items() if _is_there(model, path)}
        fitted.outer = paths
        return fitted

    # What the config says

    def get(self, word: str, default: Any = None) -> Any:
        known = self._arguments
        if word == "intermediate_size":
            told = "mlp_ratio" in known and "embed_dim" in known
            return int(known["embed_dim"] * known["mlp_ratio"]) if told else default
        name = self.config_fields.get(word, "").removeprefix(f"{_INSIDE}.")
        return known.get(name, default)

    def put(self, config: Any, word: str, value: Any) -> None:
        """Every number that edits may change is spelled out with it."""
        name = self.config_fields.get(word, "").removeprefix(f"{_INSIDE}.")
        if word == "intermediate_size":
            value = ratio(value, self.get("hidden_size"))
        if name:
            spelled = {name: self._arguments[name] for name in SPELLED_OUT}
            config.model_args = {
                **spelled,
                **(config.model_args or {}),
                **self._size(),
                name: value,
            }

    def write_live_fields(self, config: Any) -> None:
        config.model_args = {**(config.model_args or {}), **self._size()}

    def _size(self) -> dict[str, Any]:
        """The size of images, which timm can change in a live model."""
        live = {} if self.vit is None else arguments_of(self.vit)
        return {name: live[name] for name in ("img_size", "patch_size") if name in live}

    def is_causal(self) -> bool:
        return False

    def layout(self, block: nn.Module) -> Layout:
        return "pre"

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

    def read_block(self, module: nn.Module, index: int) -> Block:
        block = super().read_block(module, index)
        for role, path in self.scales.items():
            scale = getattr(module, path, None)
            if scale is not None and not isinstance(scale, nn.Identity):
                block.norms[f"{role}_gain"] = LayerScale(scale, f"{block.address}.{role}_gain")
        return block

    def _hook_points(self, block: nn.Module, role: str, layout: Layout) -> dict[str, Any]:
        hook_points = super()._hook_points(block, role, layout)
        scale = getattr(block, self.scales[role], None)
        return (
            hook_points
            if scale is None
            else {**hook_points, "sublayer_output": HookPoint(scale, "output")}
        )

    def read_attention(self, block: nn.Module, module: Any, address: str) -> dict[str, Any]:
        width = module.qkv.out_features // 3
        projections = {
            role: Projection(module.qkv, f"{address}.{role}", slice(i * width, (i + 1) * width))
            for i, role in enumerate("qkv")
        }
        projections["o"] = self.projection(block, "attention.o", f"{address}.o")
        return {**projections, "shape": self.attention_shape(module, projections)}

    def attention_shape(
        self, module: Any, projections: Mapping[str, Projection], **given: Any
    ) -> AttentionShape:
        head_dim = projections["q"].out_features // module.num_heads
        # The fused function takes its own factor and does not ask the module for one.
        scaling = head_dim**-0.5 if module.fused_attn else float(module.scale)
        return AttentionShape(
            hidden_size=projections["q"].in_features,
            num_heads=module.num_heads,
            num_kv_heads=module.num_heads,
            qk_head_dim=head_dim,
            v_head_dim=head_dim,
            scaling=scaling,
            biases="".join(role for role, p in projections.items() if p.bias is not None),
            causal=False,
            dropout=float(module.attn_drop.p),
            output_dropout=float(module.proj_drop.p),
        )

    def read_mlp(self, block: nn.Module, address: str) -> dict[str, Any]:
        maps = {role: self.projection(block, f"mlp.{role}", f"{address}.{role}") for role in _MLP}
        return {**maps, "activation": activation_of(block.get_submodule("mlp.act"))}

    # Placing parts

    def place(
        self, block: nn.Module, role: str, part: str, kwargs: dict[str, Any]
    ) -> list[Placement]:
        """timm's blocks call an attention with a tensor and add what it returns."""
        outer, scale, rest = role.partition("_gain")
        if scale and not rest and outer in self.scales:
            return [(self.scales[outer], part, kwargs)]
        placed = super().place(block, role, part, kwargs)
        return [(path, _BARE.get(name, name), given) for path, name, given in placed]

    def place_absent(self, role: str, drop_norm: bool) -> list[Placement]:
        placed = super().place_absent(role, drop_norm)
        if self.vit is None or hasattr(self.vit.blocks[0], self.scales[role]):
            placed.append((self.scales[role], "identity", {}))
        return [(path, _BARE.get(name, name), given) for path, name, given in placed]

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
        shape = kwargs or {}
        outer = role.partition(".")[0]
        if outer == "attention":
            name, now = "num_heads", shape.get("num_heads", 0)
        else:
            name, now = "mlp_ratio", self._share(shape) if outer == "mlp" else 0
        if not now or now == self._arguments.get(name):
            return {f"{_INSIDE}.{name}": 0, "skip": [outer]}
        return {f"{_INSIDE}.{name}": now}

    def _share(self, shape: dict[str, Any]) -> float:
        """The ``mlp_ratio`` of an MLP; 0 where its arguments do not tell a width."""
        hidden_size = int(self.get("hidden_size"))
        names = ("in_features", "out_features", "intermediate_size")
        widths = {int(shape[name]) for name in names if name in shape} - {hidden_size}
        return ratio(widths.pop(), hidden_size) if len(widths) == 1 else 0


_MLP = ("up", "down")
_BARE = {
    "attention": "bare_attention",
    "absent_attention": "absent",
    "token_mixer": "bare_token_mixer",
}


def _is_there(model: nn.Module, path: str) -> bool:
    """timm puts an identity where a variant has no norm."""
    try:
        return not isinstance(model.get_submodule(path), nn.Identity)
    except AttributeError:
        return False
