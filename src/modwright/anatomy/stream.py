"""The residual stream of a model: what writes to it, and what reads it through which norm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from modwright.anatomy.projection import Projection
from modwright.anatomy.views import (
    Convolution,
    Embedding,
    Linear,
    Norm,
    Part,
    PatchEmbedding,
    Sublayer,
)

if TYPE_CHECKING:
    from modwright.anatomy.anatomy import Anatomy

__all__ = ["ReadProjection", "ReadingPart", "ResidualStream", "WriteProjection", "stream_of"]

WriteProjection = Projection | Embedding | Linear | PatchEmbedding | Convolution
"""``output_axes`` says along which axis of which parameter its channels of the stream lie."""

ReadingPart = Projection | Embedding | Linear | Convolution


@dataclass(frozen=True)
class ReadProjection:
    """A linear layer that reads the stream, through a norm or (None) by itself."""

    part: ReadingPart
    norm: Norm | None


@dataclass(frozen=True)
class ResidualStream:
    """Everything that touches the residual stream, in the order of the forward pass.

    Between stages a map reads the stream of one and writes that of the next: it is in both lists.

    Attributes:
        writers: maps and tables whose results are added to it.
        scales: address of a writer -> what multiplies its result on the way, channel by channel.
        readers: maps that read it, with the norm before each.
        norms: norms that read it and do not write to it.
        norms_within: norms that write to it: those of post-norm blocks and those before the blocks.
        last_norm: the norm behind the blocks, or None.
        is_complete: all parameters of the model belong to its parts, so no reader is missing here.
    """

    writers: tuple[WriteProjection, ...]
    scales: Mapping[str, Norm]
    readers: tuple[ReadProjection, ...]
    norms: tuple[Norm, ...]
    norms_within: tuple[Norm, ...]
    last_norm: Norm | None
    is_complete: bool

    def written(self, writer: WriteProjection) -> dict[str, Tensor]:
        """What holds a writer's channels of the stream, its gain included: name -> float64."""
        stored, part = writer.parameters(), self.scales.get(writer.address)
        found = {n: stored[n].double() for n in writer.output_axes if n in stored}
        if part is None or (scale := part.scale) is None:
            return found
        return {n: t * scale.double().view(-1, *[1] * (t.ndim - 1)) for n, t in found.items()}

    @property
    def last_reader(self) -> ReadProjection | None:
        """The one map that reads the stream through the last norm, if all that does is known: a
        bare model returns what that norm gives."""
        if self.last_norm is None or not self.is_complete:
            return None
        found = [reader for reader in self.readers if reader.norm is self.last_norm]
        return found[0] if len(found) == 1 else None


def stream_of(anatomy: Anatomy) -> ResidualStream:
    """Follows the stream; outside the blocks the width tells which tables write to it.

    Example:
        >>> import modwright
        >>> stream = modwright.open("preset:tiny-gpt2").anatomy.stream
        >>> [writer.address for writer in stream.writers][:4]
        ['embed', 'positions', 'blocks.0.attention.o', 'blocks.0.mlp.down']
        >>> [reader.part.address for reader in stream.readers][-2:]
        ['blocks.3.mlp.up', 'head']
    """
    width, last_width = anatomy.hidden_size, anatomy.last_width
    writers: list[WriteProjection] = []
    scales: dict[str, Norm] = {}
    readers: list[ReadProjection] = []
    norms: list[Norm] = []
    within: list[Norm] = []
    after = anatomy.after_blocks
    beside = {*after, *anatomy.family.between}
    for part in (p for address, p in anatomy.outer.items() if address not in beside):
        if isinstance(part, Norm):
            within.append(part)
        elif isinstance(part, WriteProjection) and width in _sizes(part, part.output_axes):
            writers.append(part)
    for block in anatomy.blocks:
        norm = None
        between = list(anatomy.between(block.index).values())
        for place, part in enumerate(between):
            if isinstance(part, Norm):
                reads = any(isinstance(p, Linear | Convolution) for p in between[place:])
                norm = part if reads else norm
                (norms if reads else within).append(part)
            elif isinstance(part, Linear | Convolution):
                readers.append(ReadProjection(part, norm))
                writers.append(part)
            elif isinstance(part, Embedding):
                writers.append(part)
        own = [norm for norm in block.norms.values() if norm not in block.scales.values()]
        (within if block.norms_write else norms).extend(own)
        for name, sublayer in block.sublayers():
            norm = None if block.norms_write else sublayer.norm
            for role, projection in sublayer.projections().items():
                if role in sublayer.writes_residual:
                    writers.append(projection)
                    if name in block.scales:
                        scales[projection.address] = block.scales[name]
                elif role in sublayer.reads_residual:
                    readers.append(ReadProjection(projection, norm))
    last: Norm | None = None
    for part in (anatomy.outer[address] for address in after):
        if isinstance(part, Norm):
            last = part
            norms.append(part)
        elif isinstance(part, Embedding | Linear) and last_width in _sizes(part, part.input_axes):
            readers.append(ReadProjection(part, last))
    complete = {id(p) for p in anatomy.model.parameters()} <= {id(p) for p in _held(anatomy)}
    return ResidualStream(
        tuple(writers), scales, tuple(readers), tuple(norms), tuple(within), last, complete
    )


def _sizes(part: Part, axes: Mapping[str, int]) -> set[int]:
    found = part.parameters()
    return {found[name].shape[axis] for name, axis in axes.items() if name in found}


def _held(anatomy: Anatomy) -> Iterator[Tensor]:
    """The parameters that belong to parts, as the modules hold them."""
    for _, part in anatomy.parts():
        maps = part.projections().values() if isinstance(part, Sublayer) else ()
        for module in (part.module, *(projection.module for projection in maps)):
            yield from module.parameters(recurse=isinstance(part, Sublayer))
