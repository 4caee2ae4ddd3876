"""Models of images that are made of ``modwright.nn.block.Block``: plain stacks and pyramids.

A model is known by its blocks, whatever its config calls it, so that an architecture of a user's
own is opened as those of this library are. Blocks come in the order of the forward pass. What mixes
tokens stands at a block's "attention", whatever it is. Blocks of a pyramid have other modules
between them, which make maps coarser, so widths and numbers of positions differ between blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.between import around, part_at, split_step
from modwright.anatomy.families.family import Family, Placement
from modwright.anatomy.families.staged import keep_in_stages
from modwright.anatomy.families.table import paths
from modwright.anatomy.families.timm_modules import activation_of, ratio
from modwright.anatomy.inputs import Images, pair
from modwright.anatomy.projection import Projection, linear_layer, stored_in
from modwright.anatomy.views import (
    Block,
    Embedding,
    Layout,
    Linear,
    Norm,
    OpaqueModule,
    Part,
    PatchEmbedding,
)
from modwright.core.errors import InvalidInputError, UnsupportedArchitecture
from modwright.nn import FeedForward, GroupedAttention
from modwright.nn.block import Block as VisionBlock
from modwright.nn.channel_mixers.mlp import Mlp as VisionMlp
from modwright.nn.grid_positions import LearnedTable, PrefixTokens
from modwright.nn.token_mixers.self_attention import STORAGE, SelfAttention

__all__ = ["HierarchicalVisionFamily", "VisionFamily"]


@register_family
class VisionFamily(Family):
    """Plain stacks: every block has tokens of one grid and one width."""

    name = "vision"
    model_types: ClassVar[tuple[str, ...]] = ()
    staged: ClassVar[bool] = False
    outer: Mapping[str, str] = {"blocks": "blocks"}
    block = {
        **paths("attention", "mixer", "norm1", o="proj"),
        "attention_gain": "ls1",
        **paths("mlp", "mlp", "norm2", up="fc1", down="fc2"),
        "mlp_gain": "ls2",
    }
    convention = "modwright"
    pairs = False
    config_fields: ClassVar[Mapping[str, str]] = {
        "num_layers": "depths",
        "hidden_size": "hidden_size",
        "num_heads": "num_heads",
        "num_kv_heads": "",
        "head_dim": "",
        "intermediate_size": "mlp_ratio",
        "activation": "act",
    }
    counts_by_running = True
    causal = False

    def __init__(self, config: Any, model: nn.Module | None = None) -> None:
        super().__init__(config)
        self._live: Any = model
        self._roots = [] if model is None else self.layer_paths(model)
        self._beside: Mapping[int, Mapping[str, str]] = {}

    @classmethod
    def recognizes(cls, model: nn.Module) -> bool:
        """It has blocks, in lists that lie in lists of stages or not."""
        in_lists = [sum(map(str.isdigit, path.split("."))) for path in _found(model)]
        return bool(in_lists) and (max(in_lists) > 1) == cls.staged

    def fitting(self, model: nn.Module) -> Family:
        fitted = type(self)(self.config, model)
        children = [name for name, _ in model.named_children()]
        holders = [root.partition(".")[0] for root in fitted._roots]
        at = children.index(holders[0]) if holders else len(children)
        # A second list of blocks is part of what the first one begins.
        later = [name for name in children[at:] if name not in holders]
        outer: dict[str, str] = {}
        for name in children[:at]:
            outer |= _named(model, name)
        outer["blocks"] = "blocks"
        around_them = around(model, list(_found(model)))
        fitted.between = dict(around_them.between)
        fitted.stage_starts, fitted._beside = around_them.starts, around_them.beside
        # The norm that closes the last stage is the last norm.
        closing = fitted.between.pop(f"between.{len(around_them.starts)}.norm", None)
        if closing is not None:
            outer["final_norm"] = closing
        for name in later:
            outer |= _named(model, name)
        fitted.outer = outer
        return fitted

    @property
    def _is_plain(self) -> bool:
        """The blocks are one list, which the config has a number for."""
        return all(re.fullmatch(r"blocks\.\d+", root) for root in self._roots)

    @property
    def chained(self) -> bool:
        """TNT adds words between its blocks; the rest hand their tokens on."""
        return self._is_plain and not self._nested

    @property
    def _nested(self) -> bool:
        """Whether blocks hold a second stream; its MLPs have the ratio of theirs."""
        blocks = (self._live.get_submodule(root) for root in self._roots)
        return any(getattr(block, "inner", None) is not None for block in blocks)

    # What the config says

    def get(self, word: str, default: Any = None) -> Any:
        if word == "intermediate_size":
            told = getattr(self.config, "mlp_ratio", None)
            width = self.get("hidden_size")
            return default if told is None or width is None else int(width * told)
        return super().get(word, default)

    def put(self, config: Any, word: str, value: Any) -> None:
        if word == "intermediate_size":
            width = self.get("hidden_size")
            if width is not None and not self._nested:
                super().put(config, word, ratio(value, width))
        elif hasattr(config, self.field(word)):
            super().put(config, word, value)

    def keep_blocks(self, config: Any, kept: Sequence[int]) -> None:
        """Fewer blocks, where the config can say which."""
        if list(kept) == list(range(len(self._roots))):
            return
        if not hasattr(config, "depths") or not self._is_plain:
            raise _no_number(config)
        config.depths = len(kept)

    def layout(self, block: nn.Module) -> Layout:
        if getattr(block, "post_norm", False):
            raise UnsupportedArchitecture(
                f"{self.config.model_type}: blocks normalize what their mixers return"
            )
        return "pre"

    def inputs(self) -> Images:
        """Images of the size that the config says; a plain stack cuts them into patches."""
        config, live = self.config, self._live
        size = pair(config.size if hasattr(config, "size") else config.image_size)
        channels = getattr(config, "num_channels", 3)
        if self.chained and hasattr(live, "feature_info"):
            patch = (live.feature_info[0]["reduction"],) * 2
            return Images(channels, size, patch, live.num_prefix_tokens)
        return Images(channels, size, size)

    def token_grid(self) -> None:
        """Blocks tell it."""

    def pools(self, model: nn.Module) -> bool:
        return True

    # Paths

    def backbone(self, model: nn.Module) -> nn.Module:
        return model

    def layer_paths(self, model: nn.Module) -> list[str]:
        """Paths of what goes when a block goes: itself, or what is nested around it."""
        return [path.removesuffix(".outer") for path in _found(model)]

    def layers(self, model: nn.Module) -> list[nn.Module]:
        return list(_found(model).values())

    def cache_layer_owner(self, block: nn.Module) -> nn.Module | None:
        return None

    # Reading parts

    @staticmethod
    def axis(module: Any, usual: int = -1) -> int:
        layout: Any = getattr(module, "layout", None)
        return {"map": 1, "tokens": -1}.get(layout, usual)

    def read_block(self, module: Any, index: int) -> Block:
        """With what scales its residuals, and what stands beside it in its stage."""
        block = super().read_block(module, index)
        scaling = {f"{role}_residual": getattr(module, f"res{n}") for role, n in _RESIDUALS}
        live: Any = self._live
        beside = self._beside.get(index, {})
        extras = {n: live.get_submodule(path) for n, path in beside.items()}
        for name, extra in {**scaling, **extras}.items():
            if extra is not None:
                block.extras[name] = part_at(extra, f"{block.address}.{name}")
        return block

    def read_outer(self, model: nn.Module) -> dict[str, Part]:
        parts: dict[str, Part] = {}
        for address, path in self.outer.items():
            module = None if address == "blocks" else model.get_submodule(path)
            if module is None or not any(True for _ in module.parameters()):
                continue
            if isinstance(module, nn.Conv2d):
                parts[address] = PatchEmbedding(module, address, None)
            elif isinstance(module, nn.Linear):
                parts[address] = Linear(module, address)
            elif isinstance(module, LearnedTable | PrefixTokens):
                parts[address] = Embedding(module, address)
            elif type(module).__name__.endswith("Norm"):
                parts[address] = Norm(module, address)
            else:
                parts[address] = OpaqueModule(module, address)
        return parts

    def read_parts(
        self, block: nn.Module, core: Any, role: str, address: str
    ) -> dict[str, Any] | None:
        """Those of plain softmax attention and of an MLP without anything inside."""
        if isinstance(core, GroupedAttention | FeedForward):
            return self._read_own(block, core, address)
        if role == "attention":
            return self._read_softmax(core, address)
        if type(core) is not VisionMlp or core.inside is not None or core.gate is not None:
            return None
        up, down = (
            linear_layer(layer, f"{address}.{role}")
            for role, layer in (("up", core.fc1), ("down", core.fc2))
        )
        if up is None or down is None:
            return None
        return {"up": up, "down": down, "activation": activation_of(core.act)}

    def _read_softmax(self, core: Any, address: str) -> dict[str, Any] | None:
        if type(core) is not SelfAttention or core.gate is not None or core.bias is not None:
            return None
        maps = {name: core.get_submodule(name) for name in STORAGE[core.storage]}
        out = linear_layer(core.proj, f"{address}.o")
        plain = core.width == core.dim and all(type(m) is nn.Linear for m in maps.values())
        if out is None or not plain:
            return None
        width, views = core.width, {"o": out}
        for name, module in maps.items():
            for i, role in enumerate(name):
                rows = slice(i * width, (i + 1) * width) if len(name) > 1 else None
                views[role] = Projection(module, f"{address}.{role}", rows)
        shape = self.attention_shape(
            core,
            views,
            head_dim=width // core.num_heads,
            scaling=core.scale,
            output_dropout=core.proj_drop.p,
        )
        return {**views, "shape": shape}

    # Placing parts

    def place(
        self, block: nn.Module, role: str, part: str, kwargs: dict[str, Any]
    ) -> list[Placement]:
        """Blocks call a mixer with a tensor and its grid, and add what it returns."""
        outer, inside, _ = role.partition(".")
        core: Any = getattr(block, self.block.get(outer, outer), None) if inside else None
        said = None if core is None else stored_in(core, inside)
        on_maps = isinstance(core, VisionMlp) and core.layout == "map"
        if on_maps or (said and isinstance(core.get_submodule(said), nn.Conv2d)):
            if part != "linear":
                raise InvalidInputError(
                    f"{role} is a 1 x 1 convolution; {part!r} cannot stand for it"
                )
            part = "pointwise"
        return super().place(block, role, part, kwargs)

    def has_gain(self, role: str) -> bool:
        blocks = [] if self._live is None else self.layers(self._live)
        gain = self.block[f"{role}_gain"]
        return any(getattr(block, gain, None) is not None for block in blocks)

    def stock_class_guard(self, role: str, kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """Nothing: these configs are read by modwright alone, and stock ones refuse edits."""
        return {}


@register_family
class HierarchicalVisionFamily(VisionFamily):
    """Stages of blocks, each with maps coarser than those of the one before."""

    name = "hierarchical_vision"
    staged = True
    outer = {"blocks": "stages"}
    config_fields = {"num_layers": "depths", "activation": "act"}

    @property
    def chained(self) -> bool:
        """Maps are made coarser in between."""
        return False

    def get(self, word: str, default: Any = None) -> Any:
        if word == "num_layers":
            depths = getattr(self.config, "depths", None)
            return len(self._roots) if self._roots or depths is None else sum(depths)
        if word == "hidden_size":
            widths = getattr(self.config, "hidden_sizes", None)
            return Family.get(self, word, default) if widths is None else widths[-1]
        return Family.get(self, word, default) if word == "activation" else default

    def put(self, config: Any, word: str, value: Any) -> None:
        """Widths of a pyramid differ from stage to stage; no single number says them."""

    def keep_blocks(self, config: Any, kept: Sequence[int]) -> None:
        """Fewer blocks per stage, where the config has a number for each stage."""
        if list(kept) == list(range(len(self._roots))):
            return
        keep_in_stages(config, self._roots, kept, self.layers(self._live))


def _no_number(config: Any) -> InvalidInputError:
    return InvalidInputError(
        f"whole blocks of a {config.model_type} cannot be removed or moved: its config has "
        "no number for them; remove their attention and mlp instead"
    )


def _found(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks by their paths, in the order in which modules were made."""
    modules = model.named_modules(remove_duplicate=False)
    return {
        path: module
        for path, module in modules
        if isinstance(module, VisionBlock) and not path.endswith(".inner")
    }


_NAMES = {"stem": "embed", "norm": "final_norm", "head": "classifier", "blocks": "other_blocks"}
_RESIDUALS = (("attention", 1), ("mlp", 2))


def _named(model: nn.Module, child: str) -> dict[str, str]:
    """Address -> path of what stands outside the blocks; a stem of a map and its norm is two."""
    name = _NAMES.get(child, child)
    steps = split_step(model, child) if list(model.get_submodule(child).parameters()) else {}
    if set(steps) == {"map", "map_norm"}:
        return {name: steps["map"], f"{name}_norm": steps["map_norm"]}
    return {name: _whole_of(model, child)}


def _whole_of(model: nn.Module, path: str) -> str:
    """Path of the one map that holds all parameters of a module; its own where there is none."""
    module = model.get_submodule(path)
    for name, inner in module.named_modules():
        one = isinstance(inner, nn.Linear | nn.Conv2d) and name
        if one and len(list(inner.parameters())) == len(list(module.parameters())):
            return f"{path}.{name}"
    return path
