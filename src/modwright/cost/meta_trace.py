"""Costs of models whose blocks differ in positions or have no formula: counted while they run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modwright.anatomy import Anatomy, Part, Projection
from modwright.core.capture import Call, channels_last, on_forward
from modwright.core.macs import counted_products, to_meta
from modwright.core.modes import set_eval
from modwright.cost.macs import Pass, part_macs

__all__ = ["MetaTrace", "run_on_meta", "trace_on_meta"]


@dataclass(frozen=True)
class MetaTrace:
    """One pass over one image.

    Attributes:
        macs: multiply-accumulates of the whole model.
        counted: those of every part that is one module, and of the maps of a mixer without a
            formula, by address; as its component says, if that says what it costs.
        passes: what each block is called with: sequences, and tokens of each.
        widths: channels of the stream that each block reads.
        grids: the grid that each block is told, or None.
        largest: numbers that the greediest single module reads and returns.
    """

    macs: int
    counted: Mapping[str, int]
    passes: tuple[tuple[int, int], ...]
    widths: tuple[int, ...]
    grids: tuple[tuple[int, int] | None, ...]
    largest: int

    def of(self, address: str, run: Pass) -> Pass:
        """The pass that a block, or a part in it, sees in a pass of the model."""
        index = address.split(".")[1]
        sequences, tokens = self.passes[int(index)]
        counted = {
            part: macs // max(1, sequences)
            for part, macs in self.counted.items()
            if part.startswith(f"blocks.{index}.")
        }
        return Pass(run.sequences * sequences, tokens, counted=counted)

    def part_macs(self, address: str, part: Part, run: Pass) -> int:
        """Of a part in a pass of the model: a sublayer by its formula, others as counted."""
        if not part.multiplies:
            return 0
        if part.encloses_parts:
            return part_macs(part, self.of(address, run))
        return run.sequences * self.counted[address]


def trace_on_meta(anatomy: Anatomy) -> MetaTrace | None:
    """A pass of a model whose family is counted by running; None for the others."""
    return run_on_meta(anatomy) if anatomy.family.counts_by_running else None


def run_on_meta(anatomy: Anatomy) -> MetaTrace:
    """Runs a model on the meta device over one input of its own size.

    Attention is counted as the two products that it is, scores and weighted sum.

    Example:
        >>> from modwright.models import create_model
        >>> sizes = {"depths": [1, 1], "hidden_sizes": [8, 16], "image_size": 64}
        >>> model = create_model("poolformer_s12", **sizes)
        >>> run_on_meta(Anatomy.of(model)).passes  # positions of both stages
        ((1, 256), (1, 64))
    """
    model = set_eval(to_meta(anatomy.model))
    there = Anatomy.of(model)
    inputs = anatomy.family.inputs().random(1, 1, torch.Generator())
    # Of each call of a block: sequences, tokens of each, channels, and the grid that it is told.
    seen: dict[int, list[tuple[int, int, int, Any]]] = defaultdict(list)
    sizes = [0]

    def note_call(index: int, call: Call) -> None:
        stream = channels_last(call.args[0], axes[index])
        told = call.args[1] if len(call.args) > 1 and isinstance(call.args[1], tuple) else None
        tokens = stream[..., 0].numel() // len(stream)
        seen[index].append((len(stream), tokens, stream.shape[-1], told))

    def note_size(path: str, call: Call) -> None:
        sizes.append(sum(x.numel() for x in (*call.args, call.output) if isinstance(x, Tensor)))

    axes = {block.index: block.axis for block in there.blocks}
    blocks = {block.index: block.module for block in there.blocks}
    leaves = {path: m for path, m in model.named_modules() if not list(m.children())}
    with (
        on_forward(blocks, note_call, "input"),
        on_forward(leaves, note_size),
        counted_products() as counter,
    ):
        model(**{name: tensor.to("meta") for name, tensor in inputs.items()})
    counts = counter.get_flop_counts()
    macs = {path: sum(by_step.values()) // 2 for path, by_step in counts.items()}
    paths = {id(m): f"{type(model).__name__}.{path}" for path, m in model.named_modules()}
    calls = [seen[block.index] or [(0, 1, 0, None)] for block in there.blocks]
    # A block that runs several times sees as many sequences more.
    passes = [(sum(call[0] for call in row), row[0][1]) for row in calls]
    total, counted = macs.get("Global", 0), {}
    for address, part in there.parts():
        if (path := paths.get(id(part.module))) is None:
            continue
        ran = counted[address] = macs.get(path, 0)
        shape = passes[int(address.split(".")[1])] if address.startswith("blocks.") else None
        if shape is not None and (own := part.own_macs(*shape)) is not None:
            counted[address], total = own, total + own - ran
        for projection in part.counted_maps().values():
            inside = macs.get(paths[id(projection.module)], 0)
            counted[projection.address] = _share(projection, inside)
    return MetaTrace(
        total,
        counted,
        passes=tuple(passes),
        widths=tuple(row[0][2] for row in calls),
        grids=tuple(row[0][3] for row in calls),
        largest=max(sizes),
    )


def _share(projection: Projection, macs: int) -> int:
    """What a map has of the products of its module, which may give several maps at once."""
    if projection.rows is None:
        return macs
    return macs * projection.out_features // len(projection.module.get_parameter("weight"))
