"""Models of images that are made of ``modwright.nn.Block``: plain stacks and pyramids.

Blocks are found by their class, wherever a model holds them, in the order of the forward pass. What
mixes tokens stands at a block's place "attention", whatever it is; so it can be counted, removed
and replaced. It is read as an attention, head by head, where it is plain softmax attention.

Blocks of a pyramid are no chain: maps are made coarser between them, so widths and numbers of
positions differ from block to block.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family, Placement
from modwright.anatomy.families.timm_arguments import ratio
from modwright.anatomy.families.vision_parts import READERS, outer_part
from modwright.anatomy.inputs import Images, Maps
from modwright.anatomy.views import (
    Attention,
    Block,
    LayerScale,
    Layout,
    Mlp,
    Norm,
    OpaqueMixer,
    Part,
)
from modwright.core.capture import HookPoint
from modwright.core.errors import InvalidInputError, UnsupportedArchitecture
from modwright.nn import ZeroModule
from modwright.nn.block import Block as VisionBlock
from modwright.nn.channel_mixers.mlp import Mlp as VisionMlp

__all__ = ["HierarchicalVisionFamily", "VisionFamily"]

_PLACES = {"attention": ("mixer", "norm1", "ls1"), "mlp": ("mlp", "norm2", "ls2")}
"""Place -> names in a block of its mixer, of the norm before it and of the gain behind it."""

_BARE = {
    "attention": "grid_attention",
    "absent_attention": "absent",
    "token_mixer": "bare_token_mixer",
}
_ON_MAPS = {"linear": "pointwise"}


@register_family
class VisionFamily(Family):
    """Plain stacks: every block has tokens of one grid and one width."""

    name = "vision"
    model_types: ClassVar[tuple[str, ...]] = ("vision_transformer", "t2t_vit", "tnt", "duoformer")
    outer: Mapping[str, str] = {"blocks": "blocks"}
    block = {
        "attention": "mixer",
        "attention.o": "mixer.proj",
        "attention_norm": "norm1",
        "mlp": "mlp",
        "mlp.up": "mlp.fc1",
        "mlp.down": "mlp.fc2",
        "mlp_norm": "norm2",
    }
    config_fields: ClassVar[Mapping[str, str]] = {
        "num_layers": "depths",
        "hidden_size": "hidden_size",
        "num_heads": "num_heads",
        "intermediate_size": "mlp_ratio",
        "activation": "act",
    }
    counts_by_running = True
    pairs = False

    def __init__(self, config: Any, model: nn.Module | None = None) -> None:
        super().__init__(config)
        self._live: Any = model
        self._roots = [] if model is None else _roots(model)

    def fitting(self, model: nn.Module) -> Family:
        fitted = type(self)(self.config, model)
        children = [name for name, _ in model.named_children()]
        holders = [root.partition(".")[0] for root in fitted._roots]
        at = children.index(holders[0]) if holders else len(children)
        # A second list of blocks is part of what the first one begins.
        later = [name for name in children[at:] if name not in holders]
        names = {"stem": "embed", "norm": "final_norm", "head": "classifier"}
        places = [*children[:at], "blocks", *later]
        fitted.outer = {
            names.get(name, name): name if name == "blocks" else _whole_of(model, name)
            for name in places
        }
        return fitted

    @property
    def chained(self) -> bool:
        """TNT adds words between its blocks; the rest hand their tokens on."""
        plain = all(re.fullmatch(r"blocks\.\d+", root) for root in self._roots)
        return plain and not self._nested

    @property
    def _nested(self) -> bool:
        """Whether blocks hold a second stream; its MLPs have the ratio of theirs."""
        inner = (getattr(self._module(root), "inner", None) for root in self._roots)
        return any(part is not None for part in inner)

    def _module(self, path: str) -> nn.Module:
        found: nn.Module = self._live.get_submodule(path)
        return found

    # What the config says

    def get(self, word: str, default: Any = None) -> Any:
        if word == "intermediate_size":
            told = getattr(self.config, "mlp_ratio", None)
            width = self.get("hidden_size")
            return default if told is None or width is None else int(width * told)
        if word in ("num_kv_heads", "head_dim"):
            return default
        return super().get(word, default)

    def put(self, config: Any, word: str, value: Any) -> None:
        width = self.get("hidden_size")
        if word == "intermediate_size" and width is not None and not self._nested:
            super().put(config, word, ratio(value, width))
        elif word != "intermediate_size" and hasattr(config, self.field(word)):
            super().put(config, word, value)

    def keep_blocks(self, config: Any, kept: Sequence[int]) -> None:
        """Fewer blocks, where the config can say which."""
        if list(kept) == list(range(len(self._roots))):
            return
        if not hasattr(config, "depths") or not all(
            re.fullmatch(r"blocks\.\d+", root) for root in self._roots
        ):
            raise InvalidInputError(
                f"whole blocks of a {config.model_type} cannot be removed or moved: its config has "
                "no number for them; remove their attention and mlp instead"
            )
        config.depths = len(kept)

    def is_causal(self) -> bool:
        return False

    def layout(self, block: nn.Module) -> Layout:
        if getattr(block, "post_norm", False):
            raise UnsupportedArchitecture(
                f"{self.config.model_type}: blocks normalize what their mixers return"
            )
        return "pre"

    def inputs(self) -> Images:
        """Images of the size that the config says; a plain stack cuts them into patches."""
        config, live = self.config, self._live
        if live is not None and self.chained:
            stride = live.feature_info[0]["reduction"]
            extra = live.num_prefix_tokens
            return Images(config.num_channels, tuple(config.size), (stride, stride), extra)
        return Maps(config.num_channels, tuple(config.size), tuple(config.size))

    def pools(self, model: nn.Module) -> bool:
        return True

    # Paths

    def backbone(self, model: nn.Module) -> nn.Module:
        return model

    def prefix(self, model: nn.Module) -> str:
        return ""

    def layer_paths(self, model: nn.Module) -> list[str]:
        return _roots(model)

    def layers(self, model: nn.Module) -> list[nn.Module]:
        return [model.get_submodule(path) for path in _paths(model)]

    def cache_layer_owner(self, block: nn.Module) -> nn.Module | None:
        return None

    # Reading parts

    def read_outer(self, model: nn.Module) -> dict[str, Part]:
        parts: dict[str, Part] = {}
        for address, path in self.outer.items():
            module = None if address == "blocks" else model.get_submodule(path)
            if module is not None and any(True for _ in module.parameters()):
                parts[address] = outer_part(module, address)
        return parts

    def read_block(self, module: nn.Module, index: int) -> Block:
        here = f"blocks.{index}"
        read: dict[str, Any] = {"attention": None, "mlp": None}
        norms: dict[str, Norm] = {}
        others: dict[str, OpaqueMixer] = {}
        for place, (own, norm_name, scale_name) in _PLACES.items():
            part, norm = getattr(module, own), getattr(module, norm_name)
            if part is None or isinstance(part, ZeroModule):
                continue
            if norm is not None and not isinstance(norm, nn.Identity):
                norms[f"{place}_norm"] = Norm(norm, f"{here}.{place}_norm")
            scale = getattr(module, scale_name)
            if scale is not None and not isinstance(scale, nn.Identity):
                norms[f"{place}_gain"] = LayerScale(scale, f"{here}.{place}_gain")
            address = f"{here}.{place}"
            told = {
                "address": address,
                "module": part,
                "norm": norms.get(f"{place}_norm"),
                **self._hook_points(module, place, "pre"),
            }
            found = READERS[place](part, address)
            if found is None:
                others[place] = OpaqueMixer(**told)
            else:
                kind: Any = Attention if place == "attention" else Mlp
                read[place] = kind(**told, **found)
        return Block(
            index=index,
            module=module,
            layout=self.layout(module),
            norms=norms,
            others=others,
            axis=_axis(module),
            **read,
        )

    def _hook_points(self, block: Any, role: str, layout: Layout) -> dict[str, Any]:
        own, norm, scale = (getattr(block, name) for name in _PLACES[role])
        stream, inner = _axis(block), _axis(own, _axis(block))
        scaled = scale is not None and not isinstance(scale, nn.Identity)
        return {
            "resid_pre": HookPoint(norm, "input", stream),
            "sublayer_input": HookPoint(own, "input", inner),
            "sublayer_output": HookPoint(scale, "output", stream)
            if scaled
            else HookPoint(own, "output", inner),
            "resid_post": None,
        }

    # Placing parts

    def place(
        self, block: nn.Module, role: str, part: str, kwargs: dict[str, Any]
    ) -> list[Placement]:
        """Blocks call a mixer with a tensor and its grid, and add what it returns."""
        outer, scale, rest = role.partition("_gain")
        if scale and not rest and outer in _PLACES:
            return [(_PLACES[outer][2], part, kwargs)]
        placed = super().place(block, role, part, kwargs)
        core = getattr(block, _PLACES[role.partition(".")[0]][0], None) if "." in role else None
        if isinstance(core, VisionMlp) and core.layout == "map":
            if part not in _ON_MAPS:
                raise InvalidInputError(
                    f"{role} is a 1 x 1 convolution; {part!r} cannot stand for it"
                )
            return [(path, _ON_MAPS[name], given) for path, name, given in placed]
        return [(path, _BARE.get(name, name), given) for path, name, given in placed]

    def place_absent(self, role: str, drop_norm: bool) -> list[Placement]:
        self.check_removable(role)
        own, norm, scale = _PLACES[role]
        placed: list[Placement] = [(own, "absent", {}), (norm, "identity", {})]
        blocks = [] if self._live is None else self.layers(self._live)
        if any(getattr(block, scale, None) is not None for block in blocks):
            placed.append((scale, "identity", {}))
        return placed

    def stock_class_guard(self, role: str, kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """Nothing: these configs are read by modwright alone, and stock ones refuse edits."""
        return {}


@register_family
class HierarchicalVisionFamily(VisionFamily):
    """Stages of blocks, each with maps coarser than those of the one before."""

    name = "hierarchical_vision"
    model_types = ("metaformer", "smt", "sret", "fmvit", "craft", "swin_transformer")
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
        found = [re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)", root) for root in self._roots]
        places = [(int(m[1]), int(m[2])) for m in found if m is not None]
        counted = Counter(stage for stage, _ in places)
        whole = len(places) == len(self._roots) and hasattr(config, "depths")
        if not whole or [counted[s] for s in sorted(counted)] != list(config.depths):
            raise InvalidInputError(
                f"whole blocks of a {config.model_type} cannot be removed or moved: its config has "
                "no number for them; remove their attention and mlp instead"
            )
        stages = [places[i][0] for i in kept]
        gone = set(counted) - set(stages)
        if gone:
            raise InvalidInputError(
                f"stage {min(gone)} would be left without a block; remove the attention and mlp of "
                "its last one instead"
            )
        if stages != sorted(stages):
            raise InvalidInputError(
                "a block stays in its stage: other stages have maps of other sizes"
            )
        for name, value in vars(config).items():
            if isinstance(value, list | tuple) and len(value) == len(config.depths):
                rows = [
                    [row[places[i][1]] for i in kept if places[i][0] == s]
                    if isinstance(row, list | tuple) and len(row) == config.depths[s]
                    else row
                    for s, row in enumerate(value)
                ]
                setattr(config, name, rows)
        config.depths = [stages.count(s) for s in sorted(counted)]


def _paths(model: nn.Module) -> list[str]:
    """Paths of the blocks, in the order in which modules were made."""
    found = []
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, VisionBlock) and not path.endswith(".inner"):
            found.append(path)
    return found


def _roots(model: nn.Module) -> list[str]:
    """Paths of what goes when a block goes: itself, or what is nested around it."""
    return [path.removesuffix(".outer") for path in _paths(model)]


def _axis(part: Any, usual: int = -1) -> int:
    """Where the channels lie in what a part reads."""
    layout = getattr(part, "layout", None)
    return usual if layout is None else {"map": 1, "tokens": -1}[layout]


def _whole_of(model: nn.Module, path: str) -> str:
    """Path of the one map that holds all parameters of a module; its own where there is none."""
    module = model.get_submodule(path)
    for name, inner in module.named_modules():
        one = isinstance(inner, nn.Linear | nn.Conv2d) and name
        if one and len(list(inner.parameters())) == len(list(module.parameters())):
            return f"{path}.{name}"
    return path
