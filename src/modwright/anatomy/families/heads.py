"""Image models of transformers whose heads are parts too."""

from __future__ import annotations

from typing import Any

from torch import nn

from modwright.anatomy.families.family import Family, Placement
from modwright.anatomy.views import Embedding, Linear, Norm, OpaqueModule, Part, PatchEmbedding

__all__ = ["FamilyWithHeads"]


class FamilyWithHeads(Family):
    """What lies behind the blocks, and outside of the backbone, is named as the model names it.

    A classifier is a linear layer; anything else is counted as a whole. So every parameter of every
    class of the family belongs to a part.

    Attributes:
        live: the model whose modules are named; None where only the config is known.
        heads: address -> path in the model.
    """

    def __init__(self, config: Any, model: nn.Module | None = None) -> None:
        super().__init__(config)
        self.live = model
        self.heads: dict[str, str] = {}
        if model is None:
            return
        backbone = self.backbone(model)
        there = dict(backbone.named_modules())
        outer = {a: path for a, path in self.outer.items() if path in there}
        known = {path.partition(".")[0] for path in outer.values()}
        beside = {n: c for n, c in backbone.named_children() if n not in known}
        behind = [(name, self.prefix(model) + name, child) for name, child in beside.items()]
        if backbone is not model:
            behind += [(name, name, child) for name, child in model.named_children()]
        self.heads = {
            address: path
            for address, path, module in behind
            if module is not backbone and list(module.parameters())
        }
        self.outer = {**outer, **self.heads}

    def fitting(self, model: nn.Module) -> Family:
        return type(self)(self.config, model)

    def read_outer(self, model: nn.Module) -> dict[str, Part]:
        """What has no parameters is left out, as positions that a config turns off."""
        parts: dict[str, Part] = {}
        for address, path in self.outer.items():
            if address == "blocks":
                continue
            module = (model if address in self.heads else self.backbone(model)).get_submodule(path)
            part: Part
            if isinstance(module, nn.Linear):
                part = Linear(module, address)
            elif address in self.heads:
                part = OpaqueModule(module, address)
            elif isinstance(module, nn.Conv2d):
                part = PatchEmbedding(module, address, None)
            else:
                part = (Norm if address.endswith("norm") else Embedding)(module, address)
            if part.parameters():
                parts[address] = part
        return parts

    def place_outside(
        self, model: nn.Module, role: str, part: str, kwargs: dict[str, Any]
    ) -> list[Placement]:
        if role in self.heads:
            return [(self.heads[role], part, kwargs)]
        return super().place_outside(model, role, part, kwargs)
