"""What a model costs, counted while it runs on tensors without numbers.

For models whose blocks see different numbers of positions, or have parts without a formula.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modwright.anatomy import Anatomy, Part
from modwright.core.capture import Call, channels_last, on_forward
from modwright.core.modes import set_eval
from modwright.cost.forward_macs import to_meta
from modwright.cost.macs import Pass, part_macs

__all__ = ["MetaTrace", "run_on_meta", "trace_on_meta"]


@dataclass(frozen=True)
class MetaTrace:
    """One pass over one image.

    Attributes:
        macs: multiply-accumulates of the whole model.
        counted: those of every part that is one module, by address.
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
        head, _, rest = address.partition(".")
        sequences, tokens = self.passes[int(rest.partition(".")[0])]
        own = f"{head}.{rest.partition('.')[0]}."
        counted = {
            part: macs // max(1, sequences)
            for part, macs in self.counted.items()
            if part.startswith(own)
        }
        return Pass(run.sequences * sequences, tokens, counted=counted)

    def part_macs(self, address: str, part: Part, run: Pass) -> int:
        """Of a part in a pass of the model: in a block by its formula, outside as counted."""
        if address.startswith("blocks."):
            return part_macs(part, self.of(address, run))
        return run.sequences * self.counted[address]


def trace_on_meta(anatomy: Anatomy) -> MetaTrace | None:
    """A pass of a model whose family is counted by running; None for the others."""
    return run_on_meta(anatomy) if anatomy.family.counts_by_running else None


@torch.no_grad()
def run_on_meta(anatomy: Anatomy) -> MetaTrace:
    """Runs a model on the meta device over one input of its own size.

    Attention is counted as the two products that it is, scores and weighted sum.

    Example:
        >>> from modwright.models import create_model
        >>> sizes = {"depths": [1, 1], "hidden_sizes": [8, 16], "image_size": 64}
        >>> model = create_model("poolformer_s12", **sizes)
        >>> run_on_meta(Anatomy.of(model)).passes  # places of both stages
        ((1, 256), (1, 64))
    """
    model = set_eval(to_meta(anatomy.model))
    inputs = anatomy.family.inputs().random(1, 1, torch.Generator())
    given = {name: tensor.to("meta") for name, tensor in inputs.items()}
    there = Anatomy.of(model)
    seen: dict[int, list[_Call]] = defaultdict(list)
    largest = [0]
    blocks = {block.index: block for block in there.blocks}

    def note_call(index: int, call: Call) -> None:
        stream = channels_last(call.args[0], blocks[index].axis)
        spatial_shape = (
            call.args[1] if len(call.args) > 1 and isinstance(call.args[1], tuple) else None
        )
        tokens, width = stream[..., 0].numel() // len(stream), stream.shape[-1]
        seen[index].append(_Call(len(stream), tokens, width, spatial_shape))

    def note_size(path: str, call: Call) -> None:
        tensors = [x for x in (*call.args, call.output) if isinstance(x, Tensor)]
        largest[0] = max(largest[0], sum(tensor.numel() for tensor in tensors))

    leaves = {path: m for path, m in model.named_modules() if not list(m.children())}
    with ExitStack() as stack:
        modules = {index: block.module for index, block in blocks.items()}
        stack.enter_context(on_forward(modules, note_call, "input"))
        stack.enter_context(on_forward(leaves, note_size))
        # Fused attention is one opaque step to the counter.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        counter = stack.enter_context(FlopCounterMode(display=False))
        model(**given)
    counts = counter.get_flop_counts()
    flops = {path: sum(by_step.values()) for path, by_step in counts.items()}
    start, paths = type(model).__name__, {id(m): path for path, m in model.named_modules()}
    counted = {}
    for address, part in there.parts():
        path = paths.get(id(getattr(part, "module", None)))
        if path is not None:
            counted[address] = flops.get(f"{start}.{path}", 0) // 2
    calls = [seen[block.index] or [_Call(0, 1, 0, None)] for block in there.blocks]
    return MetaTrace(
        flops.get("Global", 0) // 2,
        counted,
        # A block that runs several times sees as many sequences more.
        passes=tuple((sum(call.sequences for call in row), row[0].tokens) for row in calls),
        widths=tuple(row[0].width for row in calls),
        grids=tuple(row[0].spatial_shape for row in calls),
        largest=largest[0],
    )


class _Call(NamedTuple):
    """What one block was called with."""

    sequences: int
    tokens: int
    width: int
    spatial_shape: tuple[int, int] | None
