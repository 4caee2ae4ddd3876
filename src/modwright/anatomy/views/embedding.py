"""Tables of vectors, and linear layers outside the blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from modwright.anatomy.projection import Projection
from modwright.anatomy.views.part import ModulePart

__all__ = ["Embedding", "Linear", "PatchEmbedding"]


class Embedding(ModulePart):
    """A table of vectors, one per token or per position: weight [entries, d].

    Vision models hold learned tokens and positions as bare parameters (1, entries, d). A head over
    the vocabulary is one too: it reads the stream where the others write to it.
    """

    input_axes: ClassVar[Mapping[str, int]] = {"weight": 1}

    @property
    def output_axes(self) -> dict[str, int]:
        """As those of a :class:`Projection`."""
        return dict.fromkeys(self.parameters(), -1)


class Linear(ModulePart):
    """A linear layer of the stream outside the blocks: weight [out, in], perhaps a bias."""

    input_axes, output_axes = Projection.input_axes, Projection.output_axes


class PatchEmbedding(ModulePart):
    """Maps each of ``count`` patches of an image: weight [d, channels, height, width].

    ``count`` is None where images of any size are read.
    """

    output_axes = Projection.output_axes

    def __init__(self, module: nn.Module, address: str, count: int | None) -> None:
        super().__init__(module, address)
        self.count = count
