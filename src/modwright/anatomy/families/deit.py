"""DeiT of transformers: a ViT with a second token beside the class token, for distillation."""

from __future__ import annotations

from typing import Any

from torch import nn

from modwright.anatomy.families import register_family
from modwright.anatomy.families.family import Family
from modwright.anatomy.families.heads import FamilyWithHeads
from modwright.anatomy.families.vit import OlderVit, Vit
from modwright.anatomy.inputs import Images, pair

__all__ = ["Deit", "OlderDeit"]


@register_family
class Deit(FamilyWithHeads):
    """Blocks are those of ViT (arXiv 2012.12877)."""

    name = "deit"
    model_types = ("deit",)
    causal = False
    counts_by_running = True
    outer, block, shape_fields = Vit.outer, Vit.block, Vit.shape_fields

    def fitting(self, model: nn.Module) -> Family:
        older = hasattr(self.backbone(model), "encoder")
        return (OlderDeit if older else Deit)(self.config, model)

    def inputs(self) -> Images:
        """Patches, the class token and the distillation token."""
        config: Any = self.config
        return Images(config.num_channels, pair(config.image_size), pair(config.patch_size), 2)

    def pools(self, model: nn.Module) -> bool:
        return True


class OlderDeit(Deit):
    """The tree of transformers 4 and of the first versions 5."""

    outer, block, shape_fields = OlderVit.outer, OlderVit.block, OlderVit.shape_fields
    beside = OlderVit.beside
