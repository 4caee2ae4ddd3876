"""Stages of blocks: which config fields count them, and image models of transformers with stages.

Maps are coarser and wider in each stage, so widths and positions differ from block to block.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from modwright.anatomy.families.between import around
from modwright.anatomy.families.heads import FamilyWithHeads
from modwright.anatomy.inputs import Images, pair
from modwright.core.capture import HookPoint
from modwright.core.errors import InvalidInputError

__all__ = ["StagedFamily", "keep_in_stages"]


def keep_in_stages(config: Any, roots: Sequence[str], kept: Sequence[int], layers: Any) -> None:
    """Lets the ``depths`` of a config say which blocks stand in each stage, or refuses.

    Args:
        config: lists in it with an entry for each stage, and for each block in those, follow.
        roots: paths of the blocks that there are, as in ``stages.1.blocks.0``.
        kept: those that stay, in their order.
        layers: the modules of the blocks.

    Raises:
        InvalidInputError: ``depths`` does not count them, a stage would be empty, a block would
            move to another stage, or to a place where its windows stand otherwise.
    """
    found = [re.fullmatch(r"\D+\.(\d+)\.blocks\.(\d+)", root) for root in roots]
    coordinates = [(int(m[1]), int(m[2])) for m in found if m is not None]
    counted = Counter(stage for stage, _ in coordinates)
    depths = [counted[s] for s in sorted(counted)]
    if len(coordinates) < len(found) or depths != list(getattr(config, "depths", ())):
        raise InvalidInputError(
            f"whole blocks of a {config.model_type} cannot be removed or moved: its config has "
            "no number for them; remove their attention and mlp instead"
        )
    stages = [coordinates[i][0] for i in kept]
    gone = set(counted) - set(stages)
    if gone:
        raise InvalidInputError(
            f"stage {min(gone)} would be left without a block; remove the attention and mlp of "
            "its last one instead"
        )
    if stages != sorted(stages):
        raise InvalidInputError("a block stays in its stage: other stages have maps of other sizes")
    for new, old in enumerate(kept):
        first = stages.index(stages[new])
        if (new - first - coordinates[old][1]) % 2 and _moves_windows(layers[old]):
            raise InvalidInputError(
                f"block {old} would stand where windows are moved otherwise: every second block of "
                "a stage moves them; remove its attention and mlp instead"
            )
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == len(config.depths):
            rows = [
                [row[coordinates[i][1]] for i in kept if coordinates[i][0] == s]
                if isinstance(row, list | tuple) and len(row) == config.depths[s]
                else row
                for s, row in enumerate(value)
            ]
            setattr(config, name, rows)
    config.depths = [stages.count(s) for s in sorted(counted)]


def _moves_windows(block: nn.Module) -> bool:
    """Windows of a block are moved, or not, by its place in the stage."""
    return any(hasattr(part, "shift") or hasattr(part, "shift_size") for part in block.modules())


class StagedFamily(FamilyWithHeads):
    """Image models of transformers: stages of blocks below one list, attention in windows.

    Class attributes:
        stages: path of the list of stages in the backbone; each has ``blocks``.
        blocker: why heads of its attention cannot go one by one.
    """

    stages: ClassVar[str] = "encoder.layers"
    blocker: ClassVar[str]
    config_fields: ClassVar[Mapping[str, str]] = {
        "num_layers": "depths",
        "intermediate_size": "mlp_ratio",
    }
    reshapes_attention = True
    counts_by_running = True
    maps_by_layer = False
    causal = False

    def __init__(self, config: Any, model: nn.Module | None = None) -> None:
        super().__init__(config, model)
        self._roots: list[str] = [] if model is None else self._own_paths(model)
        if model is not None:
            found = around(self.backbone(model), self._roots)
            self.between, self.stage_starts = dict(found.between), found.starts

    def _own_paths(self, model: nn.Module) -> list[str]:
        """Paths of the blocks in the backbone."""
        holder: Any = self.backbone(model).get_submodule(self.stages)
        return [
            f"{self.stages}.{s}.blocks.{b}"
            for s, stage in enumerate(holder)
            for b, _ in enumerate(stage.blocks)
        ]

    # What the config says

    def get(self, word: str, default: Any = None) -> Any:
        if word == "num_layers":
            return sum(self.config.depths)
        # Numbers of heads and widths differ from stage to stage.
        return super().get(word, default) if word in ("hidden_size", "activation") else default

    def put(self, config: Any, word: str, value: Any) -> None:
        """No single number says what differs from stage to stage."""

    def keep_blocks(self, config: Any, kept: Sequence[int]) -> None:
        if list(kept) != list(range(len(self._roots))):
            keep_in_stages(config, self._roots, kept, self._live_layers())

    def _live_layers(self) -> list[nn.Module]:
        return [] if self.live is None else self.layers(self.live)

    def stock_class_guard(self, role: str, kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """The one number of a layer that the config has for all: a list of it no class takes."""
        return {"mlp_ratio": 0, "skip": [role.partition(".")[0]]}

    def inputs(self) -> Images:
        size = pair(self.config.image_size)
        return Images(self.config.num_channels, size, size)

    def pools(self, model: nn.Module) -> bool:
        return True

    @property
    def chained(self) -> bool:
        """Maps are made coarser in between."""
        return False

    # Paths

    def layer_paths(self, model: nn.Module) -> list[str]:
        return [self.prefix(model) + path for path in self._own_paths(model)]

    def layers(self, model: nn.Module) -> list[nn.Module]:
        return [model.get_submodule(path) for path in self.layer_paths(model)]

    # Reading parts

    def read_attention(self, block: nn.Module, module: Any, address: str) -> dict[str, Any]:
        maps = self.read_qkv(block, module, address)
        maps["o"] = self.projection(block, "attention.o", f"{address}.o")
        return {"maps": maps, "blocker": self.blocker}

    def _hook_points(self, block: Any, role: str, layout: Any) -> dict[str, Any]:
        """Where tokens stand in the order of the grid: an attention sees them window by window."""
        found = super()._hook_points(block, role, layout)
        core, norm = (block.get_submodule(self.block[r]) for r in (role, f"{role}_norm"))
        if layout == "res-post":
            start = HookPoint(block if role == "attention" else core, "input")
            return {**found, "resid_pre": start, "sublayer_input": start, **_out(norm)}
        if role == "mlp":
            return found
        return {**found, "sublayer_input": HookPoint(norm, "output"), **_out(block.drop_path)}


def _out(module: nn.Module) -> dict[str, HookPoint]:
    return {"sublayer_output": HookPoint(module, "output")}
